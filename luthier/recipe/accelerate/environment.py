"""What `accelerate launch` exports, as the keys of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.recipe.accelerate.source import Source
from luthier.recipe.positions import KeyPath, Place

__all__ = ["exported_source"]

_NAMES: dict[str, KeyPath] = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision",),
    "ACCELERATE_USE_CPU": ("use_cpu",),
    "ACCELERATE_DEBUG_MODE": ("debug",),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("deepspeed_config", "deepspeed_config_file"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ("deepspeed_config", "deepspeed_moe_layer_cls_names"),
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": ("deepspeed_config", "zero3_init_flag"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("deepspeed_config", "gradient_accumulation_steps"),
    "ACCELERATE_GRADIENT_CLIPPING": ("deepspeed_config", "gradient_clipping"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("fsdp_config", "fsdp_transformer_layer_cls_to_wrap"),
}
_PREFIXES = (
    ("ACCELERATE_DEEPSPEED_", "deepspeed_config", ""),
    ("ACCELERATE_DYNAMO_", "dynamo_config", "dynamo_"),
    ("ACCELERATE_FP8_", "fp8_config", "fp8_"),
    ("FSDP_", "fsdp_config", "fsdp_"),
    ("PARALLELISM_CONFIG_", "parallelism_config", "parallelism_config_"),
    ("MEGATRON_LM_", "megatron_lm_config", "megatron_lm_"),
)
_KINDS = {
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}  # fmt: skip
_TRUE = ("true", "1", "yes", "on")


def exported_source(variables: Mapping[str, str], *, processes: int) -> Source | None:
    """What was exported, as a source; None without `accelerate launch`.

    Args:
        variables: as `runtime/env.py: launcher_variables` gives them.
        processes: of the run.
    """
    if not variables:
        return None
    chosen = [name for name in _KINDS if variables.get(name, "").lower() in _TRUE]
    values: dict[str, Any] = {"distributed_type": "MULTI_GPU" if processes > 1 else "NO"}
    written: dict[KeyPath, str] = {("distributed_type",): "WORLD_SIZE"}
    if chosen:
        values["distributed_type"] = _KINDS[chosen[0]]
        written["distributed_type",] = chosen[0]
    for name, value in sorted(variables.items()):
        path = _path(name)
        if path is None:
            continue
        written[path] = name
        if len(path) == 1:
            values[str(path[0])] = value
        else:
            values.setdefault(str(path[0]), {})[path[1]] = value
    return Source(
        title="`accelerate launch`", values=values, exported=True,
        place=lambda path: Place(file=f"environment: {written.get(path, 'variables of `accelerate launch`')}"),
        named=lambda path: written.get(path, ".".join(map(str, path))),
    )  # fmt: skip


def _path(name: str) -> KeyPath | None:
    if name in _NAMES:
        return _NAMES[name]
    for prefix, section, before in _PREFIXES:
        if name.startswith(prefix):
            return section, before + name.removeprefix(prefix).lower()
    return None
