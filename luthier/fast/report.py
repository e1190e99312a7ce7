"""Lines that say what each part of a model runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.fast.attention import has_varlen_kernel
from luthier.fast.head import plain_linear
from luthier.fast.kernels import backend
from luthier.fast.settings import EngineSettings

if TYPE_CHECKING:
    from luthier.fast.decoder.function import Replaced
    from luthier.fast.probe import HeadFinding, LayoutFinding

__all__ = ["Part", "report_attention", "report_decoder", "report_head"]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the report: what a part of the model runs on, and why."""

    name: str
    runs: str
    reason: str


def report_attention(base: Any, layout: LayoutFinding, decoder: Replaced) -> Part:
    """How documents attend."""
    weight = next(p for p in base.parameters() if p.is_floating_point())
    on_cuda, half = weight.is_cuda, weight.dtype in (torch.bfloat16, torch.float16)
    if layout.layout == "padded":
        return Part("attention", "the model's own, documents padded to a rectangle", layout.reason)
    layers = len(getattr(base.get_decoder(), "layers", ()))
    if layers and sum(program.attention == "packed" for program in decoder.programs) == layers:
        return Part("attention", "the engine's own kernels over packed documents, no padding", layout.reason)
    if on_cuda and half and has_varlen_kernel():
        return Part("attention", "torch varlen kernel over packed documents, no padding", layout.reason)
    why = "CPU" if not on_cuda else "the varlen kernel takes 16-bit types" if not half else "no varlen kernel here"
    return Part("attention", f"scaled-dot-product per packed document, no padding ({why})", layout.reason)


def report_head(base: Any, finding: HeadFinding) -> Part:
    """How logits and loss are computed."""
    if finding.kind == "model":
        return Part("head", "the model's own forward, all logits", finding.reason)
    if finding.kind == "reward":
        return Part("head", "last token of each answer only", finding.reason)
    if plain_linear(base.get_output_embeddings()) is None:
        head = type(base.get_output_embeddings()).__name__
        return Part("head", f"supervised rows only, in chunks through {head}", finding.reason)
    return Part("head", "supervised rows only, chunked linear cross-entropy", finding.reason)


def report_decoder(
    decoder: Replaced, settings: EngineSettings, *, refused: str | None, recomputed: int, device: torch.device
) -> list[Part]:
    """What the decoder layers run on, which are left alone, and what is computed again."""
    lines: list[Part] = []
    programs = decoder.programs
    if programs:
        name, why = backend(device)
        kinds = " and ".join(sorted({type(p.base).__name__.lower() for x in programs for p in x.projections}))
        family = programs[0].parts.family.norm.removesuffix("RMSNorm")
        inexact = " (inexact: both sides of a product rounded to 8 bits)" if "fp8" in kinds else ""
        attention = " and ".join(sorted({_ATTENTION[program.attention] for program in programs}))
        runs = f"one function each ({len(programs)} layers), {kinds} matrices{inexact}, {name} kernels, {attention}"
        lines.append(Part("decoder layers", runs, f"{family} layers are in the table; {why}"))
        policies = [f"{program.policy}{', attention kept' * program.keeps_attention}" for program in programs]
        counts = {policy: policies.count(policy) for policy in _MEANING}
        said = [f"{count} layers: {_MEANING[policy]}" for policy, count in counts.items() if count]
        if said:
            lines.append(Part("recomputation", "; ".join(said), "asked for"))
    stock = "some as transformers wrote them" if programs else "as transformers wrote them"
    if refused is not None:
        lines.append(Part("decoder layers", stock, f"the replacement failed its probe: {refused}"))
    elif not settings.replace_layers:
        lines.append(Part("decoder layers", stock, "replacement is switched off"))
    elif decoder.reasons:
        why = "; ".join(f"{reason} ({count} layers)" for reason, count in decoder.reasons.items())
        lines.append(Part("decoder layers", stock, why))
    if recomputed:
        whole = ", attention too (only layers of the engine's own can keep it)" if settings.keep_attention else ""
        lines.append(Part("recomputation", f"{recomputed} layers run again in the backward pass{whole}", "asked for"))
    elif settings.recompute != "none" and not programs:
        lines.append(
            Part("recomputation", "none", f"`{settings.recompute}` was asked for, but no layer here can run again")
        )
    return lines


_ATTENTION = {
    "packed": "attention in tiles of the documents",
    "varlen": "torch's varlen attention",
    "documents": "attention document by document",
}
_MEANING = {
    "layer": "run again in the backward pass, but for their last product",
    "layer, attention kept": "run again in the backward pass, but for attention and their last product",
    "selective": "norms and activation products computed again",
}
