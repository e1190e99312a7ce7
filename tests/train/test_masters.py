"""Contract: low-precision weights are trained through fp32 masters; fp32 weights in place."""

from __future__ import annotations

import pytest
import torch

from luthier.recipe.schema import TrainSection
from luthier.train import foreach, masters
from luthier.train.checkpoint import load_tensors
from luthier.train.host_weights import HostWeights
from luthier.train.master_adamw import MasterAdamW
from luthier.train.masters import Weights
from luthier.train.optim import make_optimizer, parameter_groups
from luthier.train.optim_state import optimizer_state, restore_optimizer
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, distance, resolved, train


def test_small_updates_reach_bf16_weights(tmp_path):
    """B20: without masters 15% of the weights moved here, and no norm weight did."""
    model = tiny_model().to(torch.bfloat16)
    start = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    recipe = resolved(method=FULL, learning_rate=1e-5, max_steps=20)
    train(tmp_path, recipe=recipe, model=model)
    masters = load_tensors(tmp_path / "checkpoints/step-20", "trainable")
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())
    moved = sum(int((masters[name] != start[name]).sum()) for name in masters)
    assert moved >= 0.95 * sum(tensor.numel() for tensor in masters.values())
    norms = [name for name in masters if "norm" in name]
    assert norms
    assert all((masters[name] != start[name]).float().mean() > 0.9 for name in norms)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, masters[name].to(torch.bfloat16)), "the weight is the master rounded"


def test_fp32_weights_need_no_master():
    weights = Weights(tiny_model())
    assert not weights.masters
    assert all(weights.tensors[name] is weights.live[name] for name in weights.live)


@pytest.mark.parametrize(
    ("kind", "collected_bytes", "moves"),
    [(Weights, 0, True), (Weights, 1 << 30, False), (HostWeights, 1 << 30, True)],
    ids=["tensor by tensor", "all at once", "masters in host memory"],
)
def test_gradients_of_several_backward_passes_are_summed_in_fp32(monkeypatch, kind, collected_bytes, moves):
    monkeypatch.setattr(masters, "COLLECTED_BYTES", collected_bytes)
    layer = torch.nn.Linear(4, 3, bias=False).to(torch.bfloat16)
    weights = kind(layer)
    weights.begin(passes=2, processes=1)
    for value in (1.0, 2**-9):
        layer(torch.full((1, 4), value, dtype=torch.bfloat16)).sum().backward()
        assert (layer.weight.grad is None) == moves, "moved in the pass, or after it"
        weights.collect()
        assert layer.weight.grad is None, "no second copy of the gradient is kept"
    # 1 + 2^-9 needs 10 bits: a bf16 sum (8 bits) would have lost the second pass.
    assert torch.equal(weights.gradients()[0], torch.full((3, 4), 1.0 + 2**-9))


def test_the_gradient_of_the_only_pass_stays_in_16_bits():
    layer = torch.nn.Linear(4, 3, bias=False).to(torch.bfloat16)
    weights = Weights(layer)
    weights.begin(passes=1, processes=1)
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    weights.collect()
    assert weights.gradients()[0] is layer.weight.grad
    assert weights.tensors["weight"].grad is None, "2 bytes a weight, not 6"


def test_with_several_processes_even_one_pass_is_summed_in_fp32():
    layer = torch.nn.Linear(4, 3, bias=False).to(torch.bfloat16)
    weights = Weights(layer)
    weights.begin(passes=1, processes=2)
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    weights.collect()
    assert weights.gradients()[0].dtype == torch.float32


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit", "adafactor", "sgd"])
@pytest.mark.parametrize("batch", [8, 4], ids=["one pass", "two passes"])
def test_a_step_of_the_optimizer_in_parts_is_the_same_step(tmp_path, monkeypatch, optim, batch):
    """One part, and one for each tensor: bit for bit, clipping at work."""
    settings = {"optim": optim, "max_steps": 4, "per_device_train_batch_size": batch, "max_grad_norm": 0.05}
    settings |= {"gradient_accumulation_steps": 8 // batch, "learning_rate": 1.0 if optim == "sgd" else 1e-2}
    runs = []
    for size in (1, 1 << 30):
        monkeypatch.setattr(masters, "BUCKET_BYTES", size)
        recipe = resolved(method=FULL, **settings)
        runs.append(train(tmp_path / str(size), recipe=recipe, model=tiny_model().to(torch.bfloat16)))
    assert distance(*runs) == 0.0
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].moved > 1e-4
    held = [load_tensors(run.folder.path / "checkpoints/step-4", "trainable") for run in runs]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])


def test_one_pass_and_several_differ_by_rounding_of_16_bit_gradients_only(tmp_path):
    runs = [
        train(tmp_path / str(b), recipe=resolved(method=FULL, max_steps=3, per_device_train_batch_size=b,
              gradient_accumulation_steps=8 // b), model=tiny_model().to(torch.bfloat16))
        for b in (8, 2)
    ]  # fmt: skip
    held = [load_tensors(run.folder.path / "checkpoints/step-3", "trainable") for run in runs]
    start = {name: tensor.float() for name, tensor in runs[0].start.items()}
    moved = torch.cat([(held[0][name] - start[name]).flatten() for name in start])
    apart = torch.cat([(held[0][name] - held[1][name]).flatten() for name in start])
    assert moved.norm() > 0.1
    assert apart.norm() <= 0.1 * moved.norm()


def test_frozen_weights_are_left_alone(tmp_path):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = train(tmp_path, recipe=resolved(method=LORA, max_steps=3), model=model)
    base = run.model.get_base_model()
    after = {name.replace("base_layer.", ""): p for name, p in base.named_parameters() if "lora_" not in name}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.moved > 1e-4


def test_hooks_are_removed_at_the_end():
    layer = torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    weights = Weights(layer)
    weights.close()
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_buckets_keep_order_and_every_tensor():
    pairs = [(torch.zeros(n), torch.zeros(n)) for n in (3, 3, 4, 20, 1)]
    buckets = list(foreach.buckets(pairs, 40))
    assert [[one.numel() for one, _ in bucket] for bucket in buckets] == [[3, 3, 4], [20], [1]]


def test_the_norm_of_16_bit_gradients_is_summed_in_fp32():
    """A bf16 result would be 5,120: 3 significant digits."""
    gradients = [torch.full((1000, 1000), value, dtype=torch.bfloat16) for value in (1.0, 5.0)]
    gradients.append(torch.full((10,), 3.0))
    expected = (1e6 * 26 + 90) ** 0.5
    assert float(foreach.total_norm(gradients)) == pytest.approx(expected, rel=1e-5)


WINDOWS = {
    "rows and columns": lambda matrix: matrix[2:62, 8:88],
    "transposed": lambda matrix: matrix.t()[8:88, 2:62],
}
ALL_OPTIMIZERS = ["adamw_torch_fused", "adamw_torch", "adamw_8bit", "one kernel"]


@pytest.mark.parametrize("optim", ALL_OPTIMIZERS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_parameter_that_is_a_window_on_a_matrix_leaves_its_surroundings_alone(optim, kind, window):
    """The engine keeps adapters as windows; torch's fused AdamW on a CPU wrote over what is beside them."""
    matrix = torch.arange(64.0 * 96).reshape(64, 96).add(1).div(1000).to(kind)
    inside = torch.zeros(64, 96, dtype=torch.bool)
    WINDOWS[window](inside)[:] = True
    before = matrix.clone()
    dense, view = torch.nn.Module(), torch.nn.Module()
    dense.weight = torch.nn.Parameter(WINDOWS[window](matrix).clone(memory_format=torch.contiguous_format))
    view.weight = torch.nn.Parameter(WINDOWS[window](matrix))
    assert not view.weight.is_contiguous()
    for module in (dense, view):
        weights = Weights(module)
        optimizer = optimizer_for(optim, weights)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            weights.begin(passes=1, processes=1)
            module.weight.grad = torch.randn(module.weight.shape, generator=generator).to(kind)
            weights.apply(optimizer, scale=0.5)
        assert weights.gradients() == []
    assert torch.equal(dense.weight, view.weight)
    assert torch.equal(matrix[~inside], before[~inside])
    assert not torch.equal(matrix[inside], before[inside])


def optimizer_for(name: str, weights: Weights) -> torch.optim.Optimizer:
    if name == "one kernel":
        return MasterAdamW(parameter_groups(weights.tensors, 0.1), lr=1e-1, betas=(0.9, 0.95), eps=1e-8)
    section = TrainSection(optim=name, weight_decay=0.1, adam_beta2=0.95)
    return make_optimizer(weights.tensors, section, learning_rate=1e-1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passes", [1, 2])
def test_one_kernel_for_masters_and_weights_is_torch_s_adamw(kind, passes):
    """Twenty steps with decay, clipping and a rate that changes; masters within 1e-7 of the largest, moments too."""
    found = []
    for name in ("adamw_torch", "one kernel"):
        model = tiny_model().to(kind)
        weights = Weights(model)
        optimizer = optimizer_for(name, weights)
        generator = torch.Generator().manual_seed(1)
        for step in range(20):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (step + 1)
            weights.begin(passes=passes, processes=1)
            for _ in range(passes):
                for parameter in model.parameters():
                    gradient = torch.randn(parameter.shape, generator=generator).to(kind)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                weights.collect()
            weights.apply(optimizer, scale=0.25)
        held, _ = optimizer_state(optimizer, weights.tensors)
        found.append({**{name: tensor.detach() for name, tensor in weights.tensors.items()}, **held})
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights.tensors[name].to(kind))
    one, other = found
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert float((tensor - other[key]).abs().max()) <= 1e-7 * float(tensor.abs().max()), key
    assert all(int(one[key]) == int(other[key]) == 20 for key in one if key.endswith("/step"))


@pytest.mark.parametrize(("first", "second"), [("adamw_torch_fused", "one kernel"), ("one kernel", "adamw_torch")])
def test_a_checkpoint_of_one_adamw_is_resumed_by_the_other(first, second):
    def steps(name: str, weights: Weights, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            weights.begin(passes=1, processes=1)
            for parameter in weights.live.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            weights.apply(optimizer, scale=1.0)

    whole, cut, resumed = (Weights(tiny_model().to(torch.bfloat16)) for _ in range(3))
    steps(second, whole, optimizer_for(second, whole), range(6))
    optimizer = optimizer_for(first, cut)
    steps(first, cut, optimizer, range(3))
    held, numbers = optimizer_state(optimizer, cut.tensors)
    resumed.load({name: tensor.detach() for name, tensor in cut.tensors.items()})
    other = optimizer_for(second, resumed)
    restore_optimizer(other, resumed.tensors, held={key: value.clone() for key, value in held.items()}, numbers=numbers)
    steps(second, resumed, other, range(3, 6))
    for name, tensor in whole.tensors.items():
        # lr 0.1: rounding of some 1e-8 a step, amplified where a moment is all but zero.
        assert torch.allclose(tensor, resumed.tensors[name], rtol=1e-5, atol=1e-5), name
