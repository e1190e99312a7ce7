"""Contract: a layer never computes with weights that are no longer its modules' own.

The engine's stacked matrices are what the modules' parameters are views of. Whatever gives a module other memory
(`.to()`, a deep copy, loading by assignment) leaves the stacked matrices behind: that is an error, not an old result.

Planted and seen to fail: all of these tests before the check was there (losses of weights that no step reached).
"""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.fast.engine import attach
from luthier.fast.graph import Graphs
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import make_batch, one_by_one, relative
from tests.fast.test_linear import lora

LENGTHS = (9, 1, 17, 6)


def cast_and_back(engine):
    engine.module.model.double().float()
    return engine.module


def copied(engine):
    return copy.deepcopy(engine.module)


def loaded_by_assignment(engine):
    model = engine.module.model
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return engine.module


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("move", [cast_and_back, copied, loaded_by_assignment])
def test_weights_that_moved_after_the_engine_was_attached_are_an_error(method, extended, move):
    model = build("qwen2")
    engine = attach(lora(model) if method == "lora" else model, EngineSettings(fuse_adapters=extended))
    batch = make_batch(LENGTHS, vocab=601)
    engine.loss(batch)
    moved = move(engine)
    with pytest.raises(RuntimeError, match="attach the engine after"):
        moved(batch)


def test_a_scale_that_was_changed_is_the_scale_that_is_used():
    model = lora(build("llama"))
    engine = attach(model)
    batch = make_batch(LENGTHS, vocab=601)
    before = engine.loss(batch).loss.detach()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 3.0
    loss = engine.loss(batch).loss.detach()
    assert relative(loss, before) > 1e-3
    engine.detach()
    want, _ = one_by_one(model, batch)
    assert relative(loss, want) < 1e-5


def test_nothing_recorded_is_replayed_while_an_adapter_is_off(monkeypatch):
    """A recording has the adapters in it."""
    model = lora(build("llama"))
    attach(model)
    trunk = model.get_base_model().get_decoder()
    graphs = Graphs(trunk)
    tried = []
    monkeypatch.setattr(graphs, "_record", lambda *args: tried.append(args))
    batch = make_batch(LENGTHS, vocab=601)
    embeds = torch.zeros(batch.tokens, 32)
    with model.disable_adapter():
        assert graphs.hidden(embeds, batch.position_ids, batch.doc_lengths) is None
    assert not tried
    graphs.hidden(embeds, batch.position_ids, batch.doc_lengths)
    assert tried
