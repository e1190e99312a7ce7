"""`luthier export`: a merged model as GGUF files or compressed folders that were read back and compared."""

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
    compressed: Annotated[
        list[str] | None,
        typer.Option("--compressed-tensors", help="For vLLM, by llm-compressor: fp8, w8a8, w4a16; repeat."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the files; default: RUN/gguf, RUN/compressed.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: of the folder.")] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="Also write a Modelfile for Ollama.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write GGUF files for llama.cpp, Ollama and LM Studio, or compressed folders for vLLM; each is read back first."""
    merged = folder / "merged" if (folder / "recipe.yaml").is_file() else folder
    called = name or folder.resolve().name
    if bool(gguf) == bool(compressed):
        message = "say what to export" if not gguf else "--gguf and --compressed-tensors are two exports"
        problem = Problem(code="X611", message=message, hint="--gguf q8_0, or --compressed-tensors fp8")
        raise RecipeError(problems=[problem])
    if compressed and ollama:
        raise RecipeError(code="X611", message="--ollama goes with --gguf: Ollama reads no compressed folders")
    if compressed:
        _compressed(merged, out or (folder / "compressed"), [kind.lower() for kind in compressed], called, as_json)
        return
    from luthier.export.gguf.check import report_lines
    from luthier.export.gguf.export import export_gguf

    target = out or (folder / "gguf")
    reports = export_gguf(merged, target, [kind.lower() for kind in gguf or []], name=called, ollama=ollama)
    if as_json:
        emit_json({"folder": str(target), "files": [report.to_json() for report in reports]})
        return
    for report in reports:
        for line in report_lines(report.to_json()):
            show(line)


def _compressed(merged: Path, target: Path, kinds: list[str], name: str, as_json: bool) -> None:
    from luthier.export.compressed import export_compressed, report_lines

    reports = export_compressed(merged, target, kinds, name=name)
    if as_json:
        emit_json({"folder": str(target), "models": [report.to_json() for report in reports]})
        return
    for report in reports:
        for line in report_lines(report):
            show(line)
