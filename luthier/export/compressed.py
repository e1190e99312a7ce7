"""A merged folder -> compressed-tensors folders for vLLM and transformers, made by llm-compressor, read back.

Weights of the linear layers are rounded to nearest, without calibration data; the head stays as it is:

    fp8     weights float8 a channel, inputs float8 a token at run time   (FP8_DYNAMIC)
    w8a8    weights int8 a channel, inputs int8 a token at run time       (W8A8)
    w4a16   weights int4 in groups of 128, inputs as they are             (W4A16)

The folder is loaded by plain transformers and must answer as the compressed model did in memory; tokenizer, template
and stop tokens must be those of training (`model.contract`). What rounding costs is told, not judged: KL from the
merged model, and first choices that stay the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.export.verify import check_prompts, logits_of, mean_kl
from luthier.model.contract import check_saved, contract_of
from luthier.model.identity import verify_record, write_record
from luthier.model.quiet import first_line, quiet_libraries
from luthier.model.save import write_stop_ids
from luthier.model.stops import stop_ids
from luthier.runtime.atomic import atomic_folder
from luthier.runtime.console import progress
from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError, RunFailed

__all__ = ["SCHEMES", "CompressedReport", "export_compressed", "report_lines"]

SCHEMES = {"fp8": "FP8_DYNAMIC", "w8a8": "W8A8", "w4a16": "W4A16"}
"""Our names, and llm-compressor's."""
GROUP = 128
_NOISE = 1e-4
"""Of the largest logit: what loading may change. Measured: nothing at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedReport:
    """What a folder is and how it compares."""

    folder: str
    type: str
    bytes: int
    """Of its safetensors."""
    merged_bytes: int
    kl: float
    """Mean KL(merged || compressed) over all positions of the check texts, nats."""
    same_choice: float
    """Share of these positions with the same first choice."""
    gap: float
    """Largest difference of a logit between the folder, read back, and the compressed model in memory."""
    allowed: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def report_lines(report: CompressedReport) -> list[str]:
    """A folder in words."""
    return [
        f"{report.folder}: {report.bytes / 1e6:,.1f} MB (merged: {report.merged_bytes / 1e6:,.1f} MB)",
        f"  rounding to {report.type}: KL {report.kl:.2g} nats, same first choice on {report.same_choice:.1%}",
        f"  read back by transformers: logits within {report.gap:.2g} (at most {report.allowed:.2g})",
    ]


def export_compressed(folder: Path, out: Path, kinds: Sequence[str], *, name: str) -> list[CompressedReport]:
    """Write a folder of each type, read each back, and keep those that pass.

    Args:
        folder: Merged model in transformers' format.
        out: Folder for `NAME-TYPE`; folders of these names are replaced.
        kinds: Of `SCHEMES`.
        name: Of the model.

    Raises:
        RecipeError: an unknown type, a name that is a path, or no merged model there; all that is wrong.
        EnvironmentProblem: llm-compressor is not installed.
        RunFailed: prompts or stop tokens are not those of training; llm-compressor failed; a folder does not answer as
            the compressed model did.
    """
    _require(folder, kinds, name)
    verify_record(folder)
    contract = contract_of(folder)
    check_saved(folder, contract)
    reports = []
    for kind in dict.fromkeys(kinds):
        target = out / f"{name}-{kind}"
        with atomic_folder(target) as temporary:
            report = _compress(folder, temporary, kind, label=target.name)
            if not report.gap <= report.allowed:  # so is what is not a number
                raise RunFailed(
                    code="X673",
                    message=f"{target.name} does not answer as the compressed model did: a logit is off by "
                    f"{report.gap:.3g}, at most {report.allowed:.3g} is explained; it was not kept",
                    hint="please report this, with the versions of llmcompressor and compressed-tensors",
                )
            check_saved(temporary, contract)
            kept = {} if contract is None else {"prompts": contract}
            write_record(temporary, kind="compressed", base=None, compressed=report.to_json(), **kept)
        reports.append(report)
    return reports


def _require(folder: Path, kinds: Sequence[str], name: str) -> None:
    allowed = ", ".join(SCHEMES)
    problems = [
        Problem(code="X670", message=f"`{kind}` is no type of compressed weights", hint=f"allowed: {allowed}")
        for kind in dict.fromkeys(kinds)
        if kind not in SCHEMES
    ]
    if Path(name).name != name:
        message = f"`{name}` cannot be the beginning of a folder's name"
        problems.append(Problem(code="X670", message=message, hint="a name without slashes"))
    if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        message = f"{folder} holds no merged model"
        problems.append(Problem(code="X670", message=message, hint="`luthier merge RUN` makes it"))
    if problems:
        raise RecipeError(problems=problems)
    missing = [one for one in ("llmcompressor", "compressed_tensors") if importlib.util.find_spec(one) is None]
    if missing:
        raise EnvironmentProblem(
            code="X671", message=f"compressed-tensors folders are written by llm-compressor ({missing[0]} is missing)",
            hint='pip install "luthier[compressed]"; docs/compressed.md says what its pins ask for',
        )  # fmt: skip


def _compress(folder: Path, target: Path, kind: str, *, label: str) -> CompressedReport:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = check_prompts(tokenizer, run_folder=folder.parent, extra_ids=())
    with progress(f"compress {kind}", 3, "steps") as bar, quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        stops, generation = stop_ids(tokenizer, model), model.generation_config
        merged = logits_of(model, texts)
        bar.advance(say="merged")
        _one_shot(model, kind, label)
        expected = logits_of(model, texts)
        model.save_pretrained(target, save_compressed=True)
        tokenizer.save_pretrained(target)
        (target / "recipe.yaml").unlink(missing_ok=True)  # llm-compressor's own; config.json says the same
        model.generation_config = generation
        write_stop_ids(target, stops, model)
        dtype = model.dtype
        del model
        bar.advance(say="compressed")
        found = logits_of(AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval(), texts)
        bar.advance(say="read back")
    pairs = [(one.argmax(-1) == other.argmax(-1)).flatten() for one, other in zip(merged, found, strict=True)]
    return CompressedReport(
        folder=label, type=kind, bytes=_size(target), merged_bytes=_size(folder), kl=mean_kl(merged, found),
        same_choice=float(torch.cat(pairs).double().mean()),
        gap=float(torch.stack([(a - b).abs().max() for a, b in zip(expected, found, strict=True)]).max()),
        allowed=_NOISE * max(float(logits.abs().max()) for logits in expected),
    )  # fmt: skip


def _one_shot(model: Any, kind: str, label: str) -> None:
    """Round the linear layers in place; its own log is off while it works."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from loguru import logger

    if kind == "w4a16":
        odd = [name for name, layer in model.named_modules()
               if isinstance(layer, torch.nn.Linear) and name != "lm_head" and layer.in_features % GROUP]  # fmt: skip
        if odd:
            message = f"{label}: {odd[0]} and {len(odd) - 1} more have inputs that are no multiple of {GROUP}"
            raise RunFailed(code="X672", message=message, hint="take w8a8 or fp8")
    logger.disable("llmcompressor")
    logger.disable("compressed_tensors")
    try:
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=SCHEMES[kind], ignore=["lm_head"]))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        message = f"{label}: llm-compressor failed: {type(error).__name__}: {first_line(error)}"
        raise RunFailed(code="X672", message=message, hint="take another type") from error
    finally:
        logger.enable("llmcompressor")
        logger.enable("compressed_tensors")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
