"""Contract: on the same batches our trajectory is that of TRL's `SFTTrainer`.

Both train the same initial weights on the same rows in the same order with the same settings.
TRL gets ids, labels and (packed) document lengths as columns, so only the training is compared.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_tokenizer
from tests.train.support import FULL, LORA, Data, data, examples, flat, resolved, train, tuned

STEPS = 6
SPLITS = {"8x1": (8, 1), "2x4": (2, 4), "1x8": (1, 8)}
METHODS: dict[str, dict[str, Any]] = {"full": FULL, "lora": LORA}
RATES = {"full": 1e-3, "lora": 5e-3}


def prepared(packed: bool) -> Data:
    return data(examples(256 if packed else 48, high=40 if packed else 60), packed=packed)


def columns(source: Data):
    """The sequences as TRL wants them."""
    from datasets import Dataset

    rows: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for sequence in source.packs:
        members = [source.train[index] for index in sequence.examples]
        rows["input_ids"].append([token for row in members for token in row.ids])
        rows["labels"].append(
            [token if weight else -100 for row in members for token, weight in zip(row.ids, row.weights, strict=True)]
        )
        rows["seq_lengths"].append([len(row) for row in members])
    return Dataset.from_dict(rows)


def train_with_trl(folder, source: Data, model, *, packed: bool, batch: int, accumulation: int, rate: float):
    """(losses, gradient norms) of TRL; the model is trained in place."""
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=0,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=STEPS,
        learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.01, max_grad_norm=1.0,
        optim="adamw_torch_fused", train_sampling_strategy="sequential", logging_steps=1, report_to="none",
        save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True}, padding_free=packed, packing=packed,
        max_length=128, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=columns(source), processing_class=tiny_tokenizer(pad_is_eos=False)
    )
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    return [line["loss"] for line in logged], [line["grad_norm"] for line in logged]


def compare(tmp_path, method: str, packed: bool, split: str) -> None:
    batch, accumulation = SPLITS[split]
    source = prepared(packed)
    recipe = resolved(
        method=METHODS[method], max_steps=STEPS, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, shuffle=False, learning_rate=RATES[method],
        lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.01,
    )  # fmt: skip
    theirs = copy.deepcopy(tuned(recipe).model)
    ours = train(tmp_path / "ours", source, recipe=recipe)
    start = {name: p.detach().clone() for name, p in theirs.named_parameters() if p.requires_grad}
    assert torch.equal(flat(start), flat(ours.start)), "the same initial weights"
    losses, norms = train_with_trl(
        tmp_path / "trl", source, theirs, packed=packed, batch=batch, accumulation=accumulation, rate=RATES[method]
    )
    final = flat({name: p for name, p in theirs.named_parameters() if p.requires_grad})
    assert len(losses) == STEPS
    assert float((final - flat(start)).abs().max()) >= 1e-3
    assert ours.moved >= 1e-3
    assert float((ours.weights - final).abs().max()) <= 5e-5
    assert max(abs(a - b) for a, b in zip(ours.losses, losses, strict=True)) <= 1e-5
    assert [line["grad_norm"] for line in ours.metrics] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_two_times_four(tmp_path, method, packed):
    compare(tmp_path, method, packed, "2x4")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["8x1", "1x8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_other_splits(tmp_path, method, packed, split):
    compare(tmp_path, method, packed, split)
