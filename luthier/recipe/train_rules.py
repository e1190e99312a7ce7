"""Rules of optimizer, schedule, rates of single weights, and how adapters start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.recipe.names import takes_from_base
from luthier.recipe.nearest import near
from luthier.recipe.optimizers import OPTIMIZERS
from luthier.recipe.positions import Locate
from luthier.recipe.schedules import FEEDBACK, REQUIRED, SCHEDULES
from luthier.recipe.schema import MethodSection, ModelSection, TrainSection
from luthier.runtime.errors import Problem

__all__ = ["feedback_rules", "rate_rules", "setting_rules", "start_rules", "step_rules"]

_WORDS = {"number": "a number", "whole": "a whole number >= 0", "flag": "true or false"}
_ADAPTERS = ("lora", "qlora")


def setting_rules(train: TrainSection, locate: Locate) -> Iterator[Problem]:
    """`optim_args` and `lr_scheduler_kwargs` against what the named optimizer and schedule take."""
    known = OPTIMIZERS[train.optim].args
    yield from _settings(train.optim_args, known, "train.optim_args", f"optim {train.optim}", locate)
    name = train.lr_scheduler_type
    prefix, given = "train.lr_scheduler_kwargs", train.lr_scheduler_kwargs
    yield from _settings(given, SCHEDULES[name], prefix, f"lr_scheduler_type {name}", locate)
    if name in REQUIRED:
        keys, why = REQUIRED[name]
        found = [key for key in keys if key in given]
        if not found:
            message = f"lr_scheduler_type {name} needs `{prefix}.{keys[-1]}`: {why}"
            yield locate("train.lr_scheduler_type").problem("C110", message)
        elif len(found) > 1:
            message = f"`{prefix}` has {' and '.join(found)}, which exclude each other"
            yield locate(f"{prefix}.{found[1]}", on="key").problem("C110", message, hint="keep one of them")
    if train.optim == "sgd" and train.optim_args.get("nesterov") and not train.optim_args.get("momentum"):
        message = "`train.optim_args.nesterov` needs momentum"
        yield locate("train.optim_args.nesterov").problem("C110", message, hint="for instance momentum: 0.9")


def _settings(
    given: Mapping[str, Any], known: Mapping[str, Any], prefix: str, owner: str, locate: Locate
) -> Iterator[Problem]:
    for key, value in given.items():
        if key not in known:
            message = f"`{prefix}.{key}` would have no effect: {owner} takes " + (", ".join(known) or "no settings")
            close = near(key, list(known))
            hint = f'did you mean "{close[0]}"?' if close else "remove it"
            yield locate(f"{prefix}.{key}", on="key").problem("C111", message, hint=hint)
        elif not _is(value, known[key]):
            kind = known[key]
            words = _WORDS[kind] if isinstance(kind, str) else "one of " + ", ".join(kind)
            yield locate(f"{prefix}.{key}").problem("C103", f"`{prefix}.{key}` must be {words}; got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return value in kind
    if kind == "flag":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) and value >= 0 if kind == "whole" else isinstance(value, int | float) and value >= 0


def step_rules(train: TrainSection, locate: Locate) -> Iterator[Problem]:
    """How much goes into a step is said once: in tokens, in rows, or by the two batch keys."""
    batch_keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = [key for key in batch_keys if getattr(train, key) != "auto"]
    for key, said in (
        ("tokens_per_step", train.tokens_per_step != "auto"),
        ("rows_per_step", bool(train.rows_per_step)),
    ):
        for other in given if said else ():
            message = f"`train.{key}` and `train.{other}` exclude each other"
            hint = f"keep {key}, or the two batch keys"
            yield locate(f"train.{other}", on="key").problem("C110", message, hint=hint)
    if train.tokens_per_step != "auto" and train.rows_per_step is not None:
        message = "`train.tokens_per_step` and `train.rows_per_step` exclude each other"
        yield locate("train.rows_per_step", on="key").problem("C110", message, hint="keep one of them")


def rate_rules(
    train: TrainSection, method: MethodSection | None, model: ModelSection | None, locate: Locate
) -> Iterator[Problem]:
    """Rates of weights that are not trained."""
    if method is None:
        return
    unused: dict[str, str] = {}
    if method.name not in _ADAPTERS:
        reason = f"method {method.name} has no adapters"
        unused |= dict.fromkeys(("loraplus_lr_ratio", "loraplus_lr_embedding"), reason)
    elif not method.modules_to_save and method.init_from is None and model is not None and not model.new_tokens:
        unused["embedding_learning_rate"] = "embeddings and head are frozen; method.modules_to_save trains them"
    for key, reason in unused.items():
        if key in train.model_fields_set and getattr(train, key) is not None:
            message = f"`train.{key}` would have no effect: {reason}"
            yield locate(f"train.{key}", on="key").problem("C111", message, hint="remove it")


def feedback_rules(train: TrainSection, locate: Locate, *, validates: bool) -> Iterator[Problem]:
    """A rate that follows the validation loss needs one."""
    if train.lr_scheduler_type not in FEEDBACK or (validates and train.eval_steps is not None):
        return
    lacking = "`train.eval_steps` is null" if validates else "there is no validation data"
    message = f"lr_scheduler_type {train.lr_scheduler_type} follows the validation loss, but {lacking}"
    hint = "remove eval_steps: null" if validates else "add data: {validation: {fraction: 0.05}}"
    yield locate("train.lr_scheduler_type").problem("C110", message, hint=hint)


def start_rules(method: MethodSection, model: ModelSection | None, locate: Locate) -> Iterator[Problem]:
    """Starts that the base or the rank does not allow."""
    start, key = method.init_lora_weights, "method.init_lora_weights"
    if start == "orthogonal" and method.r % 2:
        message = f"init_lora_weights orthogonal splits the rank in two halves, but `method.r` is {method.r}"
        yield locate("method.r").problem("C110", message, hint=f"write {method.r + 1}")
    if not takes_from_base(start):
        return
    packed = model is not None and model.quantization == "nf4"
    if method.name == "qlora" or packed:
        message = f"init_lora_weights {start} takes the adapter out of the base weights, which are in 4 bits here"
        hint = "method: {name: lora} without nf4, or another start"
        yield locate(key).problem("C110", message, hint=hint)
