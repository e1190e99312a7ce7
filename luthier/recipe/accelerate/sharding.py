"""FSDP of accelerate, version 1 and 2, as torch's `fully_shard`."""

from __future__ import annotations

from luthier.recipe.accelerate.reading import Reading

__all__ = ["read_fsdp"]

_FSDP = "fsdp_config"
_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
"""In accelerate's order: old files have their number, from 1."""


def read_fsdp(reading: Reading, *, machines: int | None) -> None:
    """Strategy, copies, whether layers are kept whole, offload and recompute. `machines`: None if nothing says it."""
    version = reading.whole(_FSDP, "fsdp_version")
    for name in ("fsdp_sharding_strategy", "fsdp_reshard_after_forward"):
        reading.raw(_FSDP, name)  # of both versions
    if version not in (None, 1, 2):
        reading.wrong((_FSDP, "fsdp_version"), "1 or 2")
    if version == 2:
        _version_2(reading)
    elif version in (None, 1):
        _version_1(reading, machines)
    offload = reading.flag(_FSDP, "fsdp_offload_params")
    if offload:
        why = "shards of weights, gradients and optimizer state"
        reading.take("distributed.offload", "all", _FSDP, "fsdp_offload_params", why=why)
    elif offload is False:
        reading.note(_FSDP, "fsdp_offload_params", why="agrees")
    recompute = reading.flag(_FSDP, "fsdp_activation_checkpointing")
    if recompute:
        reading.take("train.gradient_checkpointing", True, _FSDP, "fsdp_activation_checkpointing")
    elif recompute is False:
        why = "without effect: `train.gradient_checkpointing` decides"
        reading.note(_FSDP, "fsdp_activation_checkpointing", why=why)


def _version_2(reading: Reading) -> None:
    reading.take("distributed.strategy", "fsdp2", _FSDP, "fsdp_version")
    strategy = reading.raw(_FSDP, "fsdp_sharding_strategy")
    if strategy in ("FULL_SHARD", 1):
        reading.quiet.append(reading.source.named((_FSDP, "fsdp_sharding_strategy")))
    elif strategy is not None:
        why = "without effect: FSDP 2 reads fsdp_reshard_after_forward"
        reading.note(_FSDP, "fsdp_sharding_strategy", why=why, always=True)
    _keep(reading, reading.flag(_FSDP, "fsdp_reshard_after_forward"), _FSDP, "fsdp_reshard_after_forward")


def _version_1(reading: Reading, machines: int | None) -> None:
    """The strategy by its old key, or by the key of version 2, where `accelerate config` writes it now."""
    found = {}
    for name in ("fsdp_sharding_strategy", "fsdp_reshard_after_forward"):
        value = reading.raw(_FSDP, name)
        if name == "fsdp_reshard_after_forward" and str(value).lower() in ("true", "false", "none"):
            if value is not None and not reading.source.exported:
                reading.contradicts(
                    _FSDP, name, why="belongs to FSDP 2, and `fsdp_version` is not 2",
                    hint="write fsdp_version: 2, or fsdp_sharding_strategy",
                )  # fmt: skip
            continue
        if value is not None:
            found[name] = _strategy(reading, name)
    named = {name: value for name, value in found.items() if value is not None}
    if reading.source.exported and len(set(named.values())) > 1:
        # FULL_SHARD is exported unasked.
        named = {name: value for name, value in named.items() if value != "FULL_SHARD"}
    if len(set(named.values())) > 1:
        reading.contradicts(
            _FSDP, "fsdp_reshard_after_forward",
            why=f"beside `{reading.name(_FSDP, 'fsdp_sharding_strategy')}`", hint="keep one of them",
        )  # fmt: skip
        return
    if len(named) < len(found) and not named:
        return  # a wrong value, told
    name, strategy = next(iter(named.items()), ("", "FULL_SHARD"))
    where = (_FSDP, name) if name else ("distributed_type",)
    if strategy == "NO_SHARD":
        reading.take("distributed.strategy", "ddp", *where, why="a copy of the model on each device")
    elif strategy.startswith("HYBRID"):
        _hybrid(reading, strategy, machines, where)
    else:
        reading.take("distributed.strategy", "fsdp2", *where, why="FSDP 1 shards as `fully_shard` does")
        _keep(reading, strategy == "FULL_SHARD", *where)


def _hybrid(reading: Reading, strategy: str, machines: int | None, where: tuple[str, ...]) -> None:
    """Shards within a machine, copies between machines; sizes in parallelism_config go before (`parallel.py`)."""
    written = (reading.whole("parallelism_config", "parallelism_config_dp_replicate_size") or 1) > 1
    if machines is None and not written:
        why = "makes a copy of the shards on each machine, and `num_machines` is not there"
        reading.contradicts(*where, why=why, hint="write num_machines")
        return
    plain = "FULL_SHARD" if strategy == "HYBRID_SHARD" else "SHARD_GRAD_OP"
    alone = machines == 1 and not written
    why = f"on one machine that is {plain}" if alone else "shards within a machine, copies between machines"
    reading.take("distributed.strategy", "fsdp2", *where, why=why)
    if machines is not None and machines > 1 and not written:
        reading.take("distributed.dp_replicate_size", machines, *where, why=f"a copy on each of {machines} machines")
    _keep(reading, strategy == "HYBRID_SHARD", *where)


def _strategy(reading: Reading, name: str) -> str | None:
    value = reading.raw(_FSDP, name)
    if str(value).isdigit() and 1 <= int(value) <= len(_STRATEGIES):
        return _STRATEGIES[int(value) - 1]
    found = reading.word(_FSDP, name, allowed=(*_STRATEGIES, "NO_RESHARD"))
    return "NO_SHARD" if found == "NO_RESHARD" else found


def _keep(reading: Reading, reshard: bool | None, *path: str) -> None:
    """True is exported unasked, so only a file says it."""
    if reshard is False:
        reading.take("distributed.reshard_after_forward", False, *path, why="layers stay whole between the passes")
    elif reshard and path[0] == _FSDP and not reading.source.exported:
        reading.take("distributed.reshard_after_forward", True, *path)
