"""Replace every `auto` by a value, and say why.

    learning rate   `recipe/rates.py`; over preferences from a lower start (`recipe/objective.py`)
    batch           `recipe/steps.py`
    online RL       `recipe/online.py`
    dtype           bfloat16 where the device multiplies it natively, else float32

Nothing here looks at a device, a model or data: what is known of them is in `Facts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from luthier.recipe.emit import dump_yaml
from luthier.recipe.facts import Decision, Facts
from luthier.recipe.objective import default_values
from luthier.recipe.online import choose_completions, online_rate, online_steps
from luthier.recipe.rates import found_line, multiplied, rule_rate
from luthier.recipe.schema import Recipe, TrainSection
from luthier.recipe.steps import Batching, choose_batching, step_target, total_steps
from luthier.recipe.thumb import memory_estimate
from luthier.recipe.to_dict import recipe_to_dict

__all__ = ["Decision", "Derived", "Facts", "Resolved", "recipe_to_dict", "resolve", "resolved_yaml", "total_steps"]

_GENERATION_BATCH = {"cpu": 64, "cuda": 256, "mps": 64}
_EVENTS_PER_RUN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """One value that the recipe left open."""

    key: str
    """Dotted, `train.learning_rate`."""
    value: Any
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A recipe without `auto`, and the reason of each value that replaced one."""

    recipe: Recipe
    derived: tuple[Derived, ...]


class _Values:
    """Collects derived values; reads a key as it is after what was derived so far."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.derived: list[Derived] = []

    def get(self, key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(self.recipe, section), name)

    def fill(self, key: str, value: Any, reason: str) -> None:
        """Set `key` if it is `auto`."""
        if self.get(key) == "auto":
            self._set(key, value, reason)

    def choose(self, key: str, value: Any, reasons: Mapping[str, str]) -> None:
        """Set `key` to what was chosen in place of what is there, if it is another value."""
        if (held := self.get(key)) != value or type(held) is not type(value):  # of layers, 1 is not True
            self._set(key, value, reasons.get(key, "what the plan chose"))

    def _set(self, key: str, value: Any, reason: str) -> None:
        section, name = key.split(".")
        part: BaseModel = getattr(self.recipe, section)
        self.recipe = self.recipe.model_copy(update={section: part.model_copy(update={name: value})})
        self.derived.append(Derived(key=key, value=value, reason=reason))


def resolve(recipe: Recipe, facts: Facts) -> Resolved:
    """Replace every `auto` of `recipe`. Resolving a resolved recipe again changes nothing."""
    values = _Values(recipe)
    values.derived += [Derived(key=one.key, value=one.value, reason=one.reason) for one in facts.taken]
    _strategy(values, facts)
    _model(values, facts)
    online = recipe.objective.name == "grpo"
    _objective(values)
    if online:
        facts, steps = _online(values, facts)
        rate = online_rate(recipe.method.name, facts.model_parameters)
    else:
        batching = _batching(values, facts)
        rate = _learning_rate(values, facts)
        steps = total_steps(
            facts.sequences, batching.sequences_per_step, recipe.train.num_train_epochs, recipe.train.max_steps
        )
    values.fill("train.learning_rate", *multiplied(*rate, recipe.train.learning_rate_multiplier))
    _memory(values, facts)
    every = max(1, math.ceil(steps / _EVENTS_PER_RUN))
    validation = recipe.data.validation
    validates = validation.path is not None or validation.fraction > 0
    often = (
        f"at most {_EVENTS_PER_RUN} times in {steps:,} steps"
        if steps > _EVENTS_PER_RUN
        else f"after each of {steps} steps"
    )
    values.fill("train.eval_steps", every if validates else None, often if validates else "there is no validation data")
    iterations = recipe.objective.grpo.num_iterations if online else 1
    values.fill("train.save_steps", iterations * math.ceil(every / iterations), often)
    batch = _GENERATION_BATCH.get(facts.device_type, _GENERATION_BATCH["cpu"])
    most = f"most prompts at once on {facts.device_type}, fewer where memory is short"
    values.fill("evaluate.batch_size", batch, most)
    return Resolved(recipe=values.recipe, derived=tuple(values.derived))


def _model(values: _Values, facts: Facts) -> None:
    if facts.native_bf16:
        values.fill("model.dtype", "bfloat16", f"the {facts.device_type} device computes it natively")
    else:
        slower = "bfloat16 without such units is several times slower"
        values.fill("model.dtype", "float32", f"the {facts.device_type} device has no bfloat16 units, and {slower}")
    quantized = values.recipe.method.name == "qlora"
    reason = f"method {values.recipe.method.name}"
    values.fill("model.quantization", "nf4" if quantized else "none", reason)
    values.fill("model.attn_implementation", "sdpa", "runs everywhere; packs use Luthier's own attention")


def _learning_rate(values: _Values, facts: Facts) -> tuple[float, str]:
    """The rule's rate; rates that `lr-find` found are mentioned, never taken."""
    recipe, tokens = values.recipe, values.get("train.tokens_per_step")
    rate, reason = rule_rate(recipe.method.name, facts.model_parameters, tokens, recipe.objective)
    return rate, reason + found_line(facts.found_rates, tokens)


def _objective(values: _Values) -> None:
    """What the objective leaves open; keys that it does not read become null without a word."""
    for key, value, reason in default_values(values.recipe.objective):
        values.fill(f"objective.{key}", value, reason)
    objective = values.recipe.objective
    left = {key: None for key in ("beta", "simpo_gamma") if getattr(objective, key) == "auto"}
    if left:
        values.recipe = values.recipe.model_copy(update={"objective": objective.model_copy(update=left)})


def _batching(values: _Values, facts: Facts) -> Batching:
    """Fill the three batch keys. What the recipe names stays as it is."""
    train: TrainSection = values.recipe.train
    micro = None if train.per_device_train_batch_size == "auto" else train.per_device_train_batch_size
    accumulate = None if train.gradient_accumulation_steps == "auto" else train.gradient_accumulation_steps
    target, why = step_target(train, rows=facts.rows, sequences=facts.sequences, mean_tokens=facts.mean_tokens)
    planned, parts = facts.planned, values.recipe.distributed.sequence_parallel_size
    groups = max(1, facts.world_size // parts)
    batching = choose_batching(
        target, mean_tokens=facts.mean_tokens, device_type=facts.device_type, world_size=groups,
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
        micro_batch_tokens=planned.micro_batch_tokens if planned else None,
    )  # fmt: skip
    budget = f"the largest micro-batch within the token budget of a {facts.device_type} device"
    if planned:
        budget = planned.reasons["train.per_device_train_batch_size"]
    count = batching.sequences_per_step
    devices = f" x {groups} {'devices' if parts == 1 else f'groups of {parts} devices'}" if groups > 1 else ""
    plural = "sequence" if count == 1 else "sequences"
    values.fill(
        "train.per_device_train_batch_size",
        batching.per_device_train_batch_size,
        budget if accumulate is None else f"with {accumulate} micro-batches a step, nearest to {why}",
    )
    product = f"{batching.per_device_train_batch_size} x {batching.gradient_accumulation_steps}{devices}"
    values.fill(
        "train.gradient_accumulation_steps",
        batching.gradient_accumulation_steps,
        f"{why}: {product} = {count} {plural}" + _larger_than_meant(batching, target, groups),
    )
    tokens = max(1, round(count * facts.mean_tokens))
    values.fill("train.tokens_per_step", tokens, f"{count} {plural} x {facts.mean_tokens:.0f} tokens on average")
    return batching


def _larger_than_meant(batching: Batching, target: int, groups: int) -> str:
    """Where a step cannot be as small as was meant: then it is not that of fewer devices."""
    single = batching.per_device_train_batch_size * batching.gradient_accumulation_steps == 1
    if not single or batching.sequences_per_step <= target:
        return ""
    return f", not {target}: each of {groups} takes one at least"


def _online(values: _Values, facts: Facts) -> tuple[Facts, int]:
    """Fill the batch keys of online RL; returns the facts with completions at their longest, and the steps."""
    train, grpo = values.recipe.train, values.recipe.objective.grpo
    longest = facts.tokens + facts.sequences * grpo.max_completion_length
    facts = replace(facts, tokens=longest, planned=None)
    split = choose_completions(
        train, num_generations=grpo.num_generations, prompts=facts.sequences, mean_tokens=facts.mean_tokens,
        device_type=facts.device_type, processes=facts.world_size,
    )  # fmt: skip
    budget = f"completions of a micro-batch within the token budget of a {facts.device_type} device"
    values.fill("train.per_device_train_batch_size", split.per_device_train_batch_size, budget)
    values.fill("train.gradient_accumulation_steps", split.gradient_accumulation_steps, split.reason)
    tokens = round(split.count * facts.mean_tokens)
    values.fill("train.tokens_per_step", tokens, "at most: with all completions at their longest")
    steps = online_steps(
        facts.sequences, split.prompts, train.num_train_epochs, train.max_steps, num_iterations=grpo.num_iterations
    )
    return facts, steps


def _memory(values: _Values, facts: Facts) -> None:
    """Recompute and the form of a 4-bit base: from the plan, or rules of thumb where there is none."""
    planned = facts.planned
    reasons = planned.reasons if planned else {}
    if values.get("model.quantization") != "nf4":
        values.fill("model.dequantize_base", False, "the base is not nf4")
    elif planned:
        values.fill("model.dequantize_base", planned.dequantize_base, reasons["model.dequantize_base"])
    else:
        values.fill("model.dequantize_base", False, "packed weights need least memory")
    policy, layers = "train.gradient_checkpointing", "train.gradient_checkpointing_layers"
    from_plan = planned is not None and values.get(policy) == "auto"
    if isinstance(values.get(layers), int):
        values.fill(policy, True, "gradient_checkpointing_layers says how many layers")
    elif planned:
        values.fill(policy, planned.recompute, reasons.get(policy, ""))
    else:
        _recompute_by_thumb(values, facts)
    if from_plan and planned is not None:
        values.fill(layers, planned.recompute_layers, reasons.get(layers, reasons[policy]))
    else:
        whole = "all layers" if values.get(policy) is True else "no layer as a whole"
        values.fill(layers, None, f"gradient_checkpointing {str(values.get(policy)).lower()}: {whole}")
    again, count = "train.gradient_checkpointing_attention", values.get(layers)
    whole_layers, wanted = values.get(policy) is True or isinstance(count, int), values.get(again)
    if isinstance(count, int) and isinstance(wanted, int) and wanted is not True and wanted >= count:
        values.choose(again, True, {again: f"only {count} layers are recomputed as a whole"})
    elif planned and whole_layers:
        values.fill(again, planned.recompute_attention, reasons.get(again, "needs least memory"))
    elif whole_layers:
        values.fill(again, True, "needs least memory")
    else:  # also in the place of what is written: beside this policy, which was chosen here, it would have no effect
        values.choose(again, True, {again: "no layer is recomputed as a whole"})


def _strategy(values: _Values, facts: Facts) -> None:
    key = "distributed.strategy"
    if facts.world_size > 1 and values.recipe.objective.name == "grpo":
        values.fill(key, "ddp", "online RL copies the model")
    elif facts.world_size == 1:
        alone = "one process: nothing is distributed"
        values.fill(key, "ddp", alone)
        if values.get(key) != "ddp":  # the recipe's own word stays in it, for runs on more
            values.derived.append(Derived(key=key, value=values.get(key), reason=f"without effect: {alone}"))
        if facts.planned and values.get("distributed.offload") == "none":
            values.choose("distributed.offload", facts.planned.offload, facts.planned.reasons)
    elif facts.planned:
        chosen, open_to_plan = facts.planned, values.get(key) == "auto"
        values.fill(key, chosen.strategy, chosen.reasons.get(key, "what the plan chose"))
        for name in ("dp_replicate_size", "offload", "sequence_parallel_size") if open_to_plan else ():
            values.choose(f"distributed.{name}", getattr(chosen, name), chosen.reasons)
    elif values.recipe.distributed.offload != "none":
        values.fill(key, "fsdp2", f"`distributed.offload: {values.recipe.distributed.offload}` keeps shards")
    elif values.recipe.distributed.dp_replicate_size > 1:
        values.fill(key, "fsdp2", "`distributed.dp_replicate_size` is of copies in shards")
    else:
        values.fill(key, "ddp", "there is no plan for this device: the model is copied")


def _recompute_by_thumb(values: _Values, facts: Facts) -> None:
    need, have = memory_estimate(values.recipe, facts), facts.device_memory_bytes
    amounts = f"a rough {need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB"
    if need > have:
        values.fill("train.gradient_checkpointing", True, f"without it the step needs {amounts}")
    else:
        values.fill("train.gradient_checkpointing", False, f"the step needs {amounts}, and recomputing costs time")


def resolved_yaml(resolved: Resolved) -> str:
    """The resolved recipe as YAML, with the reason behind each derived value. `load_recipe` reads it."""
    comments = {derived.key: derived.reason for derived in resolved.derived}
    head = "# Every value of this run; a comment is the reason of a value that the recipe left open.\n"
    return head + dump_yaml(recipe_to_dict(resolved.recipe), comments=comments)
