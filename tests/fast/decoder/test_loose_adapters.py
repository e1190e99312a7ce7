"""Adapters that something else keeps (DeepSpeed): each pass reads what the modules hold then."""

from __future__ import annotations

import pytest
import torch

from luthier.data.branches import collate_rows
from luthier.fast.engine import attach
from luthier.fast.hooks import has_hooks
from luthier.fast.settings import EngineSettings
from tests.train.support import LORA, examples, resolved, tuned


def gradients(model, engine) -> dict[str, torch.Tensor]:
    model.zero_grad()
    engine.loss(collate_rows(examples(4))).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def model():
    model = tuned(resolved(method=LORA)).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_gradients_are_those_of_adapters_that_the_engine_keeps(model):
    engine = attach(model)
    model.train()
    expected = gradients(model, engine)
    engine.detach()
    loose = attach(model, EngineSettings(sharded=True, loose_adapters=True))
    model.train()
    found = gradients(model, loose)
    assert "one function each (2 layers), gathered matrices" in {p.name: p.runs for p in loose.report}["decoder layers"]
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= 1e-5
    assert max(float(grad.abs().max()) for grad in expected.values()) > 1e-2


def test_parameters_that_were_replaced_are_read_in_the_next_pass(model):
    """DeepSpeed gives parameters other memory; an engine that keeps adapters refuses that."""
    loose = attach(model, EngineSettings(sharded=True, loose_adapters=True))
    model.train()
    before = gradients(model, loose)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data.clone().mul_(3.0)
    after = gradients(model, loose)
    assert any(float((after[name] - before[name]).abs().max()) > 1e-3 for name in before)
    loose.detach()
    engine = attach(model)
    model.train()
    expected = gradients(model, engine)
    assert max(float((after[name] - expected[name]).abs().max()) for name in expected) <= 1e-5


def test_only_hooks_of_deepspeed_leave_a_module_what_it_was():
    module = torch.nn.Linear(2, 2)
    assert not has_hooks(module)

    def gather(*_):
        return None

    gather.__module__ = "deepspeed.runtime.zero.parameter_offload"
    module.register_forward_pre_hook(gather)
    assert not has_hooks(module)
    module.register_forward_hook(lambda *_: None)
    assert has_hooks(module)
