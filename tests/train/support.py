"""Runs of `fit` on the tiny model, and an independent way to compute losses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.data.pack import one_by_one, pack
from luthier.data.types import Example, Pack, RowRef
from luthier.model.adapters import apply_method
from luthier.recipe.resolve import Resolved
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.env import read_env
from luthier.train.loop import fit
from tests.support.tiny import tiny_model, tiny_tokenizer

VOCABULARY = 600


@dataclass
class Data:
    """What `prepare` hands to `fit`."""

    train: list[Example]
    validation: list[Example]
    packs: list[Pack]
    manifest: dict[str, Any] = field(default_factory=dict)


def examples(n: int = 48, *, seed: int = 0, low: int = 6, high: int = 60, file: str = "rows.jsonl") -> list[Example]:
    """Rows with a wide spread of lengths and of trained shares: what makes normalisation bugs visible."""
    chooser = random.Random(seed)
    rows = []
    for line in range(n):
        length = chooser.randint(low, high)
        prompt = chooser.randint(1, length - 2)
        ids = [chooser.randrange(3, VOCABULARY) for _ in range(length)]
        rows.append(Example(ids=ids, weights=[0.0] * prompt + [1.0] * (length - prompt), ref=RowRef(file, line + 1)))
    return rows


def data(rows: list[Example] | None = None, *, packed: bool = False, validation: int = 0, capacity: int = 128) -> Data:
    """Prepared data; packs of at most `capacity` tokens, or one row each."""
    train = examples() if rows is None else rows
    lengths = [len(row) for row in train]
    held_out = examples(validation, seed=99, file="validation.jsonl") if validation else []
    return Data(train, held_out, pack(lengths, capacity) if packed else one_by_one(lengths))


LORA = {"name": "lora", "r": 4, "lora_alpha": 8.0}
FULL = {"name": "full"}
SPECTRUM = {"name": "spectrum"}
UNFROZEN = (
    "^lm_head.weight$", "^model.embed_tokens.weight$", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj",
    "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.q_proj",
)  # fmt: skip
"""As a scan might choose: some matrices of a stack and not others."""


def resolved(
    *,
    method: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    strategy: str = "ddp",
    reshard: bool = True,
    served: bool = False,
    shared: int = 1,
    model: dict[str, Any] | None = None,
    offload: str = "none",
    copies: int = 1,
    **train: Any,
) -> Resolved:
    """A resolved recipe; keyword arguments are keys of `train`."""
    settings = {
        "learning_rate": 1e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "tokens_per_step": 1000, "gradient_checkpointing": False, "eval_steps": None, "save_steps": None,
        "warmup_steps": 0, "lr_scheduler_type": "constant", "shuffle": True, **train,
    }  # fmt: skip
    recipe = Recipe(
        model={"name_or_path": "tiny", "dtype": "float32", "quantization": "none", **(model or {})},
        data={"train": [{"path": "rows.jsonl"}], "max_length": 128},
        method=method or FULL,
        objective=objective or {},
        train=settings,
        distributed={
            "strategy": strategy,
            "reshard_after_forward": reshard,
            "sequence_parallel_size": shared,
            "offload": offload,
            "dp_replicate_size": copies,
        },
        export={"checkpoints": served},
        output_dir="unused",
    )
    return Resolved(recipe=recipe, derived=())


def tuned(recipe: Resolved, *, model: Any = None, new_token_ids: Sequence[int] = ()) -> Any:
    """The tiny model (or `model`) prepared by the method of the recipe."""
    base = tiny_model() if model is None else model
    unfrozen = UNFROZEN if recipe.recipe.method.name == "spectrum" else ()
    return apply_method(
        base, recipe.recipe.method, seed=recipe.recipe.train.seed, unfrozen=unfrozen, new_token_ids=new_token_ids
    )


@dataclass
class Run:
    """A finished run: its record, its weights, its metric lines."""

    result: Any
    model: Any
    folder: RunFolder
    start: dict[str, torch.Tensor]

    @property
    def weights(self) -> torch.Tensor:
        """All trained weights as one vector."""
        return flat({name: p for name, p in self.model.named_parameters() if p.requires_grad})

    @property
    def moved(self) -> float:
        """Largest change of a trained weight."""
        return float((self.weights - flat(self.start)).abs().max())

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.folder.read_lines("metrics.jsonl") if "loss" in line]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Metric lines without what depends on the clock."""
        clock = {"seconds", "tokens_per_second"}
        return [{k: v for k, v in line.items() if k not in clock} for line in self.folder.read_lines("metrics.jsonl")]


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(tensor).detach().double().flatten() for tensor in tensors.values()])


def whole(tensor: Any) -> torch.Tensor:
    """The tensor, put together where it is in shards; called by all processes."""
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distance(one: Run, other: Run) -> float:
    """d of the catalogue: largest difference of a trained weight."""
    return float((one.weights - other.weights).abs().max())


def train(
    folder: Path, prepared: Data | None = None, *, recipe: Resolved | None = None, model: Any = None,
    restart: bool = False, fingerprint: dict[str, Any] | None = None, calibrate: bool | None = None,
    reference_cache: Path | None = None, new_token_ids: Sequence[int] = (), **settings: Any,
) -> Run:  # fmt: skip
    """Run `fit` in `folder`; keyword arguments as for `resolved`."""
    recipe = recipe or resolved(**settings)
    prepared = prepared or data()
    subject = tuned(recipe, model=model, new_token_ids=new_token_ids)
    start = {name: p.detach().clone() for name, p in subject.model.named_parameters() if p.requires_grad}
    run = RunFolder(folder)
    if read_env().rank == 0:
        run.create()
    result = fit(
        subject, prepared, recipe, run=run, tokenizer=tiny_tokenizer(),
        fingerprint={"data": "d0", "base": "b0", "train": recipe.recipe.train.model_dump(mode="json")}
        if fingerprint is None else fingerprint,
        restart=restart, calibrate=calibrate, reference_cache=reference_cache,
    )  # fmt: skip
    return Run(result, subject.model, run, start)


def reference_nll(model: Any, row: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed NLL and summed mean(-log p) of one row's trained tokens, by the model's own forward alone.

    Written from the definition; shares no code with the engine.
    """
    ids = torch.tensor([list(row.ids)])
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    nll = torch.zeros((), dtype=torch.float64)
    smooth = torch.zeros((), dtype=torch.float64)
    for position in range(1, len(row.ids)):
        if row.weights[position]:
            nll = nll - row.weights[position] * log_probabilities[position - 1, row.ids[position]]
            smooth = smooth - row.weights[position] * log_probabilities[position - 1].mean()
    return nll, smooth
