"""`luthier card`: README.md of a run's models, made from what the run left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json
from luthier.runtime.errors import RecipeError


def card(
    folder: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write one card here (`-`: stdout).")] = None,
    what: Annotated[
        str | None, typer.Option(help="For --out: final, merged or gguf; default: the merged model.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the base, if the run knows only a folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the model card of a run's models; what you wrote outside its markers stays."""
    from luthier.report.card.write import card_text, model_folders, read_card, write_cards
    from luthier.report.read import read_run
    from luthier.runs.overview import require_run
    from luthier.runtime.atomic import write_text
    from luthier.runtime.console import note

    run = require_run(folder)
    folders = model_folders(run)
    if not folders:
        raise RecipeError(
            code="X642", message=f"{folder} holds no model yet", hint="`luthier run` with its recipe.yaml makes one"
        )
    if out is None:
        if what is not None:
            raise RecipeError(code="X643", message="--what chooses the card for --out", hint="remove it, or add --out")
        files = write_cards(run, base_model=base_model)
        if as_json:
            emit_json({"files": [str(file) for file in files]})
        else:
            for file in files:
                note(str(file))
        return
    names = [item.name for item in folders]
    wanted = what or ("merged" if "merged" in names else names[0])
    if wanted not in names:
        raise RecipeError(code="X643", message=f"--what {wanted}: this run has {', '.join(names)}")
    source = folder / wanted
    to_stdout = str(out) == "-"
    old = read_card(source) if to_stdout or not out.is_file() else out.read_text("utf-8", errors="replace")
    text = card_text(read_run(run), source, old=old, base_model=base_model)
    if to_stdout:
        sys.stdout.write(text)
        return
    write_text(out, text)
    if as_json:
        emit_json({"files": [str(out)]})
    else:
        note(str(out))
