"""Merge an adapter into its original base, in the base's own type, and prove that nothing changed.

Each product is computed in fp32 and rounded once. Memory: one copy of the model in its own type plus one
weight in fp32 while merging; one fp32 copy of the model while checking. A folder appears only if
the check passed.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.export.verify import MergeReport, check_prompts, compare_logits, logits_of, mean_kl
from luthier.model.attach import attach_adapter, check_adapter_files, check_same_base, is_adapter
from luthier.model.contract import check_saved, contract_of
from luthier.model.identity import BaseRecord, verify_record, write_record
from luthier.model.load import DTYPES, load_base, load_model_folder, locate_model
from luthier.model.new_tokens import new_token_ids
from luthier.model.quiet import quiet_libraries
from luthier.model.reward import is_reward_folder, is_reward_model
from luthier.model.save import save_model_files, write_stop_ids
from luthier.model.stops import stop_ids
from luthier.model.targets import is_tied
from luthier.model.tokenizer import load_tokenizer
from luthier.model.weights import check_weight_files, non_finite_tensors, refuse_non_finite, stored_dtype
from luthier.recipe.schema import ModelSection
from luthier.runtime.atomic import atomic_folder
from luthier.runtime.console import progress
from luthier.runtime.device import Device
from luthier.runtime.errors import OutOfMemory, RunFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["merge"]


def merge(
    section: ModelSection, adapter_folder: Path, out_folder: Path, *, max_shard_size: str = "5GB", device: Device
) -> MergeReport:
    """Write the model to serve: base and adapter in one, or a checked copy of a model trained in full.

    The folder holds sharded safetensors, tokenizer, chat template, and every stop id in config.json and
    generation_config.json; it loads in plain transformers. An adapter trained on a 4-bit base is merged
    into the original base, and the report says what that changes.

    Args:
        section: `model` of the recipe (base, revision, new tokens).
        adapter_folder: what `save_trained` wrote.
        out_folder: replaced if it exists.
        max_shard_size: largest file, as transformers writes it (`5GB`).
        device: where products are computed and models compared.

    Raises:
        RunFailed: merged and adapter model differ by more than the bound, a file was altered, or prompts and stop
            tokens are not those of training; nothing is written.
        EnvironmentProblem: disk full, not writable.
        OutOfMemory: one fp32 copy of the model does not fit.
    """
    record = verify_record(adapter_folder) or {}
    contract = contract_of(adapter_folder)
    check_saved(adapter_folder, contract)
    if is_adapter(adapter_folder):
        check_adapter_files(adapter_folder)
    tokenizer = load_tokenizer(section.model_copy(update={"tokenizer": str(adapter_folder), "chat_template": None}))
    try:
        with torch.no_grad(), progress("merge", 4, "steps") as bar, atomic_folder(out_folder) as temporary:
            dtype = stored_dtype(check_weight_files(locate_model(section.name_or_path, section.revision)))
            model, dtypes = _tuned(section, adapter_folder, record, device=device, dtype=dtype)
            merged = _merge_exactly(model, dtypes)
            del model
            refuse_non_finite(non_finite_tensors(dict(merged.named_parameters())), where="the merged model")
            _write(merged, tokenizer, temporary, max_shard_size=max_shard_size)
            del merged
            bar.advance(say="written")
            prompts = check_prompts(
                tokenizer, run_folder=adapter_folder.parent, extra_ids=new_token_ids(tokenizer, section.new_tokens)
            )
            report = _verify(
                section, adapter_folder, temporary, record, prompts=prompts, dtypes=dtypes, device=device, bar=bar
            )
            if not report.passed:
                raise RunFailed(
                    code="X601",
                    message=f"merged and adapter model differ: logits by up to {report.merging:.3g} through the merge, "
                    f"{report.writing:.3g} through writing it; at most {report.bound:.3g} is explained by the order "
                    "of sums; no merged folder was written",
                    hint="please report this; the adapter folder itself is untouched and can be used",
                )
            check_saved(temporary, contract)
            kept = {} if contract is None else {"prompts": contract}
            write_record(
                temporary, kind="merged", base=_base_of(record), dtype=report.dtype, merge=report.to_json(), **kept
            )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            code="X602", message=f"no memory left while merging on {device.name}: one fp32 copy of the model must fit",
            hint="set LUTHIER_FORCE_CPU=1 to merge in host memory",
        ) from error  # fmt: skip
    return report


def _tuned(
    section: ModelSection, folder: Path, record: dict[str, Any], *, device: Device, dtype: torch.dtype
) -> tuple[Any, dict[str, torch.dtype]]:
    """The result of training on its original base (adapter in fp32), and the type of each weight of the base."""
    reward = 0 if is_reward_folder(folder) else None  # the head's values come from the folder, whatever the seed
    if is_adapter(folder):
        base = load_base(section, device=device, dtype=str(dtype).removeprefix("torch."), reward_seed=reward)
        check_same_base(record, base, folder)
    else:
        base = load_model_folder(folder, section, device=device, dtype=dtype, reward_seed=reward)
    dtypes = {name: value.dtype for name, value in base.named_parameters(remove_duplicate=False)}
    if not is_adapter(folder):
        return base, dtypes
    return attach_adapter(base, folder, trainable=False, dtype=torch.float32), dtypes


def _merge_exactly(model: Any, dtypes: dict[str, torch.dtype]) -> PreTrainedModel:
    """Merge in fp32, weight by weight, then round each to its own type; a plain transformers model."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if isinstance(model, PeftModel):
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                weight = layer.get_base_layer().weight
                dtype = weight.dtype
                weight.data = weight.data.float()
                try:
                    layer.merge(safe_merge=True)
                except ValueError as error:
                    raise RunFailed(
                        code="M309",
                        message=f"merging {name} gives NaN or infinity",
                        hint="the adapter is broken; use an earlier checkpoint",
                    ) from error
                weight.data = weight.data.to(dtype)
        # LoRA layers are merged already; this puts full copies and token rows in place and takes the wrappers off.
        with quiet_libraries():
            model = model.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
        parameter.requires_grad_(False)
    _settle_tying(model)
    return model


def _settle_tying(model: PreTrainedModel) -> None:
    """config.tie_word_embeddings says what the tensors are."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False) or is_tied(model):
        return
    if torch.equal(head.weight, model.get_input_embeddings().weight):
        head.weight = model.get_input_embeddings().weight
        return
    model.config.tie_word_embeddings = False


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_shard_size: str) -> None:
    save_model_files(model, folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    if not is_reward_model(model):
        write_stop_ids(folder, stop_ids(tokenizer, model), model)


def _verify(
    section: ModelSection, adapter_folder: Path, merged_folder: Path, record: dict[str, Any], *,
    prompts: list[list[int]], dtypes: dict[str, torch.dtype], device: Device, bar: Any,
) -> MergeReport:  # fmt: skip
    """R, B, E, C and M one after the other, so that only one model is in memory."""
    free_memory(device)
    adapter = is_adapter(adapter_folder)
    model, _ = _tuned(section, adapter_folder, record, device=device, dtype=torch.float32)
    reference = logits_of(model, prompts)
    adapter_kl, untuned = None, None
    if adapter:
        with model.disable_adapter():
            untuned = logits_of(model, prompts)
        adapter_kl = mean_kl(reference, untuned)
    bar.advance(say="adapter")
    exact_model = _merge_exactly(model, dict.fromkeys(dtypes, torch.float32))
    exact = rounded = logits_of(exact_model, prompts)
    if any(dtype != torch.float32 for dtype in dtypes.values()):
        for name, parameter in exact_model.named_parameters():
            parameter.data = parameter.data.to(dtypes[name]).float()
        rounded = logits_of(exact_model, prompts)
    del model, exact_model
    free_memory(device)
    reward = 0 if is_reward_folder(merged_folder) else None
    plain = load_model_folder(merged_folder, section, device=device, dtype=torch.float32, reward_seed=reward)
    merged = logits_of(plain, prompts)
    del plain
    free_memory(device)
    bar.advance(say="merged")
    base = _base_of(record)
    packed = base is not None and base.quantization == "nf4"
    found = compare_logits(reference, exact, rounded, merged, untuned)
    found.update(_against_packed(section, adapter_folder, prompts, merged, device=device) if packed else {})
    bar.advance(say="compared")
    return MergeReport(
        **found, adapter_kl=adapter_kl, dtype=str(_main_dtype(dtypes)).removeprefix("torch."),
        base=section.name_or_path, kind="adapter" if adapter else "model", quantized_base=packed,
    )  # fmt: skip


def _against_packed(
    section: ModelSection, folder: Path, prompts: list[list[int]], merged: list[torch.Tensor], *, device: Device
) -> dict[str, float]:
    """KL of the adapter on its 4-bit base against the merged model, and the adapter's own effect as a scale."""
    reward = 0 if is_reward_folder(folder) else None
    base = load_base(section, device=device, dtype="float32", quantization="nf4", reward_seed=reward)
    model = attach_adapter(base, folder, trainable=False, dtype=torch.float32)
    tuned = logits_of(model, prompts)
    with model.disable_adapter():
        untuned = logits_of(model, prompts)
    return {"quantization_kl": mean_kl(tuned, merged), "quantization_adapter_kl": mean_kl(tuned, untuned)}


def _main_dtype(dtypes: dict[str, torch.dtype]) -> torch.dtype:
    counts = [dtype for dtype in dtypes.values() if dtype in DTYPES.values()]
    return max(set(counts), key=counts.count)


def _base_of(record: dict[str, Any]) -> BaseRecord | None:
    value = record.get("base")
    return BaseRecord(**value) if isinstance(value, dict) else None


def free_memory(device: Device) -> None:
    """Give back what deleted models held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
