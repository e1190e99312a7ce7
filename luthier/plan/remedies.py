"""When nothing fits: single changes after which something does, smallest first.

The order is how much a change changes: first what computes the same numbers, then what changes the optimizer's
rounding, the data, the method, and at last the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.plan.devices import larger_devices
from luthier.plan.reasons import gib
from luthier.plan.setting import HOST_DEVICES, Offload, Way
from luthier.plan.sizes import sizes_of
from luthier.plan.ways import sequence_sizes, way_of, why_refused, with_way
from luthier.recipe.names import takes_from_base
from luthier.recipe.objective_kind import pack_capacity, row_kind
from luthier.recipe.schema import DistributedSection, MethodSection, Recipe

if TYPE_CHECKING:
    from luthier.plan.request import Request
    from luthier.plan.result import Candidate

__all__ = ["Remedy", "faster", "remedies"]

SHORTEST = 256
MORE = 8
"""Times as many devices that are tried beyond one host."""
RECOMPUTE = dict.fromkeys(
    ("gradient_checkpointing", "gradient_checkpointing_layers", "gradient_checkpointing_attention"), "auto"
)
"""Keys of `train` that leave recompute to the plan."""
FASTER = 1.05
"""A gain below this is not worth a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change after which it fits."""

    change: str
    """As an override or option: `method.name=lora`, `--num-gpus 2`."""
    effect: str
    """What it then needs and reaches."""


def remedies(request: Request, fit: Callable[[Request], Candidate | None]) -> tuple[Remedy, ...]:
    """Every single change that helps, smallest first.

    Args:
        request: what does not fit.
        fit: the fastest setting of a request that fits, or None.
    """
    found = []
    for change, changed in _changes(request):
        candidate = fit(changed)
        if candidate is not None:
            effect = f"{gib(candidate.needed_bytes)} of {gib(changed.device.memory_bytes)}, "
            effect += f"{candidate.tokens_per_second:,.0f} tokens/s"
            if changed.num_gpus > request.num_gpus:
                effect += f" ({candidate.setting.way.words()})"
            if candidate.setting.offload != "none" and changed.device.type == "cuda":
                effect += f", with {gib(candidate.host.offloaded)} in host memory"
            found.append(Remedy(change=change, effect=effect))
    return tuple(found)


def _changes(request: Request) -> Iterator[tuple[str, Request]]:
    recipe = request.recipe
    train, model, method = recipe.train, recipe.model, recipe.method
    if request.recompute is not None:
        keys: dict[str, Any] = dict(RECOMPUTE)
        yield "train.gradient_checkpointing=auto", _with(request, "train", keys)
    elif train.keeps_attention:
        keys = {"gradient_checkpointing_attention": "auto"}
        yield "train.gradient_checkpointing_attention=auto", _with(request, "train", keys)
    if train.per_device_train_batch_size != "auto" or train.gradient_accumulation_steps != "auto":
        tokens = _step_tokens(request)
        keys = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": "auto", "tokens_per_step": tokens}
        yield f"train.tokens_per_step={tokens} instead of the two batch keys", _with(request, "train", keys)
    if model.dequantize_base is True:
        yield "model.dequantize_base=auto", _with(request, "model", {"dequantize_base": "auto"})
    yield from _spread(request)
    if train.optim in ("adamw_torch", "adamw_torch_fused") and not request.sizes.adapters:
        yield "train.optim=adamw_8bit", _with(request, "train", {"optim": "adamw_8bit"})
    yield from _shorter(request)
    if method.name in ("full", "freeze", "spectrum"):
        yield "method.name=lora", _with_method(request, "lora")
    if method.name in ("full", "freeze", "spectrum", "lora") and not takes_from_base(method.init_lora_weights):
        beside = "" if model.quantization in ("auto", "nf4") else " model.quantization=auto"
        yield f"method.name=qlora{beside}", _with_method(request, "qlora")
    for device in larger_devices(request.device.memory_bytes):
        yield f"--gpu {device.name}", replace(request, device=device, host_memory=None)
    count = request.num_gpus * 2
    most = max(HOST_DEVICES, MORE * request.num_gpus)
    while count <= most and request.device.type == "cuda":
        yield f"--num-gpus {count}", replace(request, num_gpus=count)
        count *= 2


def _spread(request: Request) -> Iterator[tuple[str, Request]]:
    """Other ways over the same devices, by what they cost: `auto`, offload, several devices a sequence. What `auto` has
    looked at already is not said again."""
    section = request.recipe.distributed
    if request.num_gpus == 1:
        offloaded = Way(offload="optimizer")
        refused = why_refused(request.recipe, offloaded) or request.sizes.adapters
        written = "offload" in section.model_fields_set and section.offload == "none"
        if request.device.type == "cuda" and written and not refused:
            yield "distributed.offload=optimizer", replace(request, recipe=with_way(request.recipe, offloaded))
        return
    if section.strategy != "auto":
        free = request.recipe.model_copy(update={"distributed": DistributedSection()})
        yield "distributed.strategy=auto", replace(request, recipe=free)
        return
    shards = way_of(request.recipe, "fsdp2")
    changes: list[tuple[str, Way]] = []
    if "offload" in section.model_fields_set:
        order: tuple[Offload, ...] = ("none", "optimizer", "all")
        more = order[order.index(section.offload) + 1 :]
        changes += [(f"distributed.offload={name}", replace(shards, offload=name)) for name in more]
    if "sequence_parallel_size" in section.model_fields_set:
        sizes = [size for size in sequence_sizes(request) if size > section.sequence_parallel_size]
        changes += [
            (f"distributed.sequence_parallel_size={size}", replace(shards, sequence_parallel=size)) for size in sizes
        ]
    for words, way in changes:
        if why_refused(request.recipe, way) is None:
            recipe = with_way(request.recipe, way)
            freed = recipe.distributed.model_copy(update={"strategy": "auto"})
            yield words, replace(request, recipe=recipe.model_copy(update={"distributed": freed}))


def faster(request: Request, chosen: Candidate, fit: Callable[[Request], Candidate | None]) -> Remedy | None:
    """What leaving the keys that the recipe fixes to the plan would give; None if that is no more than 5%."""
    train, changed, keys = request.recipe.train, request, []
    if request.recompute is not None:
        keys.append("train.gradient_checkpointing=auto")
        free: dict[str, Any] = dict(RECOMPUTE)
        changed = _with(changed, "train", free)
    if train.per_device_train_batch_size != "auto" or train.gradient_accumulation_steps != "auto":
        tokens = _step_tokens(request)
        keys.append(f"train.tokens_per_step={tokens} instead of the two batch keys")
        free = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": "auto", "tokens_per_step": tokens}
        changed = _with(changed, "train", free)
    if request.recipe.model.dequantize_base != "auto":
        keys.append("model.dequantize_base=auto")
        changed = _with(changed, "model", {"dequantize_base": "auto"})
    candidate = fit(changed) if keys else None
    if candidate is None or chosen.seconds_per_token < FASTER * candidate.seconds_per_token:
        return None
    effect = f"{candidate.tokens_per_second:,.0f} tokens/s, "
    effect += f"{gib(candidate.needed_bytes)} of {gib(request.device.memory_bytes)}"
    return Remedy(change=", ".join(keys), effect=effect)


def _shorter(request: Request) -> Iterator[tuple[str, Request]]:
    """Half of `data.max_length`, a quarter, ...: longer rows are then dropped or cut."""
    length = request.recipe.data.max_length // 2
    documents = request.documents
    while length >= SHORTEST:
        room = pack_capacity(row_kind(request.recipe.objective.name), length)
        shorter = replace(
            documents,
            longest_sequence=min(room, documents.longest_sequence),
            sequences=max(documents.sequences, -(-documents.tokens // room)),
        )
        changed = replace(_with(request, "data", {"max_length": length}), documents=shorter)
        yield f"data.max_length={length}", changed
        length //= 2


def _step_tokens(request: Request) -> int:
    _, split = next(request.splits())
    return max(1, round(split.sequences_per_step * request.documents.sequence_tokens))


def _with(request: Request, section: str, update: dict[str, Any]) -> Request:
    part = getattr(request.recipe, section).model_copy(update=update)
    recipe: Recipe = request.recipe.model_copy(update={section: part})
    return replace(request, recipe=recipe)


def _with_method(request: Request, name: str) -> Request:
    """The method with the defaults of its adapter, on a base stored as it wants."""
    old = request.recipe.method
    method = MethodSection(name=name, r=old.r, lora_alpha=old.lora_alpha, target_modules=old.target_modules)  # type: ignore[arg-type]
    changed = _with(request, "model", {"quantization": "auto", "dequantize_base": "auto"})
    recipe = changed.recipe.model_copy(update={"method": method})
    return replace(changed, recipe=recipe, sizes=sizes_of(request.sizes.shape, method))
