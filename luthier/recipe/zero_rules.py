"""What DeepSpeed's strategies cannot be combined with, and where a DeepSpeed configuration contradicts the recipe."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from luthier.recipe.deepspeed_config import converted, look_up, read_config
from luthier.recipe.deepspeed_keys import (
    AGREED,
    NO_EFFECT,
    NO_EFFECT_IN_ZERO,
    PASSED,
    PASSED_IN_ZERO,
    UNTRIED,
    UNTRIED_IN_ZERO,
    ZERO,
)
from luthier.recipe.packed_rules import why_not_packed
from luthier.recipe.positions import Locate
from luthier.recipe.schema import DistributedSection, MethodSection, ModelSection, ObjectiveSection, TrainSection
from luthier.runtime.errors import Problem

__all__ = ["ZERO_OPTIMIZERS", "known_in_zero", "why_not_zero", "zero_rules"]

ZERO_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Values of `train.optim` that work number by number: DeepSpeed lays all trained weights end to end and cuts."""
_SECTIONS = frozenset(["bf16", "fp16", "optimizer", "scheduler", "train_batch_size", *PASSED, *NO_EFFECT, *UNTRIED])
_DEFAULT_ON = frozenset(["compute_grad_norm", "managed_gradient_accumulation"])
_TOP = _SECTIONS | {key for key in AGREED if "." not in key}
_IN_ZERO = PASSED_IN_ZERO | set(NO_EFFECT_IN_ZERO) | set(UNTRIED_IN_ZERO)


def known_in_zero() -> frozenset[str]:
    """Keys of `zero_optimization` that are decided about."""
    return frozenset(_IN_ZERO)


def why_not_zero(
    strategy: str, model: ModelSection, method: MethodSection, objective: ObjectiveSection, train: TrainSection
) -> Iterator[tuple[str, str]]:
    """(key, reason) of everything in a recipe that a strategy of DeepSpeed's cannot be combined with."""
    if train.optim not in ZERO_OPTIMIZERS:
        yield "train.optim", f"{train.optim} needs whole matrices; partitions take {', '.join(ZERO_OPTIMIZERS)}"
    for key, reason in why_not_packed(model, method, objective):
        if strategy == "zero3" or key == "method.use_dora":  # below ZeRO-3 an fp8 base keeps its 16-bit matrices
            yield key, reason


def zero_rules(
    section: DistributedSection, model: ModelSection, method: MethodSection, objective: ObjectiveSection,
    train: TrainSection, locate: Locate,
) -> Iterator[Problem]:  # fmt: skip
    """Refused combinations, and contradictions between recipe and DeepSpeed configuration, by name."""
    if section.strategy in ZERO:
        for key, reason in why_not_zero(section.strategy, model, method, objective, train):
            message = f"`distributed.strategy: {section.strategy}` beside `{key}`: {reason}"
            yield locate("distributed.strategy").problem(
                "L175", message, hint="write fsdp2 or auto, or change that key"
            )
        if section.strategy != "zero3" and section.offload == "all":
            message = f"`distributed.offload: all` beside `distributed.strategy: {section.strategy}`: weights are whole"
            yield locate("distributed.offload").problem("L175", message, hint="write optimizer, or zero3")
        if not section.reshard_after_forward:
            key = "distributed.reshard_after_forward"
            message = f"`{key}` would have no effect: `distributed.strategy` is {section.strategy}"
            yield locate(key, on="key").problem("C111", message, hint="remove it")
    if section.deepspeed_config is None:
        return
    config, wrong = read_config(section.deepspeed_config)
    place = locate("distributed.deepspeed_config")
    if wrong:
        yield place.problem("L172", f"`distributed.deepspeed_config`: {section.deepspeed_config} {wrong}")
        return
    if model.quantization == "fp8" and look_up(config, "zero_optimization.offload_param.device") == "nvme":
        text = "`offload_param.device` is nvme beside `model.quantization: fp8`: the fit of its rounding writes into "
        yield place.problem(
            "L175", f"{section.deepspeed_config}: {text}partitions, which are files there", hint="write cpu or none"
        )  # fmt: skip
    parts = {"distributed": section, "model": model, "train": train}
    for code, text, hint in [*_unknown(config), *_untried(config), *_contradictions(config, parts)]:
        yield place.problem(code, f"{section.deepspeed_config}: {text}", hint=hint)


_Found = tuple[str, str, str | None]


def _unknown(config: Mapping[str, Any]) -> Iterator[_Found]:
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield "L173", f"`zero_optimization` is {json.dumps(zero)}, not an object", None
        zero = {}
    for prefix, keys, known in (("", config, _TOP), ("zero_optimization.", zero, _IN_ZERO)):
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f"did you mean `{prefix}{near[0]}`?" if near else "DeepSpeed would pass over it; remove it"
                yield "L173", f"`{prefix}{key}` is no key of DeepSpeed 0.19", hint
    for name in ("bf16", "fp16", "optimizer", "scheduler"):
        if name in config and not isinstance(config[name], dict):
            yield "L173", f"`{name}` is {json.dumps(config[name])}, not an object", None


def _untried(config: Mapping[str, Any]) -> Iterator[_Found]:
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    for prefix, values, table in (("", config, UNTRIED), ("zero_optimization.", zero, UNTRIED_IN_ZERO)):
        for key, reason in table.items():
            if key in values and _is_on(values[key]) != (key in _DEFAULT_ON):
                got = json.dumps(values[key])
                yield "L174", f"`{prefix}{key}` is {got if len(got) < 60 else 'on'}: {reason}", "turn it off there"
    if look_up(config, "fp16.enabled") is True:
        text = "`fp16.enabled` is true, allowed: false, auto: small gradients would become zero"
        yield "L174", text, "use bf16"
    if look_up(config, "optimizer.params.adam_w_mode") is False:
        text = "`optimizer.params.adam_w_mode` is false, allowed: true: weight decay is AdamW's"
        yield "L174", text, "remove it"
    if look_up(config, "data_types.grad_accum_dtype") not in (None, "fp32", "auto"):
        got = json.dumps(look_up(config, "data_types.grad_accum_dtype"))
        yield "L174", f"`data_types.grad_accum_dtype` is {got}, allowed: fp32: passes are summed in fp32", None
    if look_up(config, "scheduler.params.warmup_type") not in (None, "linear", "auto"):
        got = json.dumps(look_up(config, "scheduler.params.warmup_type"))
        yield "L174", f"`scheduler.params.warmup_type` is {got}, allowed: linear: warm-ups are linear", None


def _is_on(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("enabled", bool(value)))
    return value not in (False, None, 0, 1, "auto", []) or value is True


def _contradictions(config: Mapping[str, Any], parts: Mapping[str, BaseModel]) -> Iterator[_Found]:
    for key, ours in AGREED.items():
        section, name = ours.split(".")
        got = look_up(config, key)
        try:
            value = converted(config, key)
        except ValueError as allowed:
            plain = "stage 0 shards nothing: `distributed.strategy: ddp`, without the file"
            hint = plain if key == "zero_optimization.stage" and got == 0 else None
            yield "L171", f"`{key}` is {json.dumps(got)}, allowed: {allowed}", hint
            continue
        mine = getattr(parts[section], name)
        if value is None or mine in ("auto", value) or name not in parts[section].model_fields_set:
            continue
        if ours == "train.optim" and {mine, value} == {"adamw_torch", "adamw_torch_fused"}:
            continue
        hint = "write auto there, or the same in both"
        yield "L171", f"`{key}` is {json.dumps(got)}, and the recipe has `{ours}: {mine}`", hint
    strategy = vars(parts["distributed"])["strategy"]
    if strategy not in ZERO and look_up(config, "zero_optimization.stage") in (None, "auto"):
        text = f"it names no `zero_optimization.stage`, and `distributed.strategy` is {strategy}"
        yield "L178", text, "write zero1, zero2 or zero3 in the recipe"
