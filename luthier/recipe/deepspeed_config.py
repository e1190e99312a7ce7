"""A DeepSpeed configuration that a user has (`distributed.deepspeed_config`), and the one that DeepSpeed gets.

    read_config(path)              the JSON, or what is wrong with the file
    taken_from_deepspeed(recipe)   the recipe with what the file fixes and the recipe leaves open
    deepspeed_settings(...)        what `deepspeed.initialize` gets: the file's values, `auto` filled in

`auto` is filled as transformers' Trainer does it: from the recipe, and bucket sizes from the hidden size. Optimizer
and schedule are the recipe's, so they are taken from the file into the recipe and not handed on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from luthier.recipe.deepspeed_keys import AGREED, NO_EFFECT, NO_EFFECT_IN_ZERO, PASSED, SHORT_IN_ZERO, STAGES
from luthier.recipe.paths import expand
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import RecipeError

__all__ = [
    "converted",
    "deepspeed_settings",
    "look_up",
    "read_config",
    "taken_from_deepspeed",
    "without_effect",
]

_OPTIMIZERS = {"adam": "adamw_torch_fused", "adamw": "adamw_torch_fused", "sgd": "sgd"}
_SCHEDULES = {"warmuplr": "constant_with_warmup", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}


def read_config(path: str) -> tuple[dict[str, Any], str | None]:
    """The JSON of a file, keys of ZeRO-3 in their long names, or (empty, what is wrong with it)."""
    try:
        value = json.loads(expand(path).read_text("utf-8"))
    except OSError as error:
        return {}, f"cannot be read: {error.strerror or error}"
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return {}, f"is no JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"is no JSON object but {type(value).__name__}"
    zero = value.get("zero_optimization")
    if isinstance(zero, dict):
        value["zero_optimization"] = {_long(key, zero): setting for key, setting in zero.items()}
    return value, None


def _long(key: str, zero: Mapping[str, Any]) -> str:
    """`max_live_parameters` is `stage3_max_live_parameters`; a file with both is left as it is, and refused."""
    long = f"stage3_{key}"
    return long if key in SHORT_IN_ZERO and long not in zero else key


def look_up(config: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def converted(config: Mapping[str, Any], key: str) -> Any:
    """What a value of the file is in the recipe; None where it says nothing or `auto`.

    Raises:
        ValueError: it is none of the values allowed, which the message names.
    """
    value = look_up(config, key)
    if value is None or value == "auto":
        return None
    if key == "zero_optimization.stage":
        return _one_of(value, STAGES)
    if key == "bf16.enabled":
        return _one_of(value, {True: "bfloat16", False: "float32"})
    if key.endswith(".device"):
        _one_of(value, {"none": "", "cpu": "", "nvme": ""})
        return _offload(config)
    if key in ("optimizer.type", "scheduler.type"):
        return _one_of(str(value).lower(), _OPTIMIZERS if key == "optimizer.type" else _SCHEDULES)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("a number of at least 0, or auto")
    if AGREED[key] in ("train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.warmup_steps"):
        if not isinstance(value, int) or (value < 1 and "warmup" not in key):
            raise ValueError("a whole number of at least 1, or auto")
        return value
    return float(value)


def _one_of(value: Any, allowed: Mapping[Any, str]) -> str:
    if isinstance(value, str | bool | int) and value in allowed and type(value) in {type(key) for key in allowed}:
        return allowed[value]
    raise ValueError(", ".join(map(json.dumps, allowed)))


def _offload(config: Mapping[str, Any]) -> str:
    """`distributed.offload` of the two sections together."""
    devices = [look_up(config, f"zero_optimization.{name}.device") for name in ("offload_param", "offload_optimizer")]
    param, optimizer = (device in ("cpu", "nvme") for device in devices)
    return "all" if param else "optimizer" if optimizer else "none"


def taken_from_deepspeed(recipe: Recipe) -> Recipe:
    """`recipe` with the values that its DeepSpeed configuration fixes where it leaves them open itself.

    What contradicts, or cannot be read, stays as it is: `zero_rules.py` reports it.
    """
    if recipe.distributed.deepspeed_config is None:
        return recipe
    config, _ = read_config(recipe.distributed.deepspeed_config)
    found: dict[str, Any] = {}
    for key, ours in AGREED.items():
        try:
            value = converted(config, key)
        except ValueError:
            continue
        section, name = ours.split(".")
        part = getattr(recipe, section)
        if value is not None and (name not in part.model_fields_set or getattr(part, name) == "auto"):
            found.setdefault(section, {})[name] = value
    parts = {section: getattr(recipe, section).model_copy(update=values) for section, values in found.items()}
    return recipe.model_copy(update=parts)


def without_effect(config: Mapping[str, Any]) -> list[str]:
    """Lines about the keys that are taken and do nothing."""
    zero = config.get("zero_optimization") or {}
    found = [f"`{key}`: {why}" for key, why in NO_EFFECT.items() if key in config]
    found += [f"`zero_optimization.{key}`: {why}" for key, why in NO_EFFECT_IN_ZERO.items() if key in zero]
    if look_up(config, "scheduler.type") and look_up(config, "scheduler.params.warmup_type") != "linear":
        found.append("`scheduler`: the warm-up is linear; DeepSpeed's is logarithmic where `warmup_type` is not set")
    devices = [look_up(config, f"zero_optimization.{name}.device") for name in ("offload_param", "offload_optimizer")]
    if devices[0] in ("cpu", "nvme") and devices[1] in (None, "none"):
        found.append("`offload_param` alone: `distributed.offload: all` has the optimizer's state in host memory, too")
    return found


def deepspeed_settings(recipe: Recipe, *, dtype: str, processes: int, hidden_size: int, pin: bool) -> dict[str, Any]:
    """The configuration that DeepSpeed gets, without `auto`.

    Args:
        recipe: Resolved, with one of DeepSpeed's as `distributed.strategy`.
        dtype: Of the weights, `bfloat16` or `float32`.
        processes: That train.
        hidden_size: Of the model; DeepSpeed's buckets are measured by it.
        pin: Host memory of what is offloaded is pinned, where the file does not say.

    Raises:
        RecipeError: the file cannot be read, or its `train_batch_size` is of another shape.
    """
    train, path = recipe.train, recipe.distributed.deepspeed_config
    config, wrong = ({}, None) if path is None else read_config(path)
    if wrong:
        raise RecipeError(code="L172", message=f"`distributed.deepspeed_config`: {path} {wrong}")
    settings: dict[str, Any] = {key: copy.deepcopy(value) for key, value in config.items() if key in PASSED}
    batch, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    assert isinstance(batch, int) and isinstance(accumulate, int), "the recipe is not resolved"
    whole = config.get("train_batch_size", "auto")
    if whole not in ("auto", batch * accumulate * processes):
        raise RecipeError(
            code="L171",
            message=f"{path}: `train_batch_size` is {whole}, and the recipe has {batch} x {accumulate} accumulated x "
            f"{processes} processes = {batch * accumulate * processes}",
            hint="write auto there",
        )  # fmt: skip
    settings.update({
        "train_micro_batch_size_per_gpu": batch, "gradient_accumulation_steps": accumulate,
        "gradient_clipping": train.max_grad_norm, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "bf16": {"enabled": dtype == "bfloat16"},
    })  # fmt: skip
    # Gradients are summed over processes and passes in fp32, as with the other strategies.
    if settings.get("communication_data_type", "auto") == "auto":
        settings["communication_data_type"] = "fp32"
    settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    settings["zero_optimization"] = _zero(settings.get("zero_optimization") or {}, recipe, hidden_size, pin)
    return settings


def _zero(given: dict[str, Any], recipe: Recipe, hidden_size: int, pin: bool) -> dict[str, Any]:
    stage = {name: number for number, name in STAGES.items()}[recipe.distributed.strategy]
    zero = {key: value for key, value in given.items() if key not in NO_EFFECT_IN_ZERO and value != "auto"}
    zero["stage"] = stage
    zero.setdefault("reduce_bucket_size", hidden_size * hidden_size)
    wanted = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
    for key in wanted[recipe.distributed.offload]:
        zero.setdefault(key, {"device": "cpu", "pin_memory": pin})
    if stage == 3:
        zero.setdefault("stage3_prefetch_bucket_size", int(0.9 * hidden_size * hidden_size))
        zero.setdefault("stage3_param_persistence_threshold", 10 * hidden_size)
        zero["memory_efficient_linear"] = False
    else:
        zero = {key: value for key, value in zero.items() if not key.startswith("stage3_") and key != "offload_param"}
    return zero
