"""Sizes of accelerate's parallelism_config."""

from __future__ import annotations

import math

from luthier.recipe.accelerate.reading import Reading

__all__ = ["read_parallelism"]

_PARALLEL, _PREFIX = "parallelism_config", "parallelism_config_"
_REFUSED = {
    "tp_size": "tensor parallelism is not built",
    "cp_size": "ring attention is not built",
}


def read_parallelism(reading: Reading, *, kind: str | None, total: int | None) -> None:
    """`sp_size` and copies are taken; what is not built is refused; all sizes together are the number of processes."""
    sizes: dict[str, int] = {}
    for name in ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size"):
        size = reading.whole(_PARALLEL, _PREFIX + name)
        if size is not None and size < 1:
            reading.wrong((_PARALLEL, _PREFIX + name), "at least 1")
            return
        if size is not None:
            sizes[name] = size
    for name, why in _REFUSED.items():
        if sizes.get(name, 1) > 1:
            hint = "sp_size shares sequences" if name == "cp_size" else "shards: FSDP"
            reading.refuse(_PARALLEL, _PREFIX + name, why=why, hint=hint)
    shards = sizes.get("dp_shard_size", 1)
    _copies(reading, sizes.get("dp_replicate_size", 1), shards=shards, kind=kind)
    if shards > 1 and kind not in ("FSDP", "DEEPSPEED"):
        reading.contradicts(_PARALLEL, _PREFIX + "dp_shard_size", why="needs distributed_type: FSDP", hint="write FSDP")
    if sizes.get("sp_size", 1) > 1:
        reading.take("distributed.sequence_parallel_size", sizes["sp_size"], _PARALLEL, _PREFIX + "sp_size")
    product = math.prod(sizes.values())
    if total is not None and product > 1 and product != total:
        name = next(name for name, size in sizes.items() if size > 1)
        reading.contradicts(
            _PARALLEL, _PREFIX + name,
            why=f"with the other sizes makes {product} processes, and num_processes is {total}", hint="make them equal",
        )  # fmt: skip
    for name, size in sizes.items():
        if size == 1:
            reading.quiet.append(reading.source.named((_PARALLEL, _PREFIX + name)))
        elif name == "dp_shard_size":
            reading.note(_PARALLEL, _PREFIX + name, why="agrees")


def _copies(reading: Reading, copies: int, *, shards: int, kind: str | None) -> None:
    """`dp_replicate_size`: copies of a model in `dp_shard_size` shards each."""
    if copies == 1:
        return
    path = (_PARALLEL, _PREFIX + "dp_replicate_size")
    if kind == "DEEPSPEED":
        reading.refuse(*path, why="DeepSpeed divides over all processes", hint="1, or distributed_type: FSDP")
    elif kind != "FSDP":
        reading.contradicts(*path, why="needs distributed_type: FSDP", hint="write FSDP; MULTI_GPU copies without it")
    elif shards == 1:
        why = "beside dp_shard_size: 1 leaves no shards, which accelerate refuses, too"
        reading.contradicts(*path, why=why, hint="dp_shard_size, or distributed_type: MULTI_GPU for copies alone")
    else:
        reading.take("distributed.dp_replicate_size", copies, *path, why=f"copies in {shards} shards each")
