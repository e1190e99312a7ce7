"""Why a setting was taken, and why another was not, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.plan.result import Candidate

if TYPE_CHECKING:
    from luthier.plan.request import Request

__all__ = ["gib", "reasons_for", "why_not"]


def gib(size: float) -> str:
    """`12.3 GiB`; small amounts in MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:,.0f} MiB"


def reasons_for(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Reasons of the values that the plan decides, by key of the recipe."""
    need = f"{gib(chosen.needed_bytes)} of {gib(request.device.memory_bytes)}"
    reasons = {
        "train.per_device_train_batch_size": _micro(request, chosen, candidates, need),
        "train.gradient_checkpointing": _recompute(request, chosen, candidates, need),
        "model.dequantize_base": _base(request, chosen, candidates),
    }
    if request.num_gpus > 1:
        reasons["distributed.strategy"] = _strategy(request, chosen, candidates)
    layers = request.sizes.shape.layers
    setting = chosen.setting
    if setting.recompute_layers is not None:
        key = "train.gradient_checkpointing_layers"
        reasons[key] = f"the fewest of {layers} layers with which it fits: {need}"
    return reasons


def _micro(request: Request, chosen: Candidate, candidates: Sequence[Candidate], need: str) -> str:
    if request.device.type != "cuda":
        return f"at most {chosen.budget:,} tokens: small micro-batches stay in the caches; {need}"
    split = chosen.split
    whole = "the whole step at once" if split.gradient_accumulation_steps == 1 else "the fastest micro-batch that fits"
    fitting = [other.seconds_per_token for other in candidates if other.fits]
    if fitting and chosen.seconds_per_token > min(fitting) and split.gradient_accumulation_steps > 1:
        whole = "within 1% of the fastest, with less memory"
    if not chosen.fits:
        return f"nothing fits; this needs least: {need}"
    return f"{whole}: {need}, {chosen.tokens_per_second:,.0f} tokens/s expected"


def _recompute(request: Request, chosen: Candidate, candidates: Sequence[Candidate], need: str) -> str:
    setting = chosen.setting
    if setting.recompute == "none":
        return f"the step needs {need} without"
    same = [
        other
        for other in candidates
        if other.split == chosen.split and other.setting.base == setting.base
        and other.setting.sharded == setting.sharded and other.setting.recompute == "none"
    ]  # fmt: skip
    without = f"without it the step needs {gib(same[0].needed_bytes)}; with it {need}" if same else f"with it {need}"
    if setting.recompute == "selective" and same:
        more = chosen.seconds / same[0].seconds - 1
        return f"{without}, and {f'{more:.0%}' if more >= 0.01 else 'less than 1%'} more time"
    return without


def _strategy(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """Copied or sharded, with the bytes of each device either way."""
    here = f"{gib(chosen.needed_bytes)} on each of {request.num_gpus} devices"
    others = [other for other in candidates if other.setting.sharded != chosen.setting.sharded]
    if not others:
        reason = request.why_not_sharded
        return f"{here}; shards were not looked at: {reason}" if reason and not chosen.setting.sharded else here
    best = min((other for other in others if other.fits), key=lambda other: other.seconds_per_token, default=None)
    name = "shards" if others[0].setting.sharded else "copies"
    if best is None:
        least = min(others, key=lambda other: other.needed_bytes)
        return f"{here}; {name} do not fit: at least {gib(least.needed_bytes)} of {gib(request.device.memory_bytes)}"
    return f"{here}; {name}: {why_not(best, chosen)}"


def _base(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    if chosen.setting.base == "nf4_dequantized":
        return f"the unpacked copy fits: {gib(chosen.needed_bytes)} of {gib(request.device.memory_bytes)}"
    kept = [other for other in candidates if other.setting.base == "nf4_dequantized"]
    if not kept:
        return "packed weights need least memory"
    least = min(other.needed_bytes for other in kept)
    if least > chosen.available_bytes:
        return f"the unpacked copy does not fit: at least {gib(least)} of {gib(request.device.memory_bytes)}"
    return "unpacking for each product is faster than the recompute that a kept copy would need"


def why_not(other: Candidate, chosen: Candidate) -> str:
    """Why `other` was not taken."""
    if not other.fits:
        over = other.needed_bytes - other.available_bytes
        return f"does not fit: {gib(other.needed_bytes)}, {gib(over)} too much"
    slower = other.seconds_per_token / chosen.seconds_per_token - 1
    if slower >= 0.005:
        return f"{slower:.0%} slower ({other.tokens_per_second:,.0f} tokens/s), {gib(other.needed_bytes)}"
    return f"no faster ({other.tokens_per_second:,.0f} tokens/s), {gib(other.needed_bytes)}"
