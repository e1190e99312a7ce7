"""Trainers for the benchmarks: the product's own, and two plain ones to compare it with.

fast     `luthier.train.setup.make_trainer`, as a run makes it
plain    the same engine with every replacement switched off: modules run as transformers and PEFT wrote them,
         attention and loss stay packed
hf       `PlainEngine`: padded rows, transformers' own forward with all logits, cross-entropy in fp32; nothing of
         `luthier.fast` in it
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from luthier.data.batch import Batch
from luthier.fast.engine import LossSums, Part
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import Recipe

IMPLEMENTATIONS = ("fast", "plain", "hf")


def make_recipe(
    *, method: dict[str, Any], train: dict[str, Any], sequences: int, max_steps: int, max_length: int = 1024,
    quantization: str = "none", dequantize_base: bool = False, micro_batches: int = 1, seed: int = 0,
    objective: dict[str, Any] | None = None, strategy: str = "ddp", reshard: bool = True, offload: str = "none",
    shared: int = 1,
) -> Recipe:  # fmt: skip
    """A resolved recipe: nothing in it is `auto` that a trainer reads.

    Args:
        sequences: packs of a step; `micro_batches` share them.
        train: further keys of `train`; they win.
    """
    model: dict[str, Any] = {"name_or_path": "random", "quantization": quantization}
    if quantization == "nf4":
        model["dequantize_base"] = dequantize_base
    document = {
        "model": model, "data": {"train": [{"path": "none"}], "max_length": max_length}, "method": method,
        "objective": objective or {},
        "train": {
            "learning_rate": 2e-4, "lr_scheduler_type": "constant", "max_steps": max_steps, "seed": seed,
            "per_device_train_batch_size": sequences // micro_batches, "gradient_accumulation_steps": micro_batches,
            "gradient_checkpointing": False, "gradient_checkpointing_layers": None, **train,
        },
        "distributed": {
            "strategy": strategy, "offload": offload, "sequence_parallel_size": shared,
            **({} if reshard else {"reshard_after_forward": False}),
        },
        "output_dir": "none",
    }  # fmt: skip
    return recipe_from_dict(document, origin="benchmark")


def recompute_keys(policy: str, layers: int | None, *, keep_attention: bool = False) -> dict[str, Any]:
    """`train` keys for a recompute policy: none, selective, layer (of the first `layers` layers)."""
    value = {"none": False, "selective": "selective", "layer": True}[policy]
    return {
        "gradient_checkpointing": value, "gradient_checkpointing_layers": layers,
        "gradient_checkpointing_attention": not keep_attention,
    }  # fmt: skip


def make(implementation: str, accelerator: Any, model: Any, recipe: Recipe, *, total_steps: int) -> Any:
    """A `Trainer` of the named implementation over a model that `apply_method` prepared."""
    if implementation == "fast":
        from luthier.train.setup import make_trainer

        return make_trainer(accelerator, model, recipe, total_steps=total_steps)
    if recipe.train.gradient_checkpointing is True:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return _assemble(accelerator, model, _plain_engine(implementation, model), recipe, total_steps=total_steps)


def _plain_engine(implementation: str, model: Any) -> Any:
    if implementation == "hf":
        return PlainEngine(model)
    from luthier.fast.engine import attach
    from luthier.fast.settings import EngineSettings

    return attach(model, settings=EngineSettings(replace_layers=False))


def _assemble(accelerator: Any, model: Any, engine: Any, recipe: Recipe, *, total_steps: int) -> Any:
    """What `make_trainer` does, around an engine that is already there."""
    from luthier.train.masters import Weights
    from luthier.train.optim import make_optimizer
    from luthier.train.schedule import Schedule, warmup_steps
    from luthier.train.step import Trainer

    train = recipe.train
    model.train()
    weights = Weights(model)
    optimizer = make_optimizer(weights.tensors, train, learning_rate=float(train.learning_rate))
    schedule = Schedule(
        optimizer, name=train.lr_scheduler_type, warmup=warmup_steps(train, total_steps), total_steps=total_steps
    )
    return Trainer(
        accelerator=accelerator, engine=engine, wrapper=engine.distribute(lambda module: module), weights=weights,
        optimizer=optimizer, schedule=schedule, max_grad_norm=train.max_grad_norm,
        label_smoothing=recipe.objective.label_smoothing, seed=train.seed,
    )  # fmt: skip


class _PlainLoss(nn.Module):
    """Padded rows through the whole model; sums as `luthier.fast` defines them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, label_smoothing: float = 0.0, kl: float = 0.0) -> tuple[torch.Tensor, Any]:
        ids = pad_sequence(list(batch.input_ids.split(batch.doc_lengths)), batch_first=True, padding_value=0)
        lengths = torch.tensor(batch.doc_lengths, device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        rows = batch.doc_ids.long() * ids.shape[1] + batch.position_ids
        chosen = logits.flatten(0, 1)[rows[batch.source_index]]
        exact = chosen if chosen.dtype == torch.float64 else chosen.float()
        losses = cross_entropy(exact, batch.target_ids, reduction="none", label_smoothing=label_smoothing)
        correct = (chosen.argmax(dim=-1) == batch.target_ids).sum()
        return (losses * batch.target_weights).sum(), {"correct": correct}


class PlainEngine:
    """The interface of `luthier.fast.engine.Engine` over plain transformers."""

    layout = "padded"
    report = (Part("everything", "transformers' own forward, documents padded to a rectangle", "reference"),)

    def __init__(self, model: nn.Module) -> None:
        self.module = _PlainLoss(model)

    def loss(self, batch: Batch, *, label_smoothing: float = 0.0, kl: float = 0.0) -> LossSums:
        """Sums over the batch's targets."""
        loss, sums = self.module(batch, label_smoothing, kl)
        return LossSums(loss=loss, weight_sum=batch.weight_sum, sums=sums)

    def distribute(self, wrap: Any) -> nn.Module:
        """One process only."""
        wrapped: nn.Module = wrap(self.module)
        return wrapped

    def fit_frozen_base(self, _: Any) -> None:
        """It has no fp8 base."""

    def detach(self) -> None:
        """Nothing was changed."""
