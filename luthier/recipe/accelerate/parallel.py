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


def read_parallelism(reading: Reading, *, sharded: bool, total: int | None) -> None:
    """`sp_size` is taken; what is not built is refused; all sizes together are the number of processes."""
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
    copies, shards = sizes.get("dp_replicate_size", 1), sizes.get("dp_shard_size", 1)
    if copies > 1:
        reading.refuse(
            _PARALLEL, _PREFIX + "dp_replicate_size", why="copies of shards (hybrid sharding) are not built",
            hint="1, with dp_shard_size for all devices; for copies alone distributed_type: MULTI_GPU",
        )  # fmt: skip
    if shards > 1 and not sharded:
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
