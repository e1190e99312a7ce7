"""Contract: over the same pairs our trajectory is that of TRL's `DPOTrainer` and `KTOTrainer`, step by step, and the
loss of one batch that of its CPO (SimPO), ORPO and reward trainers.

Both train the same initial weights on the same rows in the same order with the same settings; TRL gets ids as
columns, so only the training is compared. Ours shares prompts and precomputes the reference, TRL does neither.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from luthier.data.branches import collate_branched
from luthier.fast.engine import attach
from luthier.objective.reference_free import Orpo, Simpo
from tests.support.pairs import pairs, preferences, rated
from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.train.preference_support import tune
from tests.train.support import FULL, LORA, flat, resolved, tuned

STEPS = 6
RATES = {"full": 1e-3, "lora": 3e-2}
METHODS: dict[str, dict[str, Any]] = {"full": FULL, "lora": LORA}


def settings(config, folder, *, batch: int, accumulation: int, rate: float, **more):
    return config(
        output_dir=str(folder), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, seed=0,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=STEPS,
        learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.01, max_grad_norm=1.0,
        optim="adamw_torch_fused", train_sampling_strategy="sequential", logging_steps=1, report_to="none",
        save_strategy="no", max_length=256, disable_tqdm=True, dataloader_pin_memory=False, **more,
    )  # fmt: skip


def as_prepared(trainer_class):
    """The trainer, given a data set that is tokenised already."""

    class Prepared(trainer_class):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    return Prepared


def train_with_trl(trainer_class, config, dataset, model):
    """Logged lines of TRL; the model is trained in place."""
    trainer = as_prepared(trainer_class)(
        model=model, args=config, train_dataset=dataset, processing_class=tiny_tokenizer(pad_is_eos=False)
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def pair_columns(rows):
    from datasets import Dataset

    return Dataset.from_dict({
        "prompt_ids": [list(row.prompt) for row in rows], "chosen_ids": [list(row.answers[0]) for row in rows],
        "rejected_ids": [list(row.answers[1]) for row in rows],
    })  # fmt: skip


def compare(ours, theirs, start, lines, *, metrics, tolerance=5e-5):
    final = flat({name: p for name, p in theirs.named_parameters() if p.requires_grad})
    assert len(lines) == len(ours.losses) == STEPS
    assert float((final - flat(start)).abs().max()) >= 1e-3
    assert float((ours.weights - final).abs().max()) <= tolerance
    assert max(abs(a - line["loss"]) for a, line in zip(ours.losses, lines, strict=True)) <= 1e-5
    assert max(abs(loss - ours.losses[0]) for loss in ours.losses) > 1e-3, "the loss moved"
    mine = [line for line in ours.metrics if "loss" in line]
    for name in metrics:
        for step, (our, their) in enumerate(zip(mine, lines, strict=True)):
            assert our[name] == pytest.approx(their[name], rel=2e-4, abs=2e-5), f"{name} of step {step + 1}"


PAIR_METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "grad_norm",
)  # fmt: skip


@pytest.mark.parametrize("objective", [
    {"name": "dpo", "beta": 0.1}, {"name": "dpo", "beta": 0.3, "loss_type": "ipo"},
    {"name": "dpo", "beta": 0.2, "loss_type": "robust", "label_smoothing": 0.1},
], ids=["sigmoid", "ipo", "robust"])  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_dpo_step_by_step(tmp_path, method, objective):
    from trl import DPOConfig, DPOTrainer

    rows = pairs(48)
    recipe = {
        "method": METHODS[method], "objective": objective, "max_steps": STEPS, "shuffle": False,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": RATES[method],
        "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    }  # fmt: skip
    theirs = copy.deepcopy(tuned(resolved(**recipe)).model)
    ours = tune(tmp_path / "ours", preferences(rows), **recipe)
    start = {name: p.detach().clone() for name, p in theirs.named_parameters() if p.requires_grad}
    assert torch.equal(flat(start), flat(ours.start)), "the same initial weights"
    config = settings(
        DPOConfig, tmp_path / "trl", batch=4, accumulation=2, rate=RATES[method], beta=objective["beta"],
        loss_type=[objective.get("loss_type", "sigmoid")], label_smoothing=objective.get("label_smoothing", 0.0),
        precompute_ref_log_probs=True,
    )  # fmt: skip
    lines = train_with_trl(DPOTrainer, config, pair_columns(rows), theirs)
    compare(ours, theirs, start, lines, metrics=PAIR_METRICS)


@pytest.mark.parametrize("loss_type", ["hinge", "sigmoid_norm", "apo_zero", "apo_down"])
def test_the_other_losses_of_dpo(tmp_path, loss_type):
    from trl import DPOConfig, DPOTrainer

    rows = pairs(48)
    objective = {"name": "dpo", "beta": 0.5, "loss_type": loss_type}
    recipe = {
        "objective": objective, "max_steps": STEPS, "shuffle": False, "per_device_train_batch_size": 8,
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    }  # fmt: skip
    theirs = tiny_model()
    start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    ours = tune(tmp_path / "ours", preferences(rows), **recipe)
    config = settings(
        DPOConfig, tmp_path / "trl", batch=8, accumulation=1, rate=1e-3, beta=0.5, loss_type=[loss_type],
        precompute_ref_log_probs=True,
    )  # fmt: skip
    lines = train_with_trl(DPOTrainer, config, pair_columns(rows), theirs)
    compare(ours, theirs, start, lines, metrics=("rewards/margins", "grad_norm"))


@pytest.mark.parametrize("method", METHODS)
def test_kto_step_by_step(tmp_path, method):
    """One micro-batch a step: only then has TRL the reference point of the whole step."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = rated(48)
    recipe = {
        "method": METHODS[method], "objective": {"name": "kto", "beta": 0.3, "desirable_weight": 1.3},
        "max_steps": STEPS, "shuffle": False, "per_device_train_batch_size": 8, "learning_rate": RATES[method],
        "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    }  # fmt: skip
    theirs = copy.deepcopy(tuned(resolved(**recipe)).model)
    ours = tune(tmp_path / "ours", preferences(rows), **recipe)
    start = {name: p.detach().clone() for name, p in theirs.named_parameters() if p.requires_grad}
    answers = [list(row.answers[0]) for row in rows]
    dataset = Dataset.from_dict({
        "prompt_ids": [list(row.prompt) for row in rows], "completion_ids": answers,
        "KL_completion_ids": [answers[8 * (i // 8) + (i - 1) % 8] for i in range(48)],
        "label": [row.label for row in rows],
    })  # fmt: skip
    config = settings(
        KTOConfig, tmp_path / "trl", batch=8, accumulation=1, rate=RATES[method], beta=0.3, desirable_weight=1.3,
        precompute_ref_log_probs=True,
    )  # fmt: skip
    lines = train_with_trl(KTOTrainer, config, dataset, theirs)
    assert max(line["kl"] for line in lines) > 1e-3, "the reference point matters"
    names = ("rewards/chosen", "rewards/rejected", "kl", "logps/chosen", "grad_norm")
    compare(ours, theirs, start, lines, metrics=names)


def padded(rows, pad=0):
    """A batch as TRL's CPO and ORPO trainers collate it: both sides with the prompt in front and masked."""
    batch: dict[str, torch.Tensor] = {}
    for side, place in (("chosen", 0), ("rejected", 1)):
        ids = [[*row.prompt, *row.answers[place]] for row in rows]
        width = max(map(len, ids))
        labels = [[-100] * len(row.prompt) + list(row.answers[place]) for row in rows]
        batch[f"{side}_input_ids"] = torch.tensor([x + [pad] * (width - len(x)) for x in ids])
        batch[f"{side}_labels"] = torch.tensor([x + [-100] * (width - len(x)) for x in labels])
        batch[f"{side}_attention_mask"] = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids])
    return batch


def text_pairs():
    from datasets import Dataset

    return Dataset.from_dict({"prompt": ["time "] * 2, "chosen": ["year"] * 2, "rejected": ["people"] * 2})


def loss_of_batch(objective, rows):
    engine = attach(tiny_model().eval(), objective=objective)
    sums = engine.loss(collate_branched(rows))
    logged = objective.report({name: float(value) for name, value in sums.sums.items()})
    return float(sums.loss.detach()) / len(rows), logged


def test_simpo_s_loss_is_that_of_trl_s_cpo_trainer(tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    rows = pairs(8)
    config = CPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", loss_type="simpo", beta=2.0,
        simpo_gamma=1.0, cpo_alpha=0.0, label_smoothing=0.1, max_length=256,
    )  # fmt: skip
    trainer = CPOTrainer(
        model=tiny_model().eval(), args=config, train_dataset=text_pairs(), processing_class=tiny_tokenizer()
    )
    theirs, metrics = trainer.get_batch_loss_metrics(trainer.model, padded(rows))
    ours, mine = loss_of_batch(Simpo(beta=2.0, simpo_gamma=1.0, label_smoothing=0.1), rows)
    assert ours == pytest.approx(float(theirs.detach()), abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert mine[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6)


def test_orpo_s_loss_is_trl_s_with_the_nll_of_the_paper(tmp_path):
    """TRL's NLL is over prompt and answer and a mean over all tokens; with equal rows without context both agree."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows = pairs(8)
    config = ORPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", beta=0.4, max_length=256)
    trainer = ORPOTrainer(
        model=tiny_model().eval(), args=config, train_dataset=text_pairs(), processing_class=tiny_tokenizer()
    )
    theirs, metrics = trainer.get_batch_loss_metrics(trainer.model, padded(rows))
    ours, mine = loss_of_batch(Orpo(beta=0.4), rows)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "log_odds_ratio",
                 "log_odds_chosen"):  # fmt: skip
        assert mine[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6)
    assert ours - mine["nll_loss"] == pytest.approx(float(theirs.detach()) - metrics["nll_loss"], abs=1e-5)
    # Where rows are equally long and the prompt is one token, the two means are over the same tokens.
    from dataclasses import replace

    even = [
        replace(row, prompt=row.prompt[:1], answers=[[7 + i, *range(20, 25)], [9, 8]], weights=[[1.0] * 6, [1.0] * 2])
        for i, row in enumerate(rows)
    ]  # fmt: skip
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, padded(even))
    assert loss_of_batch(Orpo(beta=0.4), even)[0] == pytest.approx(float(theirs.detach()), abs=1e-5)
