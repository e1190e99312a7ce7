"""Contract: each tensor learns at its own peak rate, all follow one schedule, and a resumed run keeps them."""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.fast.engine import attach
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import RecipeError
from luthier.train import rates, running, updates
from luthier.train.adamw8 import AdamW8
from luthier.train.master_adamw import MasterAdamW
from luthier.train.masters import Weights
from luthier.train.optim import make_optimizer, parameter_groups
from luthier.train.rates import peak_rates, rate_lines
from luthier.train.schedule import Schedule
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, data, distance, examples, flat, resolved, train, tuned

RATE, RATIO = 2e-3, 8.0
ALL = {**LORA, "use_dora": True, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}
PLUS = {"loraplus_lr_ratio": RATIO, "learning_rate": RATE}


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def rates_of(method, *, model=None, **section) -> tuple[dict[str, float], dict[str, torch.nn.Parameter]]:
    subject = tuned(resolved(method=method, **section), model=model).model
    names = trained(subject)
    return peak_rates(subject, names, TrainSection(**section), rate=RATE), names


# -- LoRA+


@pytest.mark.parametrize("method", [LORA, ALL, {**LORA, "target_modules": ["q_proj", "embed_tokens"]}],
                         ids=["lora", "dora and tables", "adapter on embeddings"])  # fmt: skip
def test_groups_are_those_of_peft(method):
    """Every tensor has the rate that `create_loraplus_optimizer` gives it."""
    from peft.optimizers import create_loraplus_optimizer

    model = tuned(resolved(method=method)).model
    names = trained(model)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_lr_embedding=3e-5
    )
    expected = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    section = TrainSection(loraplus_lr_ratio=RATIO, loraplus_lr_embedding=3e-5)
    ours = peak_rates(model, names, section, rate=RATE)
    assert {name: expected[id(tensor)] for name, tensor in names.items()} == ours
    assert len(set(ours.values())) >= 2


def theirs_on_our_batches(model, source, *, steps: int, batch: int, decay: float) -> list[float]:
    """Plain PEFT: its LoRA+ optimizer, its forward pass, torch's clipping, the linear schedule; the same rows."""
    from peft.optimizers import create_loraplus_optimizer
    from transformers import get_scheduler

    from tests.train.support import reference_nll

    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=decay
    )
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=steps)
    losses = []
    model.train()
    for step in range(steps):
        rows = source.train[step * batch : (step + 1) * batch]
        sums = [reference_nll(model, row)[0] for row in rows]
        loss = torch.stack(sums).sum() / sum(sum(row.weights[1:]) for row in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def plus_against_peft(tmp_path):
    source, steps = data(), 6
    recipe = resolved(
        method=LORA, max_steps=steps, shuffle=False, weight_decay=0.01, lr_scheduler_type="linear", warmup_steps=1,
        **PLUS,
    )  # fmt: skip
    theirs = copy.deepcopy(tuned(recipe).model)
    ours = train(tmp_path, source, recipe=recipe)
    losses = theirs_on_our_batches(theirs, source, steps=steps, batch=8, decay=0.01)
    return ours, flat(trained(theirs)), losses


def test_the_trajectory_is_that_of_peft(tmp_path):
    ours, final, losses = plus_against_peft(tmp_path)
    assert ours.moved > 1e-2
    assert float((ours.weights - final).abs().max()) <= 5e-5
    assert max(abs(a - b) for a, b in zip(ours.losses, losses, strict=True)) <= 1e-5


def test_planted_ratio_on_a_is_caught(tmp_path, monkeypatch):
    """The bug: A matrices get the large rate, B matrices the small one."""

    def swapped(name, tensor, section, rate):
        return rate * section.loraplus_lr_ratio if "lora_A" in name else rate

    monkeypatch.setattr(rates, "_loraplus", swapped)
    ours, final, _ = plus_against_peft(tmp_path)
    assert float((ours.weights - final).abs().max()) > 1e-3


# -- tables, layers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", [FULL, ALL, {"name": "freeze", "trainable": ["embed_tokens", "norm"]}],
                         ids=["full", "modules_to_save", "freeze"])  # fmt: skip
def test_embeddings_and_head_have_their_own_rate_and_no_other_tensor(method, tied):
    found, names = rates_of(method, model=tiny_model(tied=tied), embedding_learning_rate=1e-5)
    tables = {name for name in names if "embed_tokens" in name or "lm_head" in name}
    assert {name for name, rate in found.items() if rate == 1e-5} == tables
    assert {rate for name, rate in found.items() if name not in tables} == {RATE}


def test_a_tied_head_is_one_tensor_in_one_group():
    """The bug this guards against: the tensor in two groups steps twice (torch refuses that, too)."""
    model = tiny_model(tied=True)
    names = trained(model)
    found = peak_rates(model, names, TrainSection(embedding_learning_rate=1e-5), rate=RATE)
    groups = parameter_groups(names, 0.1, found)
    owners = [id(p) for group in groups for p in group["params"]]
    assert len(owners) == len(set(owners)) == len(names)
    assert [group["lr"] for group in groups if any(p is model.lm_head.weight for p in group["params"])] == [1e-5]


def test_new_token_rows_are_embeddings():
    from luthier.model.adapters import apply_method
    from luthier.recipe.schema import MethodSection

    model = apply_method(tiny_model(), MethodSection(**LORA), seed=0, new_token_ids=[5, 6]).model
    found = peak_rates(model, trained(model), TrainSection(embedding_learning_rate=1e-5), rate=RATE)
    rows = [name for name, rate in found.items() if rate == 1e-5]
    assert len(rows) == 2
    assert all("trainable_tokens" in name for name in rows)


def test_a_rate_for_frozen_tables_is_refused():
    with pytest.raises(RecipeError) as caught:
        rates_of({"name": "freeze", "last_n_layers": 1}, embedding_learning_rate=1e-5)
    assert caught.value.problems[0].code == "T475"


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_each_layer_learns_slower_the_lower_it_is(method):
    found, _ = rates_of(method, model=tiny_model(), layerwise_lr_decay=0.5)
    assert {rate for name, rate in found.items() if ".layers.1." in name} == {RATE}
    assert {rate for name, rate in found.items() if ".layers.0." in name} == {RATE * 0.5}
    if method is FULL:
        assert found["model.embed_tokens.weight"] == RATE * 0.25
        assert found["lm_head.weight"] == found["model.norm.weight"] == RATE


def test_plus_and_decay_multiply():
    found, _ = rates_of(LORA, layerwise_lr_decay=0.5, loraplus_lr_ratio=4.0)
    low_b = {rate for name, rate in found.items() if ".layers.0." in name and "lora_B" in name}
    assert low_b == {RATE * 4.0 * 0.5}


def test_the_rates_are_told_only_where_they_differ():
    found, names = rates_of(LORA, loraplus_lr_ratio=RATIO)
    lines = rate_lines(names, found)
    assert [line.split(":")[0] for line in lines] == ["learning rate 0.016", "learning rate 0.002"]
    assert rate_lines(names, dict.fromkeys(names, RATE)) == []


# -- the optimizer


@pytest.mark.parametrize(
    "optim", ["adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor", "sgd", "muon", "rmsprop"]
)
def test_every_group_moves_by_its_own_rate(optim):
    """A group at twice the rate moves its first step twice as far."""
    start = torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    tensors = {name: torch.nn.Parameter(start.clone()) for name in ("slow.weight", "fast.weight")}
    section = TrainSection(optim=optim)
    optimizer = make_optimizer(tensors, section, learning_rate=1e-3, rates={"slow.weight": 1e-3, "fast.weight": 2e-3})
    for tensor in tensors.values():
        tensor.grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    slow, fast = ((tensor.detach() - start).double() for tensor in tensors.values())
    assert float(slow.abs().max()) > 1e-6
    assert torch.allclose(fast, 2 * slow, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("kind", [MasterAdamW, AdamW8])
def test_our_own_kernels_take_the_rate_of_each_group(kind):
    """`step_with` over bf16 weights and their masters: twice the rate, twice the first step."""
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(80, 64, bias=False) for name in ("slow", "fast")})
    layers["fast"].load_state_dict(layers["slow"].state_dict())
    weights = Weights(layers.to(torch.bfloat16))
    start = {name: tensor.detach().clone() for name, tensor in weights.tensors.items()}
    groups = parameter_groups(weights.tensors, 0.0, {"slow.weight": 1e-3, "fast.weight": 2e-3})
    optimizer = kind(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    weights.begin(passes=1, processes=1)
    for parameter in layers.parameters():
        parameter.grad = torch.randn(64, 80, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    weights.apply(optimizer, scale=1.0)
    slow, fast = ((weights.tensors[f"{name}.weight"] - start[f"{name}.weight"]).detach() for name in ("slow", "fast"))
    assert float(slow.abs().max()) > 5e-4
    assert torch.allclose(fast, 2 * slow, rtol=1e-3, atol=1e-7)


def test_the_schedule_keeps_the_ratio_of_the_groups():
    names = trained(tuned(resolved(method=LORA)).model)
    found = {name: RATE * (RATIO if "lora_B" in name else 1.0) for name in names}
    optimizer = make_optimizer(names, TrainSection(), learning_rate=RATE, rates=found)
    schedule = Schedule(optimizer, name="cosine", warmup=2, total_steps=10)
    for step in range(10):
        told = schedule.set(step)
        assert told == pytest.approx(schedule.rate(step))
        by_rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, tensor in names.items():
            assert by_rate[id(tensor)] == pytest.approx(told * (RATIO if "lora_B" in name else 1.0), rel=1e-12)


class Crash(Exception):
    """Stands for a kill between two steps."""


def cut_and_resumed(tmp_path, monkeypatch, *, validation: int = 0, **settings):
    """A run that nobody stopped, and a function that resumes one which died before its fourth step."""
    rows = data(examples(24), validation=validation)
    common = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "save_steps": 1, **settings}
    whole = train(tmp_path / "whole", rows, **common)
    real = running.update

    def dies(trainer, micro_batches, *, step, stop_requested):
        if step == 3:
            raise Crash
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", dies)
    with pytest.raises(Crash):
        train(tmp_path / "cut", rows, **common)
    monkeypatch.setattr(running, "update", real)
    return whole, lambda: train(tmp_path / "cut", rows, **common)


MANY = {"method": ALL, **PLUS, "embedding_learning_rate": 1e-4, "layerwise_lr_decay": 0.7,
        "lr_scheduler_type": "cosine", "warmup_steps": 2}  # fmt: skip


def test_a_resumed_run_keeps_every_rate(tmp_path, monkeypatch):
    whole, resume = cut_and_resumed(tmp_path, monkeypatch, **MANY)
    resumed = resume()
    assert resumed.result.resumed_from == 3
    assert distance(whole, resumed) == 0.0
    assert whole.metrics == resumed.metrics


def test_planted_rates_lost_on_resume_are_caught(tmp_path, monkeypatch):
    """The bug: a resumed run makes its groups without their rates."""
    whole, resume = cut_and_resumed(tmp_path, monkeypatch, **MANY)
    monkeypatch.setattr(updates, "peak_rates", lambda model, tensors, section, *, rate: dict.fromkeys(tensors, rate))
    assert distance(whole, resume()) > 1e-5


def test_masters_of_bf16_weights_learn_at_the_rates_of_their_names():
    model = tuned(resolved(method=LORA), model=tiny_model().to(torch.bfloat16)).model
    engine = attach(model)
    try:
        weights = Weights(model)
        found = peak_rates(model, weights.tensors, TrainSection(loraplus_lr_ratio=RATIO), rate=RATE)
        optimizer = make_optimizer(weights.tensors, TrainSection(), learning_rate=RATE, rates=found)
        by_rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {by_rate[id(weights.masters[name])] for name in weights.live if "lora_B" in name} == {RATE * RATIO}
    finally:
        engine.detach()
