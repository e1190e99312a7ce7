"""Which ways to spread a model over devices a plan looks at, and in what order.

    first    `distributed` as it is written; with `strategy: auto` copies (ddp) and shards (fsdp2), and on several hosts
             shards within each of them (`dp_replicate_size`)
    then     only if nothing of the first fits, and only keys that the recipe does not have: fsdp2 with the optimizer
             (where weights themselves are trained) or everything offloaded; 2, 4, 8 devices of a host for each sequence
    last     both together

One device has the first, and the optimizer offloaded.

zero1, zero2 and zero3 are looked at when they are named. A way that the rules of recipes refuse (`recipe/rules.py`) is
left out, and its reason kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.plan.setting import Offload, Way
from luthier.recipe.parts import Parts
from luthier.recipe.positions import nowhere
from luthier.recipe.replicate_rules import possible_copies, require_copies
from luthier.recipe.rules import apply_rules
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.plan.request import Request

__all__ = ["sequence_sizes", "tiers", "way_of", "why_refused", "with_way"]


def way_of(recipe: Recipe, strategy: str) -> Way:
    """`distributed` of a recipe as a way, with this strategy."""
    section = recipe.distributed
    return Way(
        strategy=strategy, offload=section.offload,  # type: ignore[arg-type]
        sequence_parallel=section.sequence_parallel_size,
        dp_replicate=section.dp_replicate_size if strategy == "fsdp2" else 1,
    )  # fmt: skip


def with_way(recipe: Recipe, way: Way) -> Recipe:
    """The recipe with a way written into it."""
    written: dict[str, object] = {"strategy": way.strategy}
    if way.offload != recipe.distributed.offload:
        written["offload"] = way.offload
    if way.sequence_parallel != recipe.distributed.sequence_parallel_size:
        written["sequence_parallel_size"] = way.sequence_parallel
    if way.dp_replicate != recipe.distributed.dp_replicate_size:
        written["dp_replicate_size"] = way.dp_replicate
    return recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update=written)})


def why_refused(recipe: Recipe, way: Way) -> str | None:
    """What the rules of recipes have against a way that the recipe does not name; None: nothing."""
    before = _problems(recipe)
    after = _problems(with_way(recipe, way))
    return next((message for message in after if message not in before), None)


def _problems(recipe: Recipe) -> list[str]:
    """Of several processes, by their codes (docs/errors.md); data, which no rule of these reads rows of, stay out."""
    parts = Parts(
        model=recipe.model, data=recipe.data, method=recipe.method, objective=recipe.objective, train=recipe.train,
        distributed=recipe.distributed, export=recipe.export,
    )  # fmt: skip
    return [problem.message for problem in apply_rules(parts, nowhere) if problem.code.startswith("L")]


def sequence_sizes(request: Request) -> tuple[int, ...]:
    """Numbers of devices that could share a sequence: they divide the devices and the query heads, in one host."""
    heads, possible = request.sizes.shape.heads, [size for size in (2, 4, 8) if size <= request.host_devices]
    return tuple(size for size in possible if request.num_gpus % size == 0 and heads % size == 0)


def tiers(request: Request) -> Iterator[list[tuple[Way, str | None]]]:
    """Ways to look at together, with what speaks against each; a tier is needed where none before it has one that fits.

    Raises:
        RecipeError: L241: `distributed.offload` needs shards, and there are none; L250, L251:
            `distributed.sequence_parallel_size` does not go with the devices or the model; L260:
            `distributed.dp_replicate_size` does not.
    """
    recipe, section = request.recipe, request.recipe.distributed
    require_copies(section.dp_replicate_size, request.num_gpus)
    if request.num_gpus == 1:
        yield from _of_one_device(request)
        return
    if section.offload != "none" and section.strategy == "ddp":
        raise RecipeError(
            code="L241", message=f"`distributed.offload: {section.offload}` beside `distributed.strategy: ddp` is for "
            f"one device, and this plan is of {request.num_gpus}",
            hint="write fsdp2, or leave `distributed.strategy` out",
        )  # fmt: skip
    _check_sequences(request)
    if section.strategy != "auto":
        yield [(way_of(recipe, section.strategy), None)]
        return
    written = section.model_fields_set
    first = [way_of(recipe, "fsdp2")]
    hosts = request.num_gpus // request.host_devices
    if "dp_replicate_size" not in written and hosts > 1 and hosts in possible_copies(request.num_gpus):
        first = [replace(first[0], dp_replicate=hosts), *first]
    first += [way_of(recipe, "ddp")] if section.offload == "none" and section.dp_replicate_size == 1 else []
    yield [(way, why_refused(recipe, way)) for way in reversed(first)]
    offloads: tuple[Offload, ...] = ("all",) if request.sizes.adapters else ("optimizer", "all")
    offloads = () if "offload" in written else offloads
    sizes = () if "sequence_parallel_size" in written else sequence_sizes(request)
    shards = way_of(recipe, "fsdp2")
    more = [replace(shards, offload=off) for off in offloads]
    for size in sizes:
        alone = shards.offload == "none" and shards.dp_replicate == 1
        more += [Way(strategy="ddp", sequence_parallel=size)] if alone else []
        more += [replace(shards, sequence_parallel=size)]
    both = [replace(shards, offload="all", sequence_parallel=size) for size in sizes if offloads]
    for tier in (more, both):
        if tier:
            yield [(way, why_refused(recipe, way)) for way in tier]


def _of_one_device(request: Request) -> Iterator[list[tuple[Way, str | None]]]:
    """As it is written; then, where weights themselves are trained, with the optimizer in host memory."""
    section = request.recipe.distributed
    offloaded = Way(offload="optimizer")
    if section.offload == "optimizer":
        yield [(offloaded, None)]
        return
    if section.offload == "all":
        raise RecipeError(
            code="L241", message="`distributed.offload: all` needs a model in shards, and this plan is of one device",
            hint="offload optimizer where weights themselves are trained, or several devices",
        )  # fmt: skip
    yield [(Way(), None)]
    if "offload" not in section.model_fields_set and not request.sizes.adapters and request.device.type == "cuda":
        yield [(offloaded, why_refused(request.recipe, offloaded))]


def _check_sequences(request: Request) -> None:
    size, heads = request.recipe.distributed.sequence_parallel_size, request.sizes.shape.heads
    possible = ", ".join(str(number) for number in (1, *sequence_sizes(request)))
    if request.num_gpus % size:
        raise RecipeError(
            code="L250",
            message=f"`distributed.sequence_parallel_size: {size}` does not divide {request.num_gpus} devices",
            hint=f"possible here: {possible}",
        )
    if heads % size:
        raise RecipeError(
            code="L251",
            message=f"`distributed.sequence_parallel_size: {size}` does not divide the {heads} attention heads of this "
            "model",
            hint=f"possible here: {possible}",
        )
