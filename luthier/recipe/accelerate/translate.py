"""What a configuration of accelerate means in a recipe, key by key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.accelerate.parallel import read_parallelism
from luthier.recipe.accelerate.reading import Reading
from luthier.recipe.accelerate.sharding import read_fsdp
from luthier.recipe.accelerate.source import Source
from luthier.recipe.deepspeed_keys import STAGES
from luthier.recipe.paths import expand, missing_path
from luthier.recipe.schema import Recipe

__all__ = ["Processes", "read_source"]

_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED")
_OTHER_TYPES = (
    "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON", "MEGATRON_LM",
    "TP", "XLA",
)  # fmt: skip
_SHARDED = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}
_DS = "deepspeed_config"
_DEVICES = ("none", "cpu", "nvme")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """How many processes a configuration asks for, and where."""

    total: int | None = None
    """Over all machines."""
    machines: int | None = None
    machine_rank: int | None = None
    address: str | None = None
    port: int | None = None
    gpu_ids: str | None = None
    """None: all."""
    cpu: bool = False


def read_source(source: Source, recipe: Recipe, *, machines: int | None = None) -> tuple[Reading, Processes]:
    """All of a source: what it says on keys of `recipe`, on processes, and everything wrong with it.

    `machines`: of this run, for a source that does not say it (`accelerate launch` exports no number of them).
    """
    reading = Reading(source)
    kind = _kind(reading)
    _precision(reading, recipe)
    processes = _processes(reading, kind)
    if kind == "FSDP":
        read_fsdp(reading, machines=processes.machines or machines)
    elif kind == "DEEPSPEED":
        _deepspeed(reading, recipe)
    read_parallelism(reading, kind=kind, total=processes.total)
    for key in _SHARDED.values():
        if _SHARDED.get(kind or "") != key:
            for name in source.values.get(key) or {}:
                reading.note(key, name, why=f"without effect: distributed_type is {kind}", always=True)
    reading.finish()
    return reading, processes


def _kind(reading: Reading) -> str | None:
    """`distributed_type`; None where it is refused."""
    place = reading.raw("compute_environment")
    if place not in (None, "LOCAL_MACHINE"):
        reading.refuse("compute_environment", why="only this machine", hint="write LOCAL_MACHINE")
    elif place is not None:
        reading.quiet.append("compute_environment")
    if reading.raw("distributed_type") is None:
        message = "this is no configuration of accelerate: it has no `distributed_type`"
        reading.problems.append(
            reading.source.place(()).problem("L180", message, hint="one of " + ", ".join(_TYPES[2:]))
        )
        return None
    kind = reading.word("distributed_type", allowed=(*_TYPES, *_OTHER_TYPES))
    if kind in _OTHER_TYPES:
        reading.refuse(
            "distributed_type", why="Luthier trains on CUDA devices and CPUs, with copies or shards",
            hint="MULTI_GPU, FSDP or DEEPSPEED",
        )  # fmt: skip
        return None
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU") and not reading.source.exported:
        reading.note("distributed_type", why="`distributed.strategy` says how the model is divided", always=True)
    return kind


def _precision(reading: Reading, recipe: Recipe) -> None:
    old = reading.flag("fp16")
    precision = reading.word("mixed_precision", allowed=("no", "fp16", "bf16", "fp8"))
    key = "mixed_precision" if precision is not None else "fp16"
    precision = precision or ("fp16" if old else None)
    if precision == "bf16":
        reading.take("model.dtype", "bfloat16", key, why="with fp32 masters of trained weights")
    elif precision == "fp16":
        if recipe.model.dtype == "auto":
            reading.refuse(key, why="losses are not scaled for float16", hint="write bf16, or `model.dtype: float16`")
        else:
            reading.take("model.dtype", "float16", key)
    elif precision == "fp8":
        reading.refuse(key, why="products in fp8 are not trained", hint="write bf16; `model.quantization: fp8`")
    elif precision is not None or old is not None:
        reading.note(key, why="without effect: `model.dtype` says what is computed in")


def _processes(reading: Reading, kind: str | None) -> Processes:
    total, machines = reading.whole("num_processes"), reading.whole("num_machines")
    if total == -1:  # accelerate's "say it on the command line"
        total = None
    cpu = bool(reading.flag("use_cpu")) or kind == "MULTI_CPU"
    for key, value in (("num_processes", total), ("num_machines", machines)):
        if value is not None and value < 1:
            reading.wrong((key,), "at least 1")
    if total and machines and total % machines:
        reading.contradicts(
            "num_processes", why=f"cannot be divided by num_machines: {machines}", hint="the same number on each"
        )
    rank, port = reading.whole("machine_rank"), reading.whole("main_process_port")
    ids = reading.raw("gpu_ids")
    address = reading.raw("main_process_ip")
    if not reading.source.exported:
        written = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids")
        reading.quiet += [key for key in (*written, "use_cpu") if key in reading.source.values]
    return Processes(
        total=total if total is None or total > 0 else None,
        machines=machines if machines is None or machines > 0 else None,
        machine_rank=rank, port=port, address=None if address is None else str(address),
        gpu_ids=None if ids is None or str(ids).lower() == "all" else str(ids).replace(" ", ""), cpu=cpu,
    )  # fmt: skip


def _deepspeed(reading: Reading, recipe: Recipe) -> None:
    file = reading.raw(_DS, "deepspeed_config_file")
    if file is not None:
        _deepspeed_file(reading, str(file))
        return
    stage = reading.whole(_DS, "zero_stage")
    where = (_DS, "zero_stage") if stage is not None else ("distributed_type",)
    stage = 2 if stage is None else stage
    _stage(reading, stage, where, why="accelerate's default stage 2" if len(where) == 1 else "")
    optimizer = reading.word(_DS, "offload_optimizer_device", allowed=_DEVICES)
    weights = reading.word(_DS, "offload_param_device", allowed=_DEVICES)
    for name, device in (("offload_optimizer_device", optimizer), ("offload_param_device", weights)):
        if device == "nvme":
            reading.refuse(_DS, name, why="nothing goes to NVMe", hint="write cpu")
    if weights == "cpu" and stage != 3:
        reading.contradicts(_DS, "offload_param_device", why=f"needs zero_stage: 3, not {stage}", hint="write none")
    elif weights == "cpu":
        reading.take("distributed.offload", "all", _DS, "offload_param_device", why="optimizer state with the weights")
    elif optimizer == "cpu":
        reading.take("distributed.offload", "optimizer", _DS, "offload_optimizer_device")
    for name, device in (("offload_optimizer_device", optimizer), ("offload_param_device", weights)):
        if device == "none":
            reading.note(_DS, name, why="agrees")
    clip = reading.number(_DS, "gradient_clipping")
    if clip is not None:
        reading.take("train.max_grad_norm", clip, _DS, "gradient_clipping")
    _accumulation(reading, recipe)


def _accumulation(reading: Reading, recipe: Recipe) -> None:
    """`accelerate config` writes 1 unasked, so 1 contradicts nothing; a recipe may count a step in tokens or rows."""
    if reading.raw(_DS, "gradient_accumulation_steps") in (None, "auto"):
        return
    path = (_DS, "gradient_accumulation_steps")
    count = reading.whole(*path)
    train = recipe.train
    if train.tokens_per_step != "auto" or train.rows_per_step is not None:
        decides = "tokens_per_step" if train.tokens_per_step != "auto" else "rows_per_step"
        reading.note(*path, why=f"without effect: `train.{decides}` decides", always=True)
    elif count == 1:
        why = f"without effect: `train.gradient_accumulation_steps: {train.gradient_accumulation_steps}` decides"
        reading.note(*path, why=why, always=True)
    elif count is not None and count < 1:
        reading.wrong(path, "at least 1")
    elif count is not None:
        reading.take("train.gradient_accumulation_steps", count, *path)


def _deepspeed_file(reading: Reading, file: str) -> None:
    path = (_DS, "deepspeed_config_file")
    beside = ("zero_stage", "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device",
              "offload_param_device", "zero3_save_16bit_model")  # fmt: skip
    for name in beside:
        if reading.raw(_DS, name) not in (None, "none", "auto"):
            reading.contradicts(
                _DS, name, why=f"stands beside `deepspeed_config_file: {file}`, which says it", hint="remove one"
            )
    missing = missing_path(file)
    if missing is not None:
        reading.problems.append(reading.source.place(path).problem("L180", missing[0], hint=missing[1]))
        return
    try:
        value: Any = json.loads(Path(expand(file)).read_text("utf-8"))
        stage = int(value.get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        message = f"{file} is no configuration of DeepSpeed: {error}"
        reading.problems.append(reading.source.place(path).problem("L180", message))
        return
    _stage(reading, stage, path, why=f"its zero_optimization.stage is {stage}")
    if stage in STAGES:
        reading.take("distributed.deepspeed_config", file, *path)


def _stage(reading: Reading, stage: int, path: tuple[str, ...], *, why: str = "") -> None:
    if stage in STAGES:
        reading.take("distributed.strategy", STAGES[stage], *path, why=why)
    elif stage == 0:
        reading.take("distributed.strategy", "ddp", *path, why=why or "nothing is divided")
    else:
        reading.wrong(path, "0, 1, 2 or 3")
