"""Keys that have no effect beside the other keys of a recipe, and why.

Written in a recipe they are an error (`recipe/check.py`); a resolved recipe leaves them out.
"""

from __future__ import annotations

from luthier.recipe.builtin import FORGETTING
from luthier.recipe.optimizers import OPTIMIZERS
from luthier.recipe.paths import is_url
from luthier.recipe.schedules import NO_WARMUP
from luthier.recipe.schema import (
    AgainstSource,
    DecontaminateSection,
    DedupSection,
    MethodSection,
    MixSection,
    ObjectiveSection,
    Source,
    TaskSpec,
    TrainSection,
    ValidationSection,
)

__all__ = [
    "contradictions_in_dedup", "unused_in_decontaminate", "unused_in_dedup", "unused_in_method", "unused_in_mix",
    "unused_in_objective", "unused_in_source", "unused_in_task", "unused_in_train", "unused_in_validation",
]  # fmt: skip

_LORA_KEYS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "modules_to_save",
    "init_from",
)
_FREEZE_KEYS = ("trainable", "last_n_layers")
_OBJECTIVE_KEYS: dict[str, tuple[str, ...]] = {
    "beta": ("dpo", "orpo", "kto", "simpo"),
    "loss_type": ("dpo",),
    "label_smoothing": ("sft", "dpo", "simpo"),
    "rpo_alpha": ("dpo", "simpo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "center_rewards_coefficient": ("reward",),
    "neftune_noise_alpha": ("sft",),
}
"""Which objectives read a key."""
_SCAN_KEYS = ("top_percent", "spectrum_score", "train_embeddings")
_ADAM_KEYS = ("adam_beta1", "adam_beta2", "adam_epsilon")


def unused_in_method(method: MethodSection) -> dict[str, str]:
    """Adapter keys without adapters; choices of frozen weights without freezing; of a scan without one."""
    unused: dict[str, str] = {}
    if method.name in {"full", "freeze", "spectrum"}:
        unused |= dict.fromkeys(_LORA_KEYS, f"method {method.name} has no adapters")
    if method.name != "freeze":
        unused |= dict.fromkeys(_FREEZE_KEYS, f"it is for method freeze, not {method.name}")
    if method.name != "spectrum":
        unused |= dict.fromkeys((*_SCAN_KEYS, "spectrum_file"), f"it is for method spectrum, not {method.name}")
    elif method.spectrum_file is not None:
        unused |= dict.fromkeys(_SCAN_KEYS, "spectrum_file says what is trained")
    if method.init_from is not None:
        unused["init_lora_weights"] = "method.init_from says how the adapter starts"
    return unused


def unused_in_objective(objective: ObjectiveSection) -> dict[str, str]:
    """Keys of other objectives; smoothing beside a loss that has none."""
    name = objective.name
    if name == "grpo":
        others = [key for key in ObjectiveSection.model_fields if key not in ("name", "grpo")]
        return dict.fromkeys(others, "objective grpo has its keys under `objective.grpo`")
    unused = {
        key: f"objective {name} has no such setting (it is for {', '.join(readers)})"
        for key, readers in _OBJECTIVE_KEYS.items()
        if name not in readers
    }
    unused["grpo"] = f"it is for objective grpo, not {name}"
    if name == "dpo" and objective.loss_type not in ("sigmoid", "robust"):
        unused["label_smoothing"] = f"loss_type {objective.loss_type} has no such setting (sigmoid and robust have)"
    return unused


def unused_in_train(train: TrainSection, *, validates: bool) -> dict[str, str]:
    """`validates`: the recipe has validation data."""
    unused: dict[str, str] = {}
    if train.max_steps is not None:
        unused["num_train_epochs"] = "max_steps already says when to stop"
    if train.lr_scheduler_type in NO_WARMUP:
        instead = " (constant_with_warmup has)" if train.lr_scheduler_type == "constant" else ""
        unused |= dict.fromkeys(
            ("warmup_ratio", "warmup_steps"), f"lr_scheduler_type {train.lr_scheduler_type} has no warmup{instead}"
        )
    elif train.warmup_steps is not None:
        unused["warmup_ratio"] = "warmup_steps already says how long"
    read = OPTIMIZERS[train.optim].keys
    unused |= {key: f"optim {train.optim} has no such setting" for key in _ADAM_KEYS if key not in read}
    if train.loraplus_lr_ratio is None:
        unused["loraplus_lr_embedding"] = "there is no loraplus_lr_ratio"
    if train.early_stopping_patience is None:
        unused["early_stopping_threshold"] = "there is no early_stopping_patience"
    if not validates:
        unused["eval_steps"] = "there is no validation data (data.validation)"
    if train.per_device_train_batch_size != "auto" and train.gradient_accumulation_steps != "auto":
        says = "the two batch keys already say how much goes into a step"
        unused |= {"tokens_per_step": says, "rows_per_step": says}
    if train.learning_rate != "auto":
        unused["learning_rate_multiplier"] = "it is a factor on `learning_rate: auto`, and learning_rate is a number"
    return unused


def unused_in_validation(validation: ValidationSection) -> dict[str, str]:
    """Shape of a file that is not given; size of a set that is not there."""
    unused: dict[str, str] = {}
    if validation.path is None:
        unused |= dict.fromkeys(
            ("format", "map"), "there is no data.validation.path; held-out rows are read as in data.train"
        )
        if not validation.fraction:
            unused["near_duplicates"] = "there is neither a path nor a fraction of validation rows"
            unused["max_rows"] = "there is neither a path nor a fraction of validation rows"
    return unused


def unused_in_dedup(dedup: DedupSection) -> dict[str, str]:
    """Keys of stages that do not run."""
    unused: dict[str, str] = {}
    if dedup.semantic is None:
        unused["embedding_model"] = "there is no `semantic`"
        if dedup.fuzzy is None:
            unused["numbers"] = "equal texts have equal numbers, and neither `fuzzy` nor `semantic` runs"
    if dedup.keep != "score":
        unused["score"] = f"keep: {dedup.keep} asks for no column"
    return unused


def unused_in_mix(mix: MixSection) -> dict[str, str]:
    """The rule for how much is taken beside a number that says it."""
    return {"stop": "data.mix.size says how much is taken"} if mix.size is not None else {}


def unused_in_decontaminate(section: DecontaminateSection) -> dict[str, str]:
    """Keys of evidence that is not looked for, and of a look that is not taken."""
    if section.action == "off":
        others = [key for key in DecontaminateSection.model_fields if key != "action"]
        return dict.fromkeys(others, "action: off looks for nothing")
    unused: dict[str, str] = {}
    if section.embedding is None:
        unused["embedding_model"] = "there is no `embedding`"
    if section.action == "report":
        unused["variants"] = "action: report lists every row, variants too"
    if section.on == "answer":
        unused |= dict.fromkeys(
            ("characters", "reworded", "embedding", "embedding_model"), "on: answer looks for no prompt"
        )
    if section.on == "prompt":
        unused["answer"] = "on: prompt looks for no answer"
    return unused


def contradictions_in_dedup(dedup: DedupSection) -> list[tuple[str, str, str]]:
    """Key, message and fix of what cannot be."""
    found = []
    if not dedup.exact and dedup.fuzzy is None and dedup.semantic is None:
        found.append(("exact", "neither `exact`, `fuzzy` nor `semantic` runs: nothing would be found", "turn one on"))
    if dedup.keep == "score" and dedup.score is None:
        found.append(("keep", "keep: score needs `score`, the column with a number", "for instance score: quality"))
    if len(set(dedup.ignore)) < len(dedup.ignore):
        found.append(("ignore", "`ignore` names something twice", "name each once"))
    return found


def unused_in_source(source: Source | AgainstSource, *, local: bool, folder: bool) -> dict[str, str]:
    """Hub keys beside a local file or a store; a local folder may hold a saved data set with splits."""
    if is_url(source.path):
        return dict.fromkeys(("split", "name"), "it is for hub data sets, and the path is in an object store")
    if folder:
        return {"name": "it is for hub data sets, and the path is a local one"}
    return dict.fromkeys(("split", "name"), "it is for hub data sets, and the path is a local one") if local else {}


def unused_in_task(task: TaskSpec) -> dict[str, str]:
    """Keys of generation beside a loss; keys of worked examples without any."""
    unused: dict[str, str] = {}
    if task.lm_eval is not None:
        keys = ("path", "format", "map", "metric", "pattern", "grader", "fewshot_path")
        return dict.fromkeys(keys, "lm_eval: its task says what is read and how it is scored")
    unused |= dict.fromkeys(("include_path", "apply_chat_template"), "it is for tasks with lm_eval")
    if task.name == FORGETTING:
        own = ("path", "format", "map", "metric", "pattern", "grader", "num_fewshot", "fewshot_path", "max_new_tokens")
        return unused | dict.fromkeys(own, f"{FORGETTING} makes its own rows and scores them its own way")
    if task.metric == "loss":
        unused |= dict.fromkeys(("pattern", "max_new_tokens"), "metric loss generates no text")
    if not task.num_fewshot:
        unused["fewshot_path"] = "num_fewshot asks for no examples"
    return unused
