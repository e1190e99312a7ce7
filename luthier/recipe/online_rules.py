"""Rules of `objective: {name: grpo}`: what needs what, what would have no effect, what TRL's trainer cannot do.

A key of the recipe that the SFT loop reads and TRL's trainer does not is refused here, with the reason; everything
else is honoured (`online/arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.recipe.names import takes_from_base
from luthier.recipe.online_schema import GrpoSection, JudgeSection, RewardSpec
from luthier.recipe.positions import Locate
from luthier.recipe.schedules import FEEDBACK
from luthier.recipe.schema import DataSection, MethodSection, ModelSection, TrainSection, ValidationSection
from luthier.runtime.errors import Problem

__all__ = [
    "endpoint_rules", "grpo_rules", "grpo_values", "label_of", "split_python", "surroundings", "unused_in_data",
    "unused_in_grpo", "unused_in_reward",
]  # fmt: skip

_OF_KIND = {
    "pattern": ("exact_match", "number", "regex"),
    "soft_tokens": ("length",),
    "max_tokens": ("length",),
    "rubric": ("judge",),
    "min_score": ("judge",),
    "max_score": ("judge",),
}
_TEXT_ARGS = ("rmsprop_bnb", "stable_adamw")
"""As in `train/named.py`: the loop hands their settings to the class itself."""
_VLLM = ("vllm_mode", "vllm_gpu_memory_utilization", "vllm_server_base_url")


def split_python(text: str) -> tuple[str, str]:
    """`path/to/file.py:function` as (file, function); empty strings for what is missing."""
    file, _, function = text.rpartition(":")
    return file, function


def label_of(reward: RewardSpec) -> str:
    """Name of a reward in metrics."""
    return reward.label or reward.name or split_python(reward.python or "")[1]


# -- keys without effect


def unused_in_reward(reward: RewardSpec) -> dict[str, str]:
    """Keys of other kinds of reward."""
    kind = reward.name or "python"
    return {key: f"it is for {' and '.join(kinds)}, not {kind}" for key, kinds in _OF_KIND.items() if kind not in kinds}


def unused_in_grpo(grpo: GrpoSection) -> dict[str, str]:
    """Keys of samplers and losses that are not chosen."""
    unused: dict[str, str] = {}
    if not grpo.use_vllm:
        unused |= dict.fromkeys(_VLLM, "use_vllm is false")
    elif grpo.vllm_mode == "colocate":
        unused["vllm_server_base_url"] = "it is for vllm_mode server"
    else:
        unused["vllm_gpu_memory_utilization"] = "it is for vllm_mode colocate; the server has its own"
    if grpo.loss_type == "cispo":
        unused["epsilon"] = "loss_type cispo clips above only (epsilon_high)"
    if all(reward.name != "judge" for reward in grpo.rewards):
        unused["judge"] = "there is no judge reward"
    return unused


def unused_in_data() -> dict[str, str]:
    """Keys of `data` that say what is trained of a row: here the row is only asked."""
    return {
        "packing": "online RL samples its own sequences and packs none",
        "loss_on": "online RL trains the sampled completion",
    }


def grpo_values(grpo: GrpoSection) -> dict[str, Any]:
    """The section as JSON, without the keys that have no effect."""
    value: dict[str, Any] = grpo.model_dump(mode="json")
    pairs = [(value, unused_in_grpo(grpo))]
    pairs += [(entry, unused_in_reward(reward)) for entry, reward in zip(value["rewards"], grpo.rewards, strict=True)]
    for entry, unused in pairs:
        for key in unused:
            if entry.get(key) is not None:
                del entry[key]
    return value


# -- rules


def grpo_rules(grpo: GrpoSection, locate: Locate) -> Iterator[Problem]:
    """Rules inside `objective.grpo`."""
    prefix = "objective.grpo"
    if not grpo.rewards:
        message = "objective grpo needs `objective.grpo.rewards`: what a completion is worth"
        yield locate("objective.name").problem("C110", message, hint="for instance grpo: {rewards: [{name: number}]}")
    elif all(reward.weight == 0 for reward in grpo.rewards):
        yield locate(f"{prefix}.rewards").problem("C110", "all rewards have weight 0", hint="give one a weight")
    seen: set[str] = set()
    for index, reward in enumerate(grpo.rewards):
        place = f"{prefix}.rewards.{index}"
        yield from _reward(reward, grpo, place, locate)
        if label_of(reward) in seen:
            message = f'two rewards are called "{label_of(reward)}"'
            yield locate(f"{place}.name").problem("C110", message, hint="give each a `label`")
        seen.add(label_of(reward))
    if any(reward.name == "judge" for reward in grpo.rewards):
        yield from endpoint_rules(grpo.judge, f"{prefix}.judge", locate, what="a judge reward")
    if grpo.use_vllm and grpo.vllm_mode == "server" and grpo.vllm_server_base_url is None:
        message = "vllm_mode server needs `vllm_server_base_url`"
        yield locate(f"{prefix}.vllm_mode").problem("C110", message, hint="for instance http://localhost:8000")


def _reward(reward: RewardSpec, grpo: GrpoSection, place: str, locate: Locate) -> Iterator[Problem]:
    if (reward.name is None) == (reward.python is None):
        message = "a reward has either `name` or `python`"
        yield locate(place).problem("C110", message, hint="for instance {name: number}, or {python: rewards.py:short}")
        return
    if reward.python is not None and not all(split_python(reward.python)):
        message = f'`python` names a file and a function, got "{reward.python}"'
        yield locate(f"{place}.python").problem("C103", message, hint="write path/to/file.py:function")
    if reward.name == "regex" and reward.pattern is None:
        yield locate(f"{place}.name").problem(
            "C110", "reward regex needs `pattern`", hint="for instance pattern: '^<think>.*</think>'"
        )
    if reward.name == "length":
        yield from _length(reward, grpo, place, locate)
    if reward.name == "judge":
        if not (reward.rubric or "").strip():
            message = "reward judge needs `rubric`: what makes an answer good"
            yield locate(f"{place}.name").problem("C110", message)
        if reward.min_score >= reward.max_score:
            message = f"min_score {reward.min_score:g} must be below max_score {reward.max_score:g}"
            yield locate(f"{place}.min_score").problem("C110", message)


def _length(reward: RewardSpec, grpo: GrpoSection, place: str, locate: Locate) -> Iterator[Problem]:
    most = reward.max_tokens or grpo.max_completion_length
    if reward.soft_tokens is None:
        message = "reward length needs `soft_tokens`: how far below `max_tokens` the penalty begins"
        hint = f"for instance soft_tokens: {max(1, most // 4)}"
        yield locate(f"{place}.name").problem("C110", message, hint=hint)
    elif reward.soft_tokens > most:
        message = f"soft_tokens {reward.soft_tokens} is more than max_tokens {most}: every completion would be punished"
        yield locate(f"{place}.soft_tokens").problem("C110", message)
    if most > grpo.max_completion_length:
        message = f"no completion has {most} tokens: max_completion_length is {grpo.max_completion_length}"
        yield locate(f"{place}.max_tokens").problem("C110", message, hint="lower max_tokens")


def endpoint_rules(judge: JudgeSection, prefix: str, locate: Locate, *, what: str) -> Iterator[Problem]:
    """The server that is asked; `what` asks it."""
    for key in ("base_url", "model"):
        if not getattr(judge, key):
            yield locate(prefix).problem("C110", f"{what} needs `{prefix}.{key}`")
    if judge.base_url and not judge.base_url.startswith(("http://", "https://")):
        message = f'`{prefix}.base_url` is no http(s) URL: "{judge.base_url}"'
        yield locate(f"{prefix}.base_url").problem("C103", message, hint="for instance http://localhost:8000/v1")
    if (judge.input_price is None) != (judge.output_price is None):
        key = "input_price" if judge.input_price is not None else "output_price"
        yield locate(f"{prefix}.{key}").problem("C110", "cost is counted with both `input_price` and `output_price`")
    if judge.budget_usd is not None and (judge.input_price is None or judge.output_price is None):
        message = "`budget_usd` needs the prices it is counted with: `input_price` and `output_price`"
        yield locate(f"{prefix}.budget_usd").problem("C110", message)


def surroundings(
    grpo: GrpoSection, *, model: ModelSection | None, data: DataSection | None, method: MethodSection | None,
    train: TrainSection | None, locate: Locate,
) -> Iterator[Problem]:  # fmt: skip
    """What of the other sections does not go together with online RL in TRL's trainer."""
    if model is not None:
        yield from _model(model, locate)
    if data is not None and data.overlong == "truncate":
        message = "`data.overlong: truncate` would ask half a question"
        yield locate("data.overlong").problem("C110", message, hint="write drop or error")
    if data is not None:
        yield from _duplicates(data, locate)
    if method is not None:
        yield from _method(method, locate)
    if train is not None:
        yield from _train(train, grpo, locate)


def _duplicates(data: DataSection, locate: Locate) -> Iterator[Problem]:
    hint = "`luthier data dedup FILE --out NEW` writes the rows that stay"
    if data.dedup is not None:
        message = "`data.dedup` compares rows with their answers, and online RL asks prompts: it is not done there"
        yield locate("data.dedup", on="key").problem("C110", message, hint=hint)
    if data.decontaminate is not None and data.decontaminate.action != "off":
        message = "`data.decontaminate` is not done for online RL yet"
        hint = "`luthier data decontaminate FILE --against TEST --out NEW` writes the rows that stay"
        yield locate("data.decontaminate", on="key").problem("C110", message, hint=hint)
    if data.validation.near_duplicates != ValidationSection().near_duplicates:
        message = "`data.validation.near_duplicates` compares rows with their answers, and online RL asks prompts"
        yield locate("data.validation.near_duplicates", on="key").problem("C110", message, hint="remove it")


def _method(method: MethodSection, locate: Locate) -> Iterator[Problem]:
    if method.lora_dropout > 0:
        message = "online RL takes no dropout: completions must come from the model whose probabilities are trained"
        yield locate("method.lora_dropout").problem("C110", message, hint="remove it")
    if takes_from_base(method.init_lora_weights):
        message = f"init_lora_weights {method.init_lora_weights} changes the base, which is the reference of online RL"
        yield locate("method.init_lora_weights").problem("C110", message, hint="write true, gaussian or orthogonal")


def _model(model: ModelSection, locate: Locate) -> Iterator[Problem]:
    ours = "is a mode of Luthier's engine, and TRL's trainer runs the model as transformers wrote it"
    if model.quantization == "fp8":
        yield locate("model.quantization").problem("C110", f"fp8 {ours}", hint="write none, or nf4 with method qlora")
    if model.dequantize_base is True:
        yield locate("model.dequantize_base").problem("C110", f"`model.dequantize_base` {ours}", hint="remove it")
    if model.new_tokens:
        message = "a token that was never trained is never sampled, so no reward can teach it"
        yield locate("model.new_tokens").problem("C110", message, hint="train it with objective sft first")


def _train(train: TrainSection, grpo: GrpoSection, locate: Locate) -> Iterator[Problem]:
    if train.tokens_per_step != "auto":
        message = "`train.tokens_per_step` is not known before the completions of a step are sampled"
        hint = "per_device_train_batch_size x gradient_accumulation_steps is the number of completions of a step"
        yield locate("train.tokens_per_step", on="key").problem("C110", message, hint=hint)
    if train.rows_per_step is not None:
        message = "`train.rows_per_step` counts rows, and a step of online RL is a number of completions"
        hint = "per_device_train_batch_size x gradient_accumulation_steps is the number of completions of a step"
        yield locate("train.rows_per_step", on="key").problem("C110", message, hint=hint)
    modes = {
        "gradient_checkpointing": train.gradient_checkpointing == "selective",
        "gradient_checkpointing_layers": isinstance(train.gradient_checkpointing_layers, int),
        "gradient_checkpointing_attention": train.keeps_attention,
    }
    for key in (key for key, ours in modes.items() if ours):
        message = f"`train.{key}` is a mode of Luthier's engine; TRL's trainer recomputes all layers or none"
        yield locate(f"train.{key}", on="key").problem("C110", message, hint="gradient_checkpointing: true or false")
    yield from _rates(train, locate)
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key):
            message = f"`train.{key}` goes by the validation loss, and online RL has none"
            yield locate(f"train.{key}", on="key").problem("C110", message, hint="remove it")
    if isinstance(train.save_steps, int) and train.save_steps % grpo.num_iterations:
        most = grpo.num_iterations
        message = f"save_steps {train.save_steps} lies between the {most} iterations on the same completions"
        hint = f"a multiple of num_iterations: {most * -(-train.save_steps // most)}"
        yield locate("train.save_steps").problem("C110", message, hint=hint)


def _rates(train: TrainSection, locate: Locate) -> Iterator[Problem]:
    """Optimizer, schedule and rates of single weights."""
    alone = {"loraplus_lr_ratio": None, "embedding_learning_rate": None, "layerwise_lr_decay": 1.0}
    for key, default in alone.items():
        if getattr(train, key) != default:
            message = f"`train.{key}` belongs to Luthier's loop; TRL's trainer has one learning rate for all weights"
            yield locate(f"train.{key}", on="key").problem("C110", message, hint="remove it")
    if train.lr_scheduler_type in FEEDBACK:
        message = f"lr_scheduler_type {train.lr_scheduler_type} follows the validation loss, and online RL has none"
        yield locate("train.lr_scheduler_type").problem("C110", message, hint="write constant_with_warmup or cosine")
    if train.optim == "muon":
        message = "optim muon belongs to Luthier's loop; TRL's trainer has none of this name"
        yield locate("train.optim").problem("C110", message, hint="write adamw_torch_fused")
    elif train.optim_args and train.optim.startswith(_TEXT_ARGS):
        message = f"transformers' trainer hands the settings of optim {train.optim} on as text, which it misreads"
        yield locate("train.optim_args", on="key").problem("C110", message, hint="remove them")
