"""Why a setting was taken, and why another was not, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from luthier.plan.result import Candidate
from luthier.plan.setting import Way

if TYPE_CHECKING:
    from luthier.plan.request import Request

__all__ = ["gib", "host_words", "reasons_for", "way_name", "why_not"]

NOTHING: Mapping[Way, str] = MappingProxyType({})


def gib(size: float) -> str:
    """`12.3 GiB`; small amounts in MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:,.0f} MiB"


def host_words(candidate: Candidate) -> str:
    """`, and 89.0 GiB of host memory, of which 60.0 GiB are free` where that is too little; else nothing."""
    if not candidate.host_missing:
        return ""
    assert candidate.host_available is not None
    return f", and {gib(candidate.host.offloaded)} of host memory, of which {gib(candidate.host_available)} are free"


def reasons_for(
    request: Request, chosen: Candidate, candidates: Sequence[Candidate], refused: Mapping[Way, str] = NOTHING
) -> dict[str, str]:
    """Reasons of the values that the plan decides, by key of the recipe. `refused`: ways that were left out."""
    need = f"{gib(chosen.needed_bytes)} of {gib(request.device.memory_bytes)}"
    reasons = {
        "train.per_device_train_batch_size": _micro(request, chosen, candidates, need),
        "train.gradient_checkpointing": _recompute(request, chosen, candidates, need),
        "model.dequantize_base": _base(request, chosen, candidates),
    }
    if request.num_gpus > 1:
        reasons["distributed.strategy"] = _strategy(request, chosen, candidates, refused)
    reasons |= _of_way(request, chosen, candidates)
    layers = request.sizes.shape.layers
    setting = chosen.setting
    if setting.whole_layers(layers):
        reasons["train.gradient_checkpointing_attention"] = _attention(request, chosen, candidates)
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
        and other.setting.way == setting.way and other.setting.recompute == "none"
    ]  # fmt: skip
    without = f"without it the step needs {gib(same[0].needed_bytes)}; with it {need}" if same else f"with it {need}"
    if setting.recompute == "selective" and same:
        more = chosen.seconds / same[0].seconds - 1
        return f"{without}, and {f'{more:.0%}' if more >= 0.01 else 'less than 1%'} more time"
    return without


def _attention(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """Why layers that run again do so with or without attention."""
    setting = chosen.setting
    if setting.attending_layers:
        layers, need = request.sizes.shape.layers, f"{gib(chosen.needed_bytes)} of {gib(request.device.memory_bytes)}"
        return f"the fewest of {setting.whole_layers(layers)} layers with which it fits: {need}"
    others = [
        other for other in candidates
        if other.setting.keep_attention != setting.keep_attention and other.setting.whole_layers(10**6)
        and other.split == chosen.split and other.setting.base == setting.base and other.setting.way == setting.way
    ]  # fmt: skip
    if not others:
        return "attention by autograd would keep more than its output" if not setting.keep_attention else "as written"
    fitting = [other for other in others if other.fits]
    if fitting:
        best = min(fitting, key=lambda other: other.seconds_per_token)
        return f"{'run again' if setting.keep_attention else 'with its output kept'}: {why_not(best, chosen)}"
    least = min(other.needed_bytes for other in others)
    how = "run again" if setting.keep_attention else "with its output kept"
    return f"{how}, the step needs at least {gib(least)} of {gib(request.device.memory_bytes)}"


def way_name(way: Way) -> str:
    """`copies`, `shards`, `zero2`, `shards with the optimizer offloaded`, `shards in 4 copies`, `shards with 8
    devices a sequence`."""
    name = {"ddp": "copies", "fsdp2": "shards"}.get(way.strategy, way.strategy)
    name += f" in {way.dp_replicate} copies" if way.dp_replicate > 1 else ""
    more = {"none": [], "optimizer": ["the optimizer offloaded"], "all": ["weights and optimizer offloaded"]}[
        way.offload
    ]
    more = more + ([f"{way.sequence_parallel} devices a sequence"] if way.sequence_parallel > 1 else [])
    return name + (f" with {' and '.join(more)}" if more else "")


def _strategy(request: Request, chosen: Candidate, candidates: Sequence[Candidate], refused: Mapping[Way, str]) -> str:
    """The way that was taken, and every other that was looked at, with the bytes of each device."""
    said = [f"{gib(chosen.needed_bytes)} on each of {request.num_gpus} devices"]
    others: dict[Way, list[Candidate]] = {}
    for other in candidates:
        if other.setting.way != chosen.setting.way:
            others.setdefault(other.setting.way, []).append(other)
    for way, own in others.items():
        best = min((other for other in own if other.fits), key=lambda other: other.seconds_per_token, default=None)
        if best is None:
            least = min(own, key=lambda other: other.needed_bytes)
            need = f"at least {gib(least.needed_bytes)} of {gib(request.device.memory_bytes)}{host_words(least)}"
            said.append(f"{way_name(way)} do not fit: {need}")
        else:
            said.append(f"{way_name(way)}: {why_not(best, chosen)}")
    said += [f"{way_name(way)} were not looked at: {reason}" for way, reason in refused.items()]
    return "; ".join(said)


def _of_way(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Of what the plan adds to `distributed` because nothing fits without."""
    way, section = chosen.setting.way, request.recipe.distributed
    plain = [
        other.needed_bytes
        for other in candidates
        if (other.setting.way.offload, other.setting.way.sequence_parallel)
        == (section.offload, section.sequence_parallel_size)
    ]
    without = f"without it at least {gib(min(plain))} of {gib(request.device.memory_bytes)}" if plain else "as written"
    with_it = f"{without}; with it {gib(chosen.needed_bytes)}"
    reasons = {}
    if way.offload != section.offload:
        reasons["distributed.offload"] = with_it
    if way.sequence_parallel != section.sequence_parallel_size:
        reasons["distributed.sequence_parallel_size"] = with_it
    if way.dp_replicate != section.dp_replicate_size:
        reasons["distributed.dp_replicate_size"] = (
            f"weights are gathered among {chosen.setting.shard_group} devices; between {way.dp_replicate} copies go "
            "only gradients of shards" + (", and of adapters" if request.sizes.adapters else "")
        )
    return reasons


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
        too_much = f", {gib(over)} too much" if over > 0 else ""
        return f"does not fit: {gib(other.needed_bytes)}{too_much}{host_words(other)}"
    slower = other.seconds_per_token / chosen.seconds_per_token - 1
    if slower >= 0.005:
        return f"{slower:.0%} slower ({other.tokens_per_second:,.0f} tokens/s), {gib(other.needed_bytes)}"
    return f"no faster ({other.tokens_per_second:,.0f} tokens/s), {gib(other.needed_bytes)}"
