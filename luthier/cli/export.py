"""`luthier export`: a merged model as GGUF files that were read back and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["export"]


def export(
    folder: Annotated[Path, typer.Argument(help="Run folder, or a merged model's folder.", show_default=False)],
    gguf: Annotated[
        list[str] | None,
        typer.Option("--gguf", help="Type of weights: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; repeat."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the files; default: RUN/gguf.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: of the folder.")] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="Also write a Modelfile for Ollama.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write GGUF files for llama.cpp, Ollama and LM Studio; each is read back by llama.cpp before it is kept."""
    from luthier.export.gguf.check import report_lines
    from luthier.export.gguf.export import export_gguf

    if not gguf:
        problem = Problem(code="X611", message="say what to export", hint="--gguf q8_0")
        raise RecipeError(problems=[problem])
    merged = folder / "merged" if (folder / "recipe.yaml").is_file() else folder
    target = out or (folder / "gguf")
    kinds = [kind.lower() for kind in gguf]
    reports = export_gguf(merged, target, kinds, name=name or folder.resolve().name, ollama=ollama)
    if as_json:
        emit_json({"folder": str(target), "files": [report.to_json() for report in reports]})
        return
    for report in reports:
        for line in report_lines(report.to_json()):
            show(line)
