"""Which key a wrong key was meant to be: a typo, a key of another section, or another tool's name for it."""

from __future__ import annotations

import difflib
from functools import cache

from pydantic import BaseModel

from luthier.recipe.describe import item_type, section_of
from luthier.recipe.schema import Recipe

__all__ = ["OTHER_NAMES", "edit_distance", "near", "sections", "suggest"]

OTHER_NAMES: dict[str, str] = {
    # Axolotl, LLaMA-Factory, TRL, Unsloth, torchtune, the OpenAI API -> our key.
    "base_model": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_id": "model.name_or_path",
    "model_path": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "tokenizer_config": "model.tokenizer",
    "template": "model.chat_template",
    "chat_template_jinja": "model.chat_template",
    "chat_template_path": "model.chat_template",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "quantization_bit": "model.quantization",
    "attn_impl": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "added_tokens": "model.new_tokens",
    "add_tokens": "model.new_tokens",
    "datasets": "data.train",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train_file": "data.train",
    "training_file": "data.train",
    "data_path": "data.train",
    "test_datasets": "data.validation",
    "eval_dataset": "data.validation",
    "validation_file": "data.validation",
    "val_set_size": "data.validation.fraction",
    "val_size": "data.validation.fraction",
    "test_size": "data.validation.fraction",
    "max_eval_samples": "data.validation.max_rows",
    "max_samples": "data.train.*.limit",
    "max_train_samples": "data.train.*.limit",
    "dataset_split": "data.train.*.split",
    "dataset_config": "data.train.*.name",
    "data_files": "data.train.*.path",
    "ds_type": "data.train.*.format",
    "formatting": "data.train.*.format",
    "columns": "data.train.*.map",
    "column_mapping": "data.train.*.map",
    "message_property_mappings": "data.train.*.map",
    "system_prompt": "data.train.*.system",
    "sequence_len": "data.max_length",
    "sequence_length": "data.max_length",
    "seq_len": "data.max_length",
    "seq_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "model_max_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "block_size": "data.max_length",
    "context_length": "data.max_length",
    "sample_packing": "data.packing",
    "train_on_inputs": "data.loss_on",
    "train_on_prompt": "data.loss_on",
    "train_on_input": "data.loss_on",
    "assistant_only_loss": "data.loss_on",
    "completion_only_loss": "data.loss_on",
    "mask_history": "data.loss_on",
    "adapter": "method.name",
    "finetuning_type": "method.name",
    "use_peft": "method.name",
    "peft": "method.name",
    "lora": "method.name",
    "rank": "method.r",
    "lora_r": "method.r",
    "lora_rank": "method.r",
    "alpha": "method.lora_alpha",
    "dropout": "method.lora_dropout",
    "lora_target": "method.target_modules",
    "lora_target_modules": "method.target_modules",
    "lora_target_linear": "method.target_modules",
    "lora_modules_to_save": "method.modules_to_save",
    "additional_target": "method.modules_to_save",
    "peft_use_rslora": "method.use_rslora",
    "peft_use_dora": "method.use_dora",
    "peft_init_lora_weights": "method.init_lora_weights",
    "pissa_init": "method.init_lora_weights",
    "lora_model_dir": "method.init_from",
    "adapter_name_or_path": "method.init_from",
    "unfrozen_parameters": "method.trainable",
    "freeze_trainable_layers": "method.last_n_layers",
    "spectrum_config_path": "method.spectrum_file",
    "spectrum_top_fraction": "method.top_percent",
    "label_smoothing_factor": "objective.label_smoothing",
    "neftune_alpha": "objective.neftune_noise_alpha",
    "epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "num_train_steps": "train.max_steps",
    "max_iters": "train.max_steps",
    "lr": "train.learning_rate",
    "peak_lr": "train.learning_rate",
    "max_lr": "train.learning_rate",
    "scheduler": "train.lr_scheduler_type",
    "lr_scheduler": "train.lr_scheduler_type",
    "lr_schedule": "train.lr_scheduler_type",
    "warmup": "train.warmup_ratio",
    "num_warmup_steps": "train.warmup_steps",
    "optimizer": "train.optim",
    "embedding_lr": "train.embedding_learning_rate",
    "cosine_min_lr_ratio": "train.lr_scheduler_kwargs",
    "beta1": "train.adam_beta1",
    "beta2": "train.adam_beta2",
    "adam_eps": "train.adam_epsilon",
    "wd": "train.weight_decay",
    "grad_clip": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "clip_grad_norm": "train.max_grad_norm",
    "batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "per_device_batch_size": "train.per_device_train_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "grad_accumulation": "train.gradient_accumulation_steps",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "accumulate_grad_batches": "train.gradient_accumulation_steps",
    "activation_checkpointing": "train.gradient_checkpointing",
    "use_gradient_checkpointing": "train.gradient_checkpointing",
    "log_every_n_steps": "train.logging_steps",
    "eval_interval": "train.eval_steps",
    "save_interval": "train.save_steps",
    "saves_per_epoch": "train.save_steps",
    "evals_per_epoch": "train.eval_steps",
    "patience": "train.early_stopping_patience",
    "random_seed": "train.seed",
    "wandb_project": "train.report_to",
    "use_wandb": "train.report_to",
    "eval_tasks": "evaluate.tasks",
    "eval_batch_size": "evaluate.batch_size",
    "per_device_eval_batch_size": "evaluate.batch_size",
    "lm_eval_tasks": "evaluate.tasks",
    "save_merged": "export.merge",
    "merge_lora": "export.merge",
    "run_name": "name",
    "output": "output_dir",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
}


@cache
def sections(model: type[BaseModel] = Recipe) -> dict[str, tuple[str, ...]]:
    """Every section of a model with its keys: `""` is the top, `data.train.*` an item of a list."""
    found: dict[str, tuple[str, ...]] = {}

    def walk(prefix: str, model: type) -> None:
        fields = model.model_fields  # type: ignore[attr-defined]
        found[prefix] = tuple(fields)
        for name, field in fields.items():
            section = section_of(field.annotation)
            if section is not None:
                many = item_type(field.annotation) is not None
                walk(f"{prefix}.{name}".lstrip(".") + (".*" if many else ""), section)

    walk("", model)
    return found


def edit_distance(left: str, right: str, *, limit: int) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours from `left` to `right`; `limit` + 1 if more."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            cost = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = previous
    return min(row[-1], limit + 1)


def near(word: str, candidates: tuple[str, ...] | list[str]) -> list[str]:
    """The candidates a person may have meant, best first; all that are equally near; empty if none is near."""
    if len(word) > 80:
        return []
    word = word.strip().lower().replace("-", "_")
    limit = 1 if len(word) < 6 else 2
    distances = {candidate: edit_distance(word, candidate.lower(), limit=limit) for candidate in candidates}
    best = min(distances.values(), default=limit + 1)
    if best <= limit:
        return [candidate for candidate in candidates if distances[candidate] == best]
    return difflib.get_close_matches(word, candidates, n=1, cutoff=0.72)


def suggest(key: str, section: str, model: type[BaseModel] = Recipe) -> str:
    """The hint for an unknown key.

    Args:
        key: as written.
        section: one of `sections(model)`, where it was written.
        model: what the file holds; other tools' names are known for a recipe alone.
    """
    if key == "<<":
        return "YAML 1.2 has no merge keys: write the keys out"
    known = sections(model)
    here, plain = known[section], key.strip().lower().replace("-", "_")
    if plain in here:
        return _did_you_mean([plain])
    named = OTHER_NAMES.get(plain) if model is Recipe else None
    if named is not None:
        return _belongs(named, section)
    close = near(key, here)
    if close and edit_distance(plain, close[0], limit=1) <= 1:
        return _did_you_mean(close)
    # Sections before list items, so that `limit` and the like point at `data.train` first.
    elsewhere = [f"{other}.{plain}".lstrip(".") for other, keys in known.items() if plain in keys]
    if elsewhere:
        return f'"{plain}" belongs in {_spoken(elsewhere[0].rpartition(".")[0])}'
    if close:
        return _did_you_mean(close)
    for other, keys in known.items():
        if other != section and len(plain) > 3 and (found := near(key, keys)):
            return f'did you mean "{found[0]}" in {_spoken(other)}?'
    return "allowed here: " + ", ".join(here)


def _did_you_mean(words: list[str]) -> str:
    return "did you mean " + " or ".join(f'"{word}"' for word in words[:4]) + "?"


def _belongs(target: str, section: str) -> str:
    place, _, name = target.rpartition(".")
    return _did_you_mean([name]) if place == section else f'here it is called "{name}", and belongs in {_spoken(place)}'


def _spoken(section: str) -> str:
    if not section:
        return "the top level"
    return f"each entry of {section[:-2]}" if section.endswith(".*") else section
