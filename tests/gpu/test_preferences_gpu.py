"""Contract on CUDA: log-probabilities through the kernels are those of plain torch, gradients too; DPO starts at log 2
in 16 bits, with recorded passes and without; its gradient is that of the plain path.

python -m pytest -m gpu tests/gpu/test_preferences_gpu.py
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from luthier.data.branches import collate_branched
from luthier.fast.chunks import LogitTransform
from luthier.fast.engine import attach
from luthier.fast.log_probs import answer_sums, linear_log_probs
from luthier.fast.settings import EngineSettings
from luthier.objective.dpo import Dpo
from tests.fast.helpers import gradients, make_pairs, relative
from tests.gpu.test_graph_gpu import model_of, whole
from tests.support.pairs import unshared

pytestmark = pytest.mark.gpu
SIZES = ((130, 33, 65), (1, 40, 4), (66, 1, 120), (257, 70, 200), (64, 64, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows_per_chunk", [256, 1000])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 10.0)])
def test_log_probs_and_gradients_are_those_of_plain_torch(dtype, rows_per_chunk, transform):
    g = torch.Generator("cuda").manual_seed(0)
    rows, width, vocab = 1000, 128, 5003
    hidden = torch.randn(rows, width, generator=g, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=g, device="cuda") / width**0.5).to(dtype).requires_grad_()
    ids = torch.randint(0, vocab, (rows,), generator=g, device="cuda")
    upstream = torch.randn(rows, generator=g, device="cuda")
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    logits = transform.apply(exact[0] @ exact[1].t())
    want = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    got, correct = linear_log_probs(
        hidden, weight, target_ids_s=ids, transform=transform, rows_per_chunk=rows_per_chunk
    )  # fmt: skip
    limit = 1e-2 if dtype == torch.bfloat16 else 2e-3
    assert got.dtype == torch.float32
    assert relative(got, want) < limit
    assert int((correct != (logits.argmax(-1) == ids)).sum()) <= 3
    mine = torch.autograd.grad((got * upstream).sum(), [hidden, weight])
    theirs = torch.autograd.grad((want * upstream.double()).sum(), exact)
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == dtype
        assert relative(one, other) < limit


def test_sums_of_answers_wait_for_nothing_and_are_repeatable():
    batch = collate_branched(make_pairs(SIZES, vocab=601)).to("cuda")
    values = torch.randn(batch.trained_tokens, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = answer_sums(values, batch.target_weights, batch.answers, longest=batch.max_doc)
        second = answer_sums(values, batch.target_weights, batch.answers, longest=batch.max_doc)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_dpo_starts_at_log_2_and_has_the_gradient_of_the_plain_path(graphs, method):
    model = model_of("llama", method)
    other = copy.deepcopy(model)
    engine = attach(model, EngineSettings(cuda_graphs=graphs or None), objective=Dpo(beta=0.1))
    plain = attach(other, EngineSettings(cuda_graphs=False, replace_layers=False), objective=Dpo(beta=0.1))
    rows = make_pairs(SIZES, vocab=601)
    with torch.no_grad():
        model.eval()
        values = engine.module.eval().answer_values(collate_branched(rows).to("cuda")).tolist()
        model.train()
        engine.module.train()
    pairs = zip(values[::2], values[1::2], strict=True)
    rows = [replace(row, reference=pair) for row, pair in zip(rows, pairs, strict=True)]
    got = engine.loss(collate_branched(rows).to("cuda"))
    want = plain.loss(unshared(rows).to("cuda"))
    assert float(got.loss.detach()) / len(rows) == pytest.approx(math.log(2.0), abs=2e-2)
    got.loss.backward()
    want.loss.backward()
    assert relative(whole(gradients(model)), whole(gradients(other))) < 5e-2


def test_a_step_of_dpo_waits_for_the_device_once(tmp_path):
    """Besides what `update` itself reads."""
    model = model_of("llama", "lora")
    engine = attach(model, objective=Dpo(beta=0.1))
    rows = [replace(row, reference=(-50.0, -60.0)) for row in make_pairs(SIZES, vocab=601)]
    batch = collate_branched(rows).to("cuda")
    engine.loss(batch).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = engine.loss(batch)
        sums.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(float(sums.loss.detach()))
