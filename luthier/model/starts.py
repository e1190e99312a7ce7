"""Adapters that start with the main part of each weight (PiSSA, OLoRA), and how they are saved.

With W the base, s the scale of the adapter and A0, B0 what PEFT makes of W:

    in training       W_res = W - s B0 A0 frozen, A and B start as A0 and B0: at step 0 the model is the base
    on disk           [A; A0], [B, -B0]: s (B A - B0 A0) on the untouched W is the same model, a plain adapter of
                      rank 2r (as PEFT's `path_initial_model_for_weight_conversion`)

A0 and B0 are rounded to the type of the model before W_res is made of them, so only the rounding of W_res itself
separates the trained model from the saved one: at most 2^-8 of each element of it in bfloat16, 2^-24 in float32.
They are kept in the run folder: a resumed run takes them from there and makes nothing anew.

Sources: PiSSA arXiv:2404.02948, OLoRA arXiv:2406.01775; formulas `peft.tuners.lora.layer`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.runtime.atomic import atomic_folder, write_json
from luthier.runtime.console import progress
from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_bytes, hash_file, hash_json

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

__all__ = ["Start", "as_plain_adapter", "keep_start", "start_of", "take_from_base"]

_TENSORS, _RECORD = "start.safetensors", "start.json"
Factors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Start:
    """What was taken out of the base."""

    factors: Factors
    """`MODULE.lora_A` (r, K) and `MODULE.lora_B` (N, r) of each adapted module; in the model's type, on the CPU."""
    identity: Mapping[str, Any]
    """Of what it was made: start, rank, scale, seed, hash of the base."""

    def fingerprint(self) -> str:
        """Hash of every value."""
        values = {name: tensor.contiguous().view(torch.uint8).numpy() for name, tensor in self.factors.items()}
        return hash_json([[name, hash_bytes(values[name].tobytes())] for name in sorted(values)])


def start_of(model: Any) -> Start | None:
    """What was taken out of the base of a model that `take_from_base` prepared; None for other models.

    With one, the model without its adapter is not the base.
    """
    found = getattr(model, "luthier_start", None)
    return found if isinstance(found, Start) else None


def take_from_base(model: PeftModel, name: str, *, seed: int, base: str | None, folder: Path | None) -> Start:
    """Give each adapter the main part of its weight and leave the rest in the base.

    Args:
        model: With fresh adapters, in the type it is trained in.
        name: `pissa`, `pissa_niter_N` or `olora`.
        seed: Of the random SVD; the global random state is neither read nor moved.
        base: Hash of the base's files; None: not known, so nothing kept can be trusted.
        folder: Where an earlier session of this run kept its start; it is used if it was made of the same.

    Raises:
        RecipeError: the rank is larger than a side of some matrix.
    """
    adapter = model.active_adapter
    layers = dict(_linear_layers(model, adapter))
    config = model.peft_config[adapter]
    _require_rank(layers, int(config.r))
    scales = sorted({float(layer.scaling[adapter]) for layer in layers.values()})
    identity = {
        "init_lora_weights": name, "r": int(config.r), "scales": scales, "seed": seed, "base": base,
        "modules": hash_json(sorted(layers)), "dtype": str(model.dtype),
    }  # fmt: skip
    kept = _read(folder, identity) if folder is not None and base is not None else None
    devices = sorted({layer.get_base_layer().weight.device.index or 0 for layer in layers.values()
                      if layer.get_base_layer().weight.is_cuda})  # fmt: skip
    factors: Factors = {}
    with torch.random.fork_rng(devices=devices), progress(name, len(layers), "matrices") as bar, torch.no_grad():
        torch.manual_seed(seed)
        for module, layer in layers.items():
            a, b = _split(layer, adapter, name, kept, module)
            factors[f"{module}.lora_A"], factors[f"{module}.lora_B"] = a, b
            bar.advance()
    start = Start(factors, identity)
    model.luthier_start = start
    return start


def _split(layer: Any, adapter: str, name: str, kept: Factors | None, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """W_res into the base, A0 and B0 into the adapter; returns copies of these two."""
    weight = layer.get_base_layer().weight
    whole = weight.data.clone()  # PEFT changes it in place, or replaces it
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if kept is not None:
        a.data, b.data = (kept[f"{module}.{side}"].to(whole.device) for side in ("lora_A", "lora_B"))
    elif name == "olora":
        layer.olora_init(adapter)
    else:
        layer.pissa_init(adapter, name)
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    a.data, b.data = a.data.to(whole.dtype).contiguous(), b.data.to(whole.dtype).contiguous()
    product = float(layer.scaling[adapter]) * (b.data.float() @ a.data.float())
    weight.data = (whole.float() - (product.T if layer.fan_in_fan_out else product)).to(whole.dtype)
    return a.data.cpu().clone(), b.data.cpu().clone()


def as_plain_adapter(
    state: Mapping[str, torch.Tensor], config: LoraConfig, start: Start
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """The trained adapter as one of rank 2r for the untouched base.

    Adapters on embeddings, which take nothing from the base, get r rows and columns of zeros.

    Args:
        state: Trained tensors under PEFT's names, fp32.
        config: Of the trained adapter; not changed.
        start: What was taken out of the base.
    """
    plain = dict(state)
    for name, tensor in state.items():
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf == "lora_A":
            plain[name] = torch.cat([tensor, start.factors[f"{module}.lora_A"].to(tensor.dtype)], dim=0)
        elif leaf == "lora_B":
            plain[name] = torch.cat([tensor, -start.factors[f"{module}.lora_B"].to(tensor.dtype)], dim=1)
        elif leaf in ("lora_embedding_A", "lora_embedding_B"):
            plain[name] = torch.cat([tensor, torch.zeros_like(tensor)], dim=0 if leaf.endswith("A") else 1)
    changed = copy.deepcopy(config)
    changed.init_lora_weights = True
    changed.r = 2 * config.r
    # alpha / r, or alpha / sqrt(r), stays what it was.
    changed.lora_alpha = config.lora_alpha * (math.sqrt(2.0) if config.use_rslora else 2)
    return plain, changed


def keep_start(start: Start, folder: Path) -> None:
    """Write what a resumed run needs, unless it is there already; complete or absent.

    Raises:
        EnvironmentProblem: disk full, not writable.
    """
    from safetensors.torch import save_file

    if _read(folder, start.identity) is not None:
        return
    with atomic_folder(folder) as temporary:
        save_file(start.factors, temporary / _TENSORS)
        write_json(temporary / _RECORD, {"identity": dict(start.identity), "hash": hash_file(temporary / _TENSORS)})


def _read(folder: Path, identity: Mapping[str, Any]) -> Factors | None:
    """Factors of exactly this identity, byte for byte as they were written; None if there are none."""
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
        if record["identity"] != dict(identity) or record["hash"] != hash_file(folder / _TENSORS):
            return None
        return dict(load_file(folder / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _linear_layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Adapted modules with a matrix, by name; embeddings are left out."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield name, module


def _require_rank(layers: Mapping[str, Any], rank: int) -> None:
    sides = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
    small = [name for name, side in sides.items() if side < rank]
    if small:
        short = small[0].removeprefix("base_model.model.")
        raise RecipeError(
            code="M329",
            message=f"`method.r` is {rank}, but {len(small)} adapted matrices have a smaller side "
            f"({short}: {sides[small[0]]}), so they have no {rank} main directions",
            hint=f"at most {min(sides.values())}, or `method.init_lora_weights: true`",
        )
