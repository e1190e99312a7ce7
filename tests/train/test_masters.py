"""Contract: low-precision weights are trained through fp32 masters; fp32 weights in place."""

from __future__ import annotations

import torch

from luthier.train.masters import Weights, _buckets
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, resolved, train


def test_small_updates_reach_bf16_weights(tmp_path):
    """B20: without masters 15% of the weights moved here, and no norm weight did."""
    model = tiny_model().to(torch.bfloat16)
    start = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    recipe = resolved(method=FULL, learning_rate=1e-5, max_steps=20)
    train(tmp_path, recipe=recipe, model=model)
    from luthier.train.checkpoint import load_tensors

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


def test_gradients_of_several_backward_passes_are_summed_in_fp32():
    layer = torch.nn.Linear(4, 3, bias=False).to(torch.bfloat16)
    weights = Weights(layer)
    inputs = [torch.full((1, 4), value, dtype=torch.bfloat16) for value in (1.0, 2**-9)]
    for value in inputs:
        layer(value).sum().backward()
    assert layer.weight.grad is None, "no second copy of the gradient is kept"
    gradient = weights.tensors["weight"].grad
    # 1 + 2^-9 needs 10 bits: a bf16 sum (8 bits) would have lost the second pass.
    assert torch.equal(gradient, torch.full((3, 4), 1.0 + 2**-9))


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


def test_buckets_keep_order_and_every_tensor(monkeypatch):
    monkeypatch.setattr("luthier.train.masters.BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (3, 3, 4, 20, 1)]
    buckets = list(_buckets(tensors))
    assert [[t.numel() for t in bucket] for bucket in buckets] == [[3, 3, 4], [20], [1]]
