"""`luthier init`: look at a file of examples and write a recipe for it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show
from luthier.runtime.errors import RecipeError


class Method(StrEnum):
    """Methods a recipe can start with."""

    full = "full"
    lora = "lora"
    qlora = "qlora"
    spectrum = "spectrum"


def init(
    data: Annotated[Path, typer.Argument(help="File with your examples (json, jsonl, csv, parquet, arrow).")],
    model: Annotated[str, typer.Option(help="Base model: hub id or folder.")] = "smollm2-135m-instruct",
    method: Annotated[Method, typer.Option(help="What to train.")] = Method.lora,
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a file, guess its format, and write a commented recipe."""
    from luthier.data.recipe_for import recipe_for
    from luthier.runtime.atomic import write_text

    if out.exists() and not force:
        raise RecipeError(code="C140", message=f"{out} exists", hint="choose another --out, or --force to replace it")
    run = f"runs/{data.name.split('.')[0]}"
    found, text = recipe_for(data, shown=str(data), output_dir=run, model=model, method=method.value)
    write_text(out, text)
    if as_json:
        emit_json({"recipe": str(out), "format": found.format, "map": dict(found.map), "rows": found.rows})
        return
    show(f"{data}: {found.verdict}")
    show(f"wrote {out}; next: luthier data check {out} && luthier run {out}")
