"""Contract on CUDA: a replayed pass gives what a launched one gives, whatever documents it was recorded with.

python -m pytest -m gpu tests/gpu/test_graph_gpu.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import gradients, make_batch, relative
from tests.fast.test_linear import lora

pytestmark = pytest.mark.gpu
BATCHES = [(90, 33, 64, 7), (200, 1, 1, 150), (60, 70, 80), (255,)]
WIDE = {"head_dim": 64, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def model_of(name, method):
    model = build(name, **WIDE).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1.0)
    return (lora(model) if method == "lora" else model).cuda()


def whole(grads):
    return torch.cat([grads[name].flatten().float() for name in sorted(grads)])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "llama-tied-bias"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("recompute", ["none", "selective", "layer", "layer but for attention"])
def test_replayed_and_launched_passes_agree(name, method, recompute):
    model = model_of(name, method)
    if method == "lora":
        model.to(torch.bfloat16)
    other = copy.deepcopy(model)
    policy, _, kept = recompute.partition(" but for ")
    replayed = attach(model, EngineSettings(cuda_graphs=True, recompute=policy, keep_attention=bool(kept)))
    launched = attach(other, EngineSettings(cuda_graphs=False, recompute=policy))
    assert any(part.name == "launches" and "replayed" in part.runs for part in replayed.report), replayed.report
    replayed.loss(
        make_batch(BATCHES[0], vocab=601).to("cuda")
    ).loss.backward()  # the first of a process may be launched
    gradients(model)
    for number, lengths in enumerate([*BATCHES, *BATCHES]):
        batch = make_batch(lengths, vocab=601, seed=number).to("cuda")
        mine, theirs = replayed.loss(batch), launched.loss(batch)
        mine.loss.backward()
        theirs.loss.backward()
        assert replayed.module.graphs.failure is None
        assert relative(mine.loss, theirs.loss) < 2e-3, (number, lengths)
        got, want = gradients(model), gradients(other)
        assert got.keys() == want.keys()
        assert relative(whole(got), whole(want)) < 1e-2, (number, lengths)
    assert 1 <= len(replayed.module.graphs._recordings) <= 3


def test_gradients_of_two_replays_add_up():
    model = model_of("llama", "full")
    engine = attach(model, EngineSettings(cuda_graphs=True))
    first, second = (make_batch(lengths, vocab=601, seed=n).to("cuda") for n, lengths in enumerate(BATCHES[:2]))
    engine.loss(first).loss.backward()
    one = gradients(model)
    engine.loss(second).loss.backward()
    two = gradients(model)
    engine.loss(first).loss.backward()
    engine.loss(second).loss.backward()
    both = gradients(model)
    for name in both:
        assert relative(both[name].float(), one[name].float() + two[name].float()) < 2e-2, name


def test_a_second_forward_pass_before_the_backward_pass_is_an_error():
    engine = attach(model_of("llama", "full"), EngineSettings(cuda_graphs=True))
    batch = make_batch(BATCHES[0], vocab=601).to("cuda")
    loss = engine.loss(batch).loss
    engine.loss(batch)
    with pytest.raises(RuntimeError, match="another forward pass"):
        loss.backward()


def test_an_update_in_place_is_seen_by_the_next_replay():
    model = model_of("llama", "full")
    engine = attach(model, EngineSettings(cuda_graphs=True))
    batch = make_batch(BATCHES[0], vocab=601).to("cuda")
    before = engine.loss(batch).loss.detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = engine.loss(batch).loss.detach().clone()
    engine.detach()
    fresh = attach(model, EngineSettings(cuda_graphs=False))
    assert relative(after, fresh.loss(batch).loss) < 2e-3
    assert relative(before, after) > 1e-3
