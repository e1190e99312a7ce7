"""Load a base model, or a tuned one, safely: safetensors only, no code from the folder, no NaN, no guesses.

What a folder says about how it wants to be run is not obeyed: the attention implementation comes from
the recipe, and Python files beside the weights run only with `trust_remote_code: true` in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.model.attach import attach_adapter, base_record, check_adapter_files, check_same_base, is_adapter
from luthier.model.hollow import Values, hollow_state, is_sender, keep_values, make_hollow, say_whole, take_values
from luthier.model.identity import BaseRecord, base_identity, verify_record
from luthier.model.locate import locate_model
from luthier.model.new_tokens import extend_vocabulary
from luthier.model.quantize import nf4_config, nf4_later
from luthier.model.quiet import first_line, quiet_libraries
from luthier.model.reward import HEAD, refuse_generation, set_up_config, start_head
from luthier.model.tokenizer import load_plain_tokenizer, load_tokenizer
from luthier.model.weights import check_weight_files, non_finite_tensors, read_config, refuse_non_finite, tensors_of
from luthier.recipe.schema import ModelSection
from luthier.runtime.console import note
from luthier.runtime.device import Device
from luthier.runtime.errors import EnvironmentProblem, RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "base_record", "is_adapter", "load_base", "load_model_folder", "load_tuned", "locate_model"]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KINDS = {
    "AutoModelForCausalLM": "a causal language model", "AutoModelForSequenceClassification": "a reward model",
}  # fmt: skip
# Loading more than this takes noticeable time: say so.
_BIG_BYTES = 2 << 30


def load_base(
    section: ModelSection, *, device: Device, dtype: str, quantization: str = "none", reward_seed: int | None = None,
    hollow: bool = False, later: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """Load the untouched base model of a recipe.

    New tokens get their embedding rows; all weights are finite; every weight came from the files.

    Args:
        section: `model` of the recipe.
        device: where the weights go.
        dtype: `float32`, `bfloat16` or `float16`: type of the float weights in memory; with `nf4` that of the products.
        quantization: `none`, or `nf4`: linear layers stored in 4 bits.
        reward_seed: load it as a reward model; a head that the folder lacks is drawn from this seed.
        hollow: without the values of its parameters (`hollow.py`), which are to be sharded. They are looked at when
            they are read. For a language model without new tokens, not quantised.
        later: with `nf4`, quantise each matrix only when it is brought to the device it is used on.

    Raises:
        RecipeError, EnvironmentProblem, AccessError, RunFailed: with an M3xx code and the fix.
    """
    assert not hollow or not (section.new_tokens or quantization != "none" or reward_seed is not None)
    folder = locate_model(section.name_or_path, section.revision, trust_remote_code=section.trust_remote_code)
    verify_record(folder)
    model = load_model_folder(
        folder, section, device=device, dtype=DTYPES[dtype], quantization=quantization, reward_seed=reward_seed,
        hollow=hollow, later=later,
    )  # fmt: skip
    _match_vocabulary(model, section)
    identity = base_identity(folder)
    model.luthier_base = BaseRecord(
        name_or_path=section.name_or_path, revision=section.revision, hash=identity["hash"],
        quantization=quantization, new_tokens=list(section.new_tokens),
    )  # fmt: skip
    return model


def load_tuned(
    section: ModelSection, folder: Path, *, device: Device, dtype: str, quantization: str = "none"
) -> PreTrainedModel | PeftModel:
    """Load a result of training that writes text: base plus adapter folder, or a full model folder.

    Raises:
        RunFailed: a file changed since it was written, or the base is not the one the adapter was trained on.
        RecipeError, EnvironmentProblem, AccessError: as `load_base`.
    """
    record = verify_record(folder)
    refuse_generation(folder)
    if not is_adapter(folder):
        model = load_model_folder(folder, section, device=device, dtype=DTYPES[dtype], quantization=quantization)
        model.luthier_base = None
        return model
    check_adapter_files(folder)
    base = load_base(section, device=device, dtype=dtype, quantization=quantization)
    check_same_base(record, base, folder)
    tuned = attach_adapter(base, folder, trainable=False)
    tuned.eval()
    return tuned


def load_model_folder(
    folder: Path, section: ModelSection, *, device: Device, dtype: torch.dtype, quantization: str = "none",
    reward_seed: int | None = None, hollow: bool = False, later: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """`from_pretrained` of a model folder, with every choice made here and its report checked.

    With `reward_seed` it is a reward model: the head of one output comes from the folder, or from this seed. With
    `hollow` its parameters have no values yet.

    Raises:
        RecipeError, EnvironmentProblem, RunFailed: with an M3xx code and the fix.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _load_config(folder, section)
    kind = AutoModelForCausalLM if reward_seed is None else AutoModelForSequenceClassification
    if reward_seed is not None:
        set_up_config(config)
    files = check_weight_files(folder)
    size = sum(file.stat().st_size for file in files)
    if size > _BIG_BYTES:
        note(f"loading {size / 2**30:.1f} GiB of weights from {folder}")
    options: dict[str, Any] = {
        "config": config, "dtype": dtype, "use_safetensors": True, "local_files_only": True,
        "trust_remote_code": section.trust_remote_code, "output_loading_info": True,
    }  # fmt: skip
    if section.attn_implementation != "auto":
        options["attn_implementation"] = section.attn_implementation
    packing = nf4_config(dtype, keep=() if reward_seed is None else (HEAD,)) if quantization == "nf4" else None
    if packing is not None and not later:
        # NaN does not survive rounding to 4 bits as NaN: look at the files.
        refuse_non_finite(non_finite_tensors(tensors_of(files)), where=str(folder))
        options["quantization_config"] = packing
    if hollow:
        return _hollow_model(kind, folder, files, options)
    if device.type == "cuda" or (packing is not None and not later):
        options["device_map"] = {"": device.torch_device}
    with _explained(kind, folder):
        model, report = kind.from_pretrained(folder, **options)
    _check_report(report, folder, own_head=() if reward_seed is None else (f"{HEAD}.weight",))
    if reward_seed is not None and f"{HEAD}.weight" in report.get("missing_keys", ()):
        start_head(model, seed=reward_seed)
    if device.type == "mps":
        model.to(device.torch_device)
    refuse_non_finite(non_finite_tensors(dict(model.named_parameters())), where=f"{folder} (as {dtype})")
    if packing is not None and later:
        nf4_later(model, packing)
    return model


@contextmanager
def _explained(kind: Any, folder: Path) -> Iterator[None]:
    try:
        with quiet_libraries():
            yield
    except (ValueError, OSError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            code="M308", message=f"{folder} cannot be loaded as {_KINDS[kind.__name__]}: {first_line(error)}",
            hint="check `model.name_or_path`; a new architecture may need a newer transformers",
        ) from error  # fmt: skip


def _hollow_model(kind: Any, folder: Path, files: list[Path], options: dict[str, Any]) -> Any:
    """A model of stand-ins, with the account of where their values are; process 0 holds what cannot be read by rows."""
    with _explained(kind, folder):
        found = hollow_state(kind, options["config"], files, where=f"{folder} (as {options['dtype']})", options=options)
    values, reason = found.values, found.reason
    if reason is None:
        with _explained(kind, folder):
            model, report = make_hollow(found.kind, folder, found.state, options)
        if getattr(model, "_weight_conversions", None):
            values, reason = Values(values.where, {}), "transformers converts them while it loads"
    if reason is not None:
        say_whole(reason)
        with _explained(kind, folder):
            if is_sender():
                model, report = kind.from_pretrained(folder, **options)
            else:
                model, report = make_hollow(found.kind, folder, found.own, options)
    else:
        note("  weights are read by rows: each process reads its own")
    _check_report(report, folder)
    if is_sender() and reason is not None:
        take_values(model, values)
    keep_values(model, values)
    return model


def _load_config(folder: Path, section: ModelSection) -> PreTrainedConfig:
    """The model's settings, without what a file must not decide."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = read_config(folder)
    if raw.get("quantization_config"):
        method = (
            raw["quantization_config"].get("quant_method", "unknown")
            if isinstance(raw["quantization_config"], dict)
            else "unknown"
        )
        raise RecipeError(
            code="M311",
            message=f"{folder} is stored quantised ({method})",
            hint="use the original model; `method.name: qlora` quantises it to 4 bits while loading",
        )
    kind = raw.get("model_type")
    if section.trust_remote_code and "auto_map" in raw:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        config._attn_implementation = None
        return config
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise RecipeError(
                code="M307",
                message=f"{folder} runs only with Python code of its own (model type {kind!r})",
                hint="read that code; if you trust it, set `model.trust_remote_code: true`",
            )
        raise RecipeError(
            code="M308",
            message=f"{folder}: model type {kind!r} is unknown to the installed transformers",
            hint="upgrade transformers, or check config.json",
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(_without_run_settings(raw))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise EnvironmentProblem(
            code="M303",
            message=f"{folder / 'config.json'} is not valid: {first_line(error)}",
            hint="fetch the model again",
        ) from error
    config._name_or_path = str(folder)
    return config


def _without_run_settings(value: Any) -> Any:
    """Drop keys by which a config.json could choose code to run (CVE-2026-4372), at any depth."""
    if isinstance(value, dict):
        unsafe = (
            "_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation",
            "trust_remote_code", "auto_map", "custom_pipelines", "_commit_hash",
        )  # fmt: skip
        return {key: _without_run_settings(item) for key, item in value.items() if not str(key).startswith(unsafe)}
    return [_without_run_settings(item) for item in value] if isinstance(value, list) else value


def _check_report(report: dict[str, Any], folder: Path, *, own_head: Sequence[str] = ()) -> None:
    """Every weight must come from the files: transformers fills the rest with random numbers and a warning.

    A reward model that is made from a language model has a head of its own instead of the language model's.
    """
    missing = sorted(set(report.get("missing_keys", ())) - set(own_head))
    mismatched = report.get("mismatched_keys", ())
    if missing:
        raise EnvironmentProblem(
            code="M312", message=f"{folder} lacks {len(missing)} weights of its architecture: {', '.join(missing[:3])}",
            hint="fetch the model again; config.json and the weights do not belong together",
        )  # fmt: skip
    if mismatched:
        raise EnvironmentProblem(
            code="M312",
            message=f"{folder} has weights of another shape than config.json says: {sorted(map(str, mismatched))[:3]}",
            hint="fetch the model again; config.json and the weights do not belong together",
        )
    extra = sorted(name for name in report.get("unexpected_keys", ()) if not (own_head and name.startswith("lm_head.")))
    if extra:
        note(f"{len(extra)} tensors in {folder} are not used by this architecture: {', '.join(extra[:3])}")


def _match_vocabulary(model: PreTrainedModel, section: ModelSection) -> None:
    """The tokenizer must not make ids the model has no row for; new tokens get rows."""
    plain = load_plain_tokenizer(section)
    rows, needed = model.get_input_embeddings().weight.shape[0], max(plain.get_vocab().values()) + 1
    if needed > rows and not _only_unused_control_tokens(plain, rows):
        raise RecipeError(
            code="M310", message=f"the tokenizer has ids up to {needed - 1:,}, the model has {rows:,} embedding rows",
            hint="use the tokenizer the model was trained with; tokens to add belong in `model.new_tokens`",
        )  # fmt: skip
    if section.new_tokens:
        longer = load_tokenizer(section)
        extend_vocabulary(model, old_length=needed, new_length=max(longer.get_vocab().values()) + 1)


def _only_unused_control_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> bool:
    """Whether all ids without a row are control tokens the template never writes (image marks of text-only models)."""
    beyond = {index: token for index, token in tokenizer.added_tokens_decoder.items() if index >= rows}
    last = max(tokenizer.get_vocab().values())
    template = str(tokenizer.chat_template or "")
    if len(beyond) != last + 1 - rows or any(
        not token.special or token.content in template for token in beyond.values()
    ):
        return False
    note(
        f"the model has no embedding for {', '.join(token.content for token in beyond.values())}: never use it in data"
    )
    return True
