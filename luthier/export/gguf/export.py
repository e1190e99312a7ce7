"""A merged folder -> checked GGUF files. A file appears only if it answers like the model it came from."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.export.gguf.check import GgufReport, check_gguf
from luthier.export.gguf.modelfile import write_modelfile
from luthier.export.gguf.tensors import weight_files
from luthier.export.gguf.types import K_QUANTS, TYPES
from luthier.export.gguf.write import Written, write_gguf
from luthier.model.contract import check_saved, contract_of
from luthier.model.identity import verify_record
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
        RecipeError: an unknown type, a name that is a path, or no merged model there; all that is wrong.
        RunFailed: a model that llama.cpp would run differently, prompts or stop tokens that are not those of its
            training, or a file that failed its check; all faults are told.
        EnvironmentProblem: no package gguf, a K-quant without llama-quantize, or a disk that is full.
    """
    _require(folder, kinds, name)
    verify_record(folder)
    check_saved(folder, contract_of(folder))
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
        return write_gguf(folder, file, TYPES[kind], name=name)
    plain = file.with_name("plain-f16.gguf")
    written = write_gguf(folder, plain, TYPES["f16"], name=name)
    command = [_quantizer() or "", str(plain), str(file), kind.upper()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    plain.unlink()
    if done.returncode or not file.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RunFailed(code="X622", message=f"llama-quantize ended with {done.returncode}: {' | '.join(said)}")
    return written


def _quantizer() -> str | None:
    return os.environ.get(QUANTIZER) or shutil.which("llama-quantize")


def _require(folder: Path, kinds: Sequence[str], name: str) -> None:
    """Everything that can be known before hours of work; all that is wrong."""
    allowed = f"{', '.join([*TYPES, *K_QUANTS])} (the last {len(K_QUANTS)} need llama-quantize)"
    problems = [
        Problem(code="X611", message=f"`{kind}` is no type of weights that can be written", hint=f"allowed: {allowed}")
        for kind in dict.fromkeys(kinds)
        if kind not in TYPES and kind not in K_QUANTS
    ]
    if Path(name).name != name:
        message = f"`{name}` cannot be the beginning of a file's name"
        problems.append(Problem(code="X611", message=message, hint="a name without slashes"))
    if not (folder / "config.json").is_file():
        problems.append(_no_model(f"{folder} holds no merged model (no config.json)", "`luthier merge RUN` makes it"))
    elif (folder / "adapter_config.json").is_file():
        message = f"{folder} is an adapter; a GGUF file holds whole models"
        problems.append(_no_model(message, "`luthier merge RUN` merges it into its base"))
    else:
        missing = [file.name for file in weight_files(folder) if not file.is_file()]
        if missing:
            message = f"{folder} lacks {', '.join(missing[:3])}"
            problems.append(_no_model(message, "only whole models in safetensors can be written"))
    if problems:
        raise RecipeError(problems=problems)
    if importlib.util.find_spec("gguf") is None:
        raise EnvironmentProblem(
            code="X618", message="GGUF files are written by the package gguf", hint='pip install "luthier[gguf]"'
        )
    wanted = [kind for kind in kinds if kind in K_QUANTS]
    if wanted and not _quantizer():
        raise EnvironmentProblem(
            code="X620", message=f"{', '.join(wanted)}: K-quants are made by llama-quantize, which is not here",
            hint=f"put llama.cpp's llama-quantize on PATH or its path into {QUANTIZER}; or take {', '.join(TYPES)}",
        )  # fmt: skip


def _no_model(message: str, hint: str) -> Problem:
    return Problem(code="X610", message=message, hint=hint)


def _failed(report: GgufReport) -> RunFailed:
    return RunFailed(
        problems=[
            Problem(code="X621", message=f"{report.file} does not answer like the merged model: {fault}")
            for fault in report.faults
        ]
    )
