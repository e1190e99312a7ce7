"""Model folders and short trainings for the tests of `model` and `export`. No network, one thread is enough."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.model.adapters import Tuned, apply_method
from luthier.model.load import load_base
from luthier.model.new_tokens import new_token_ids
from luthier.model.tokenizer import load_tokenizer
from luthier.recipe.schema import MethodSection, ModelSection
from luthier.runtime.device import Device
from tests.support.tiny import tiny_model, tiny_tokenizer

CPU = Device(type="cpu", index=0, name="CPU", memory_bytes=1 << 34, native_bf16=False, reason="tests")


def base_folder(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    """A hub model folder of fixture T."""
    tiny_model(tied=tied, **kwargs).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def section(folder: Path, **kwargs) -> ModelSection:
    return ModelSection(name_or_path=str(folder), **kwargs)


def load(where: ModelSection, *, dtype: str = "float32", quantization: str = "none"):
    return load_base(where, device=CPU, dtype=dtype, quantization=quantization)


def prepare(where: ModelSection, *, seed: int = 1, dtype: str = "float32", **method) -> tuple[Tuned, object]:
    """Base of `where` made trainable by `method`; and its tokenizer."""
    tokenizer = load_tokenizer(where)
    model = load(where, dtype=dtype, quantization="nf4" if method.get("name") == "qlora" else "none")
    ids = new_token_ids(tokenizer, where.new_tokens)
    return apply_method(model, MethodSection(**method), seed=seed, new_token_ids=ids), tokenizer


def some_ids(extra: list[int] | tuple[int, ...] = ()) -> torch.Tensor:
    """Two rows of 24 token ids; `extra` ids stand at the start of each."""
    ids = torch.randint(3, 280, (2, 24), generator=torch.Generator().manual_seed(7))
    if extra:
        ids[:, : len(extra)] = torch.tensor(list(extra))
    return ids


def train(
    tuned: Tuned, *, steps: int = 3, learning_rate: float = 0.01, extra: list[int] | tuple[int, ...] = ()
) -> list[float]:
    """A few AdamW steps on fixed tokens; returns the losses."""
    model = tuned.model
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    ids = some_ids(extra)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def logits(model, ids: torch.Tensor | None = None) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=some_ids() if ids is None else ids, use_cache=False).logits.float()


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}
