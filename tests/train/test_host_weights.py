"""Masters and states in host memory, in one process: the numbers of a run without, checkpoints, sums of gradients."""

from __future__ import annotations

import pytest
import torch

from luthier.train.host_weights import HostWeights
from luthier.train.masters import Weights
from luthier.train.processes import make_accelerator
from luthier.train.round_trip import AtOnce, RoundTrip
from luthier.train.setup import make_trainer
from tests.support.tiny import tiny_model
from tests.train.support import FULL, SPECTRUM, distance, resolved, train

CPU = torch.device("cpu")


def half():
    return tiny_model().to(torch.bfloat16)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit", "sgd"])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_run_without_offload(tmp_path, optim, passes):
    common = {"optim": optim, "max_steps": 4, "gradient_accumulation_steps": passes, "per_device_train_batch_size": 2}
    plain = train(tmp_path / "plain", recipe=resolved(method=FULL, **common), model=half())
    moved = train(tmp_path / "moved", recipe=resolved(method=FULL, offload="optimizer", **common), model=half())
    assert plain.moved > 1e-5
    assert moved.losses == plain.losses
    assert distance(plain, moved) == 0.0


def test_chosen_layers_in_fp32_and_a_restart(tmp_path):
    """fp32 weights have a copy as well; a checkpoint goes on with and without offload."""
    plain = train(tmp_path / "plain", method=SPECTRUM, max_steps=6, save_steps=3)
    moved = train(tmp_path / "moved", method=SPECTRUM, max_steps=6, save_steps=3, offload="optimizer")
    assert moved.losses == plain.losses and distance(plain, moved) == 0.0
    for first, then in (("none", "optimizer"), ("optimizer", "none")):
        folder = tmp_path / f"{first} {then}"
        train(folder, recipe=resolved(method=SPECTRUM, max_steps=6, save_steps=3, offload=first))
        (folder / "checkpoints/step-6").rename(folder / "step-6")
        again = train(folder, recipe=resolved(method=SPECTRUM, max_steps=6, save_steps=3, offload=then), restart=False)
        assert again.result.resumed_from == 3
        assert distance(plain, again) == 0.0


def test_the_gradient_of_the_only_pass_stays_in_16_bits():
    layer = torch.nn.Linear(4, 3, bias=False).to(torch.bfloat16)
    weights = HostWeights(layer)
    weights.begin(passes=1, processes=1)
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    weights.collect()
    assert [one.dtype for one in weights.gradients()] == [torch.bfloat16] and layer.weight.grad is None
    weights.zero_grad()
    assert not weights.gradients()


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masters_are_of_their_own(optim, dtype):
    """On a CPU the numbers of a run do not tell: what the optimizer works on is never a weight itself."""
    for offload, kind in (("optimizer", HostWeights), ("none", Weights)):
        recipe = resolved(method=FULL, offload=offload, optim=optim, max_steps=1).recipe
        model = tiny_model().to(dtype)
        trainer = make_trainer(make_accelerator(CPU, report_to=[], logging_dir="unused"), model, recipe, total_steps=1)
        weights = trainer.weights
        assert type(weights) is kind
        own = {one.data_ptr() for one in weights.tensors.values()}.isdisjoint(p.data_ptr() for p in model.parameters())
        assert own == (offload == "optimizer" or dtype == torch.bfloat16)
        assert {one.dtype for one in weights.tensors.values()} == {torch.float32}
        assert isinstance(weights.run, AtOnce) and not isinstance(weights.run, RoundTrip), "one device has both"
        weights.close()
        trainer.engine.detach()


def test_double_precision_stays():
    weights = HostWeights(torch.nn.Linear(4, 3).double())
    assert {one.dtype for one in weights.tensors.values()} == {torch.float64}
