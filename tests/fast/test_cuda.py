"""Contract: on a CUDA device the varlen kernel gives each document's own attention, in every family that is flat."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.fast.attention import Documents, has_varlen_kernel, varlen_attention
from luthier.fast.engine import attach
from luthier.fast.hidden import model_inputs
from luthier.fast.reference import attention_one_document
from tests.fast.families import FLAT, build
from tests.fast.helpers import gradients, make_batch, one_by_one, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (9, 3, 3, 1, 170, 64)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_is_the_attention_of_each_document(heads, groups, window):
    assert has_varlen_kernel()
    generator = torch.Generator("cuda").manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = [(1, heads, tokens, 64), (1, groups, tokens, 64), (1, groups, tokens, 64)]
    query, key, value = (
        torch.randn(s, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes
    )
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32).cuda()
    documents = Documents.of(bounds, LENGTHS)
    out, _ = varlen_attention(
        nn.Identity(), query, key, value, None, sliding_window=window, luthier_documents=documents
    )
    parts = [t.float().split(LENGTHS, dim=2) for t in (query, key, value)]
    alone = [
        attention_one_document(q[0], k[0], v[0], scale=0.125, window=window) for q, k, v in zip(*parts, strict=True)
    ]
    want = torch.cat(alone, dim=1).transpose(0, 1)[None]
    assert relative(out, want) < 1e-2
    upstream = torch.randn(want.shape, generator=generator, device="cuda")
    got = torch.autograd.grad((out.float() * upstream).sum(), [query, key, value])
    expected = torch.autograd.grad((want * upstream).sum(), [query, key, value])
    for mine, theirs in zip(got, expected, strict=True):
        assert relative(mine, theirs) < 2e-2


@pytest.mark.parametrize("name", sorted(FLAT))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_loss_and_gradients_on_the_device(name, dtype):
    model = build(name).cuda().to(dtype)
    exact = build(name).cuda()
    engine = attach(model)
    assert engine.layout == "flat", engine.report
    batch = make_batch(LENGTHS if name != "gpt2" else LENGTHS[:4], vocab=601)
    sums = engine.loss(batch.to("cuda"))
    want, _ = one_by_one(copy.deepcopy(exact), batch.to("cuda"))
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    assert relative(sums.loss, want) < limit
    sums.loss.backward()
    if dtype == torch.float32:
        stock = copy.deepcopy(exact)
        one_by_one(stock, batch.to("cuda"))[0].backward()
        norms = {n: float(g.norm()) for n, g in gradients(stock).items()}
        total = sum(v * v for v in norms.values()) ** 0.5
        mine = sum(float(g.norm()) ** 2 for g in gradients(model).values()) ** 0.5
        assert mine == pytest.approx(total, rel=1e-3)


def test_no_document_changes_another_on_the_device():
    model = build("llama").cuda().bfloat16().eval()
    engine = attach(model)

    def hidden(batch):
        inputs = model_inputs(batch.to("cuda"), "flat")
        with torch.no_grad():
            return model.get_decoder()(**inputs.kwargs)[0][0]

    before = hidden(make_batch(LENGTHS, vocab=601))
    after = hidden(make_batch(LENGTHS, vocab=601, first=range(40, 49)))
    assert torch.equal(before[9:], after[9:])
    assert engine.report[0].runs.startswith("torch varlen kernel")
