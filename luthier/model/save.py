"""Write what was trained: an adapter, or the whole model; complete or absent, safetensors and JSON only."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.model.attach import base_record, is_adapter_parameter
from luthier.model.identity import write_record
from luthier.model.quiet import quiet_libraries
from luthier.model.reward import is_reward_model
from luthier.model.starts import as_plain_adapter, start_of
from luthier.model.stops import stop_ids
from luthier.model.weights import non_finite_tensors, refuse_non_finite
from luthier.runtime.atomic import atomic_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["save_model_files", "save_trained", "write_stop_ids"]


def save_trained(
    tuned_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    masters: Mapping[str, torch.Tensor] | None = None,
    whole: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save the result of training into `folder`.

    An adapter is saved as PEFT does, in fp32 (from `masters` where given) and for the untouched base (`starts.py`); a
    whole model in the type it was trained in. Beside it: tokenizer, chat template, generation_config.json with every
    stop id, and `luthier.json` with the base and the hash of each file.

    Args:
        tuned_model: `Tuned.model`.
        tokenizer: as used in training.
        folder: replaced if it exists.
        masters: fp32 values of trained parameters, by their name in `tuned_model.named_parameters()`.
        whole: every weight, by its name in the state dict, of a whole model whose own weights are sharded.

    Raises:
        RunFailed: a tensor to be saved holds NaN or infinity.
        EnvironmentProblem: disk full, not writable.
    """
    from peft import PeftModel

    names = {name for name, _ in tuned_model.named_parameters()}
    unknown = sorted(set(masters or {}) - names)
    if unknown:
        raise ValueError(f"masters name no parameter of this model: {unknown[:3]}")
    with atomic_folder(folder) as temporary:
        if isinstance(tuned_model, PeftModel):
            _save_adapter(tuned_model, temporary, masters or {})
            base: Any = tuned_model.get_base_model()
            kind = "adapter"
        else:
            base, kind = tuned_model, "model"
            with torch.no_grad():
                for name, parameter in tuned_model.named_parameters():
                    if masters and name in masters:
                        parameter.copy_(masters[name])
            held = dict(base.named_parameters()) if whole is None else dict(whole)
            refuse_non_finite(non_finite_tensors(held), where="the trained model")
            save_model_files(base, temporary, whole=whole)
        tokenizer.save_pretrained(temporary)
        if not is_reward_model(base):
            write_stop_ids(temporary, stop_ids(tokenizer, base), base)
        trained_in = str(base.dtype).removeprefix("torch.")
        saved_in = "float32" if kind == "adapter" else trained_in
        write_record(temporary, kind=kind, base=base_record(base), dtype=saved_in, trained_in=trained_in)


def _save_adapter(model: Any, folder: Path, masters: Mapping[str, torch.Tensor]) -> None:
    """adapter_model.safetensors and adapter_config.json; every trained tensor must be in them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    live = {name: tensor for name, tensor in model.state_dict().items() if is_adapter_parameter(name)}
    live.update({name: tensor for name, tensor in masters.items() if name in live})
    state = get_peft_model_state_dict(
        model, state_dict=live, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if (
        any(name not in live for name in trained)
        or len(state) < len(trained)
        or any(not tensor.numel() for tensor in state.values())
    ):
        raise RuntimeError(f"{len(trained)} tensors were trained, but the adapter file would hold {len(state)}")
    full = {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in state.items()}
    refuse_non_finite(non_finite_tensors(full), where="the trained adapter")
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    start = start_of(model)
    if start is not None:
        full, config = as_plain_adapter(full, config, start)
    with os_errors():
        save_file(full, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(folder)


def save_model_files(
    model: PreTrainedModel, folder: Path, *, max_shard_size: str = "5GB",
    whole: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """config.json and sharded safetensors of a whole model, shared tensors once. `whole` stands for its weights.

    The generation config is left to `write_stop_ids`: transformers refuses to save some that it loads.
    """
    from transformers import GenerationConfig

    state = None if whole is None else dict(whole)
    if is_reward_model(model):  # it writes no text
        with quiet_libraries(), os_errors():
            model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state)
        return
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with quiet_libraries(), os_errors():
            model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state)
    finally:
        model.generation_config = kept


@contextmanager
def os_errors() -> Iterator[None]:
    """safetensors reports a full disk as an error of its own: make it an OSError, which `atomic_folder` explains."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_stop_ids(folder: Path, ids: list[int], model: Any) -> None:
    """generation_config.json of the base with `eos_token_id` replaced; config.json says the same if there is one."""
    kept = getattr(model, "generation_config", None)
    value = dict(kept.to_diff_dict()) if kept is not None else {}
    value["eos_token_id"] = ids
    write_json(folder / "generation_config.json", value)
    file = folder / "config.json"
    if file.is_file():
        config = json.loads(file.read_text("utf-8"))
        text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
        text["eos_token_id"] = ids if len(ids) > 1 else ids[0] if ids else None
        if _is_valid(model, config):
            write_json(file, config)


def _is_valid(model: Any, config: dict[str, Any]) -> bool:
    """Whether the architecture's config class takes these values; a few take one eos id and no list."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(model.config).from_dict(config)
    except (StrictDataclassError, TypeError, ValueError):
        return False
    return True
