"""Contract: optimizers by name; norms, biases and vectors never decay; state survives a round trip exactly."""

from __future__ import annotations

import pytest
import torch

from luthier.recipe.schema import TrainSection
from luthier.train.optim import decays, make_optimizer
from luthier.train.optim_state import optimizer_state, restore_optimizer
from tests.support.tiny import tiny_model
from tests.train.support import data, examples, resolved, train

NAMES = ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adamw_8bit"]


def small(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (64, 80), "layer.bias": (64,), "norm.weight": (64,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def make(name: str, tensors, **settings) -> torch.optim.Optimizer:
    section = TrainSection(optim=name, **settings)
    return make_optimizer(tensors, section, learning_rate=1e-2)


def give_gradients(tensors, seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for tensor in tensors.values():
        tensor.grad = torch.randn(tensor.shape, generator=generator)


def test_norms_biases_and_vectors_do_not_decay():
    names = dict(tiny_model(attention_bias=True).named_parameters())
    with_decay = {name for name, tensor in names.items() if decays(name, tensor)}
    without = names.keys() - with_decay
    assert without == {name for name in names if "norm" in name or name.endswith("bias")}
    assert not decays("model.q_norm.weight", torch.zeros(2, 2))
    assert not decays("x.lora_magnitude_vector.default.weight", torch.zeros(4))
    assert decays("x.lora_A.default.weight", torch.zeros(2, 2))
    assert decays("normalizer_free.proj.weight", torch.zeros(2, 2)) is True


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_decay_moves_matrices_by_lr_times_decay_times_weight(tmp_path, optim):
    """B19, over one real step."""
    start = {name: p.detach().clone() for name, p in tiny_model().named_parameters()}
    runs = [train(tmp_path / str(d), max_steps=1, weight_decay=d, optim=optim) for d in (0.0, 0.5)]
    plain, decayed = (dict(run.model.named_parameters()) for run in runs)
    for name, tensor in start.items():
        if "norm" in name:
            assert torch.equal(plain[name], decayed[name])
        else:
            expected = 1e-3 * 0.5 * tensor
            difference = (plain[name] - decayed[name]).double()
            assert torch.allclose(difference, expected.double(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip_exactly(name):
    """Two optimizers, the second restored from the first's state, must go the same way."""
    one = small()
    first = make(name, one)
    for step in range(3):
        give_gradients(one, step)
        first.step()
    held, numbers = optimizer_state(first, one)
    held = {key: value.clone() for key, value in held.items()}
    two = {key: torch.nn.Parameter(value.detach().clone()) for key, value in one.items()}
    second = make(name, two)
    restore_optimizer(second, two, held=held, numbers=numbers)
    for step in range(3, 6):
        for tensors, optimizer in ((one, first), (two, second)):
            give_gradients(tensors, step)
            optimizer.step()
    assert all(torch.equal(one[key], two[key]) for key in one)
    if name != "sgd":  # plain SGD has no state
        assert held


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_trains(tmp_path, name):
    rows = data(examples(8))
    run = train(tmp_path, rows, max_steps=12, optim=name, learning_rate=1.0 if name == "sgd" else 1e-2)
    assert run.moved > 1e-3
    assert run.losses[-1] < run.losses[0] - 0.05


def test_the_recipe_reaches_the_optimizer():
    section = resolved(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.1).recipe.train
    optimizer = make_optimizer(small(), section, learning_rate=2e-4)
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.95)
    assert (group["eps"], group["lr"], group["weight_decay"], group["fused"]) == (1e-6, 2e-4, 0.1, True)
