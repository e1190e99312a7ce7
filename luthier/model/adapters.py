"""Prepare a base model for training: what is trained, what is frozen, and an account of it.

`apply_method` is the one place where `requires_grad` is decided. What its report lists is what trains.
Adapters are PEFT adapters; they live in the type of the model, so that no product mixes types
(fp32 masters of trained weights are the training loop's business).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.model.attach import base_record, cast_adapters
from luthier.model.continued import continue_from
from luthier.model.freeze import freeze_all_but, train_everything, train_listed
from luthier.model.method_report import MethodReport, report_on
from luthier.model.quantize import is_quantized
from luthier.model.quiet import quiet_libraries
from luthier.model.reward import HEAD, is_reward_model
from luthier.model.starts import take_from_base
from luthier.model.targets import (
    head_name,
    input_name,
    is_tied,
    modules_named,
    resolve_modules_to_save,
    resolve_targets,
)
from luthier.recipe.names import takes_from_base
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError
from luthier.spectrum.listing import read_listing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["MethodReport", "Tuned", "apply_method"]


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model ready to train, and what of it is trained."""

    model: Any
    """`PeftModel` for lora and qlora, the `PreTrainedModel` itself for full, freeze and spectrum."""
    report: MethodReport


def apply_method(
    model: PreTrainedModel,
    method: MethodSection,
    *,
    seed: int,
    new_token_ids: Sequence[int] = (),
    start_folder: Path | None = None,
    unfrozen: Sequence[str] = (),
) -> Tuned:
    """Make a base model trainable as the recipe says.

    Args:
        model: from `load_base`.
        method: `method` of the recipe.
        seed: of the initial adapter weights; the global random state is neither read nor moved.
        new_token_ids: ids of `model.new_tokens`; with adapters only these rows of the embeddings are trained.
        start_folder: where an earlier session kept what `init_lora_weights` took out of the base (`starts.py`).
        unfrozen: for `spectrum`, the patterns that a scan chose; `method.spectrum_file` needs none.

    Raises:
        RecipeError: a target, pattern or module that matches nothing, or settings that cannot work together.
    """
    packed = any(is_quantized(parameter) for parameter in model.parameters())
    if method.name in ("full", "freeze", "spectrum"):
        if packed:
            raise RecipeError(
                code="M327",
                message=f"`method.name: {method.name}` cannot train weights stored in 4 bits",
                hint="use `qlora`, or `model.quantization: none`",
            )
        notes = _weights_themselves(model, method, new_token_ids, unfrozen)
        return Tuned(model, report_on(model, method=method.name, notes=notes))
    if method.name == "qlora" and not packed:
        raise RecipeError(
            code="M327",
            message="`method.name: qlora` needs a base in 4 bits, but this one is not quantised",
            hint="set `model.quantization: nf4` (or auto), or `method.name: lora`",
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if method.init_from is not None:
        adapted, notes = continue_from(model, method, new_token_ids)
    else:
        adapted, notes = _new_adapter(model, method, seed=seed, new_token_ids=new_token_ids, start_folder=start_folder)
    return Tuned(adapted, report_on(adapted, method=method.name, notes=notes))


def _weights_themselves(
    model: PreTrainedModel, method: MethodSection, new_token_ids: Sequence[int], unfrozen: Sequence[str]
) -> list[str]:
    if method.init_from is not None:
        raise RecipeError(
            code="M324",
            message=f"`method.init_from` continues an adapter; `method.name` is {method.name}",
            hint="to continue from a whole model, name its folder in `model.name_or_path`",
        )
    if method.name == "full":
        train_everything(model)
        return []
    key = "`embed_tokens` and `lm_head` to `method.trainable`"
    if method.name == "spectrum":
        if method.spectrum_file is not None:
            unfrozen = read_listing(Path(method.spectrum_file).expanduser()).patterns
        if not unfrozen:
            raise RecipeError(
                code="M331", message="`method.name: spectrum` needs a selection: what a scan chose, or a file",
                hint="`luthier run` scans by itself; in Python pass `unfrozen`, or set `method.spectrum_file`",
            )  # fmt: skip
        notes = train_listed(model, unfrozen)
        key = "`method.train_embeddings: true`" if method.spectrum_file is None else "them to the file"
    else:
        notes = freeze_all_but(model, method.trainable, last_n_layers=method.last_n_layers)
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    if new_token_ids and not all(table.weight.requires_grad for table in tables):
        raise RecipeError(
            code="M325", message="`model.new_tokens` are given, but their embedding rows are frozen",
            hint=f"add {key}, or use `method.name: lora`",
        )  # fmt: skip
    return notes


def _new_adapter(
    model: PreTrainedModel, method: MethodSection, *, seed: int, new_token_ids: Sequence[int],
    start_folder: Path | None,
) -> tuple[PeftModel, list[str]]:  # fmt: skip
    from peft import LoraConfig, get_peft_model

    notes: list[str] = []
    targets = resolve_targets(model, method.target_modules)
    saved, tie = _modules_to_save(model, method, notes)
    tables = _token_tables(model, targets, saved, new_token_ids, notes)
    reward = is_reward_model(model)
    if reward and HEAD not in saved:
        saved = [*saved, HEAD]
        notes.append(f"the reward head ({HEAD}) is trained in full")
    record = base_record(model)
    alpha = method.lora_alpha
    from_base = takes_from_base(method.init_lora_weights)
    if from_base and any(is_quantized(parameter) for parameter in model.parameters()):
        raise RecipeError(
            code="M329", message=f"init_lora_weights {method.init_lora_weights} changes the base, which is in 4 bits",
            hint="`model.quantization: none`, or `method.init_lora_weights: true`",
        )  # fmt: skip
    config = LoraConfig(
        r=method.r,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # other tools read an int
        lora_dropout=method.lora_dropout,
        target_modules=_as_written(model, method.target_modules, targets),
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        init_lora_weights=True if from_base else method.init_lora_weights,
        modules_to_save=saved or None,
        trainable_token_indices={name: list(new_token_ids) for name in tables} or None,
        ensure_weight_tying=tie,
        bias="none",
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
        revision=record.revision if record else None,
    )
    # PEFT draws on the CPU from the global generator; the same seed must give the same adapter anywhere.
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.default_generator.manual_seed(seed)
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    if record is not None:
        config.base_model_name_or_path = record.name_or_path
    cast_adapters(adapted, model.dtype)
    _check_adapted(adapted, targets)
    if from_base:
        start = str(method.init_lora_weights)
        take_from_base(adapted, start, seed=seed, base=record.hash if record else None, folder=start_folder)
        notes.append(f"starts as {start}; saved as a plain adapter of rank {2 * method.r} for the untouched base")
    return adapted, notes + _expert_notes(model)


def _as_written(model: PreTrainedModel, spec: str | list[str], targets: list[str]) -> str | list[str]:
    """`target_modules` of adapter_config.json: the recipe's words, but last names where it says `all-linear`.

    Every serving tool knows last names (`q_proj`); full names are used where last names would match more.
    """
    if spec != "all-linear":
        return spec
    ends = sorted({name.rpartition(".")[2] for name in targets})
    return ends if modules_named(model, ends, key="method.target_modules") == targets else targets


def _modules_to_save(model: PreTrainedModel, method: MethodSection, notes: list[str]) -> tuple[list[str], bool]:
    """Full names, and whether PEFT must keep head and embeddings one tensor."""
    saved = resolve_modules_to_save(model, method.modules_to_save)
    shared = {input_name(model), head_name(model)}
    if is_tied(model) and shared & set(saved):
        # One weight under two names: train one copy and let both use it, as full fine-tuning would.
        notes.append("embeddings and head share one weight; it is trained once and stays shared")
        return [*(name for name in saved if name not in shared), input_name(model)], True
    return saved, False


def _token_tables(
    model: PreTrainedModel, targets: Sequence[str], saved: Sequence[str], new_token_ids: Sequence[int], notes: list[str]
) -> list[str]:
    """Names of the tables of which only the new rows are trained."""
    if not new_token_ids:
        return []
    head = head_name(model)
    tables = [input_name(model)]
    if head is not None and not is_tied(model):
        tables.append(head)
    both = sorted(set(tables) & set(targets))
    if both:
        raise RecipeError(
            code="M325", message=f"{both[0]} would have a LoRA adapter and new token rows at once",
            hint=f"move `{both[0].rpartition('.')[2]}` from `method.target_modules` to `method.modules_to_save`",
        )  # fmt: skip
    if head in tables and getattr(model.get_submodule(head), "bias", None) is not None:
        raise RecipeError(
            code="M325",
            message=f"{head} has a bias, with which single rows cannot be trained",
            hint=f"put `{head}` into `method.modules_to_save`",
        )
    whole = [name for name in tables if name in saved]
    notes += [f"{name} is trained in full, new token rows included" for name in whole]
    return [name for name in tables if name not in saved]


def _check_adapted(model: PeftModel, targets: Sequence[str]) -> None:
    """What PEFT adapted must be what was asked for."""
    from peft.tuners.lora import LoraLayer

    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if adapted != set(targets):
        odd = sorted(adapted ^ set(targets))[:3]
        raise RecipeError(
            code="M320",
            message=f"asked for and adapted modules differ: {', '.join(odd)}",
            hint="list the modules by name in `method.target_modules`",
        )


def _expert_notes(model: PreTrainedModel) -> list[str]:
    """Experts fused into one 3-D tensor are no linear layers, so `all-linear` leaves them out: say so."""
    fused = {
        name.rpartition(".")[2]
        for name, weight in model.named_parameters()
        if weight.dim() == 3 and "expert" in name and "lora_" not in name
    }
    return (
        [f"expert weights ({', '.join(sorted(fused))}) are stored as one tensor a layer and are not adapted"]
        if fused
        else []
    )
