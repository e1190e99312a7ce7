"""A merged folder -> checked GGUF files. A file appears only if it answers like the model it came from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.export.gguf.check import GgufReport, check_gguf
from luthier.export.gguf.modelfile import write_modelfile
from luthier.export.gguf.types import K_QUANTS, TYPES, weight_type
from luthier.export.gguf.write import Written, write_gguf
from luthier.runtime.atomic import TEMP_PREFIX, explain_os_error, fsync_path
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError, RunFailed

__all__ = ["QUANTIZER", "export_gguf"]

QUANTIZER = "LUTHIER_LLAMA_QUANTIZE"
"""Path of llama.cpp's `llama-quantize`, if it is not on PATH."""


def export_gguf(folder: Path, out: Path, kinds: Sequence[str], *, name: str, ollama: bool = False) -> list[GgufReport]:
    """Write a file of each type, read each back, and keep those that pass.

    Args:
        folder: Merged model in transformers' format.
        out: Folder for `NAME-TYPE.gguf`; files of these names are replaced.
        kinds: Types: `f16`, `q8_0`, ..., or K-quants where llama-quantize is.
        name: Of the model.
        ollama: Also write `Modelfile` for the last of the types.

    Raises:
        RecipeError: an unknown type, or no merged model there.
        RunFailed: a model that llama.cpp would run differently, or a file that failed its check; all faults are told.
        EnvironmentProblem: a K-quant without llama-quantize, or a disk that is full.
    """
    _require(folder, kinds)
    reports = []
    for kind in dict.fromkeys(kinds):
        target = out / f"{name}-{kind}.gguf"
        try:
            out.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=TEMP_PREFIX, dir=out) as temporary:
                file = Path(temporary) / target.name
                written = _write(folder, file, kind, name=name)
                report = check_gguf(written, file, kind, folder=folder)
                if not report.passed:
                    raise _failed(report)
                fsync_path(file)
                file.replace(target)
        except OSError as error:
            raise explain_os_error(error, target) from error
        reports.append(report)
        for line in report.notes:
            note(f"  note: {line}")
    if ollama:
        write_modelfile(folder, out / reports[-1].file)
    return reports


def _write(folder: Path, file: Path, kind: str, *, name: str) -> Written:
    if kind in TYPES:
        return write_gguf(folder, file, weight_type(kind), name=name)
    plain = file.with_name("plain-f16.gguf")
    written = write_gguf(folder, plain, weight_type("f16"), name=name)
    command = [_quantizer() or "", str(plain), str(file), kind.upper()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    plain.unlink()
    if done.returncode or not file.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RunFailed(code="X622", message=f"llama-quantize ended with {done.returncode}: {' | '.join(said)}")
    return written


def _quantizer() -> str | None:
    return os.environ.get(QUANTIZER) or shutil.which("llama-quantize")


def _require(folder: Path, kinds: Sequence[str]) -> None:
    problems = []
    for kind in kinds:
        if kind not in TYPES and kind not in K_QUANTS:
            weight_type(kind)
    if not (folder / "config.json").is_file():
        message = f"{folder} holds no merged model (no config.json)"
        problems.append(Problem(code="X610", message=message, hint="`luthier merge RUN` makes it"))
    elif (folder / "adapter_config.json").is_file():
        message = f"{folder} is an adapter; a GGUF file holds whole models"
        problems.append(Problem(code="X610", message=message, hint="`luthier merge RUN` merges it into its base"))
    if problems:
        raise RecipeError(problems=problems)
    wanted = [kind for kind in kinds if kind in K_QUANTS]
    if wanted and not _quantizer():
        raise EnvironmentProblem(
            code="X620", message=f"{', '.join(wanted)}: K-quants are made by llama-quantize, which is not here",
            hint=f"put llama.cpp's llama-quantize on PATH or its path into {QUANTIZER}; or take {', '.join(TYPES)}",
        )  # fmt: skip


def _failed(report: GgufReport) -> RunFailed:
    return RunFailed(
        problems=[
            Problem(code="X621", message=f"{report.file} does not answer like the merged model: {fault}")
            for fault in report.faults
        ]
    )
