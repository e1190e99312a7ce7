"""Contract: the unit with adapters is the unit of the completed matrices; the Triton version is the definition."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from luthier.fast.kernels import glu_adapted as op
from luthier.fast.kernels.glu import glu_backward_reference, glu_reference

ACTS = ["silu", "gelu_tanh", "gelu"]


def inputs(m, f, p, q, dtype):
    generator = torch.Generator().manual_seed(m + f + p + q)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)  # noqa: E731
    wide = draw(m, 2 * f + 7)[:, : 2 * f]
    return {
        "raw": wide, "u": draw(m, p + 3)[:, :p], "b": blocks(draw(2 * f, p + 5)[:, :p], f),
        "dprod": draw(m, f + 2)[:, :f], "v": draw(m, q + 1)[:, :q], "a": draw(q, f),
    }  # fmt: skip


def blocks(b, f):
    """Gate has the first third of the columns, up the others."""
    b[:f, b.shape[1] // 3 :] = 0
    b[f:, : b.shape[1] // 3] = 0
    return b


def of_gate_up(t, *, shared=False):
    p = t["u"].shape[1]
    return op.OfGateUp(t["u"], t["b"], *((p, 0, p) if shared else (p // 3, p // 3, p - p // 3)))


def completed(t):
    return t["raw"] + t["u"] @ t["b"].t(), t["dprod"] + t["v"] @ t["a"]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("m", "f", "p", "q"), [(1, 5, 4, 2), (70, 130, 16, 16), (9, 64, 33, 1)])
def test_the_definition_is_the_unit_of_the_completed_matrices(act, m, f, p, q):
    t = inputs(m, f, p, q, torch.float64)
    check(t, act, m, f, 1e-12)


def check(t, act, m, f, limit):
    gate_up, dprod = completed({name: tensor.double() for name, tensor in t.items()})
    dtype = t["raw"].dtype
    out = torch.full((m, f + 4), float("nan"), dtype=dtype)[:, :f]
    op.glu_adapted(t["raw"], act, of_gate_up(t), out_mf=out)
    assert error(out, glu_reference(gate_up, act)) < limit
    op.glu_adapted(t["raw"], act, of_gate_up(t, shared=True), out_mf=out)
    assert error(out, glu_reference(gate_up, act)) < limit
    for with_up in (True, False):
        for with_down in (True, False):
            grads = torch.full((m, 2 * f + 6), float("nan"), dtype=dtype)[:, : 2 * f]
            product = torch.full((m, f), float("nan"), dtype=dtype)
            op.glu_adapted_backward(
                t["dprod"], t["raw"], act, up=of_gate_up(t) if with_up else None,
                down=op.OfProduct(t["v"], t["a"]) if with_down else None, out_m2f=grads, prod_out_mf=product,
            )  # fmt: skip
            want_gate_up = gate_up if with_up else t["raw"].double()
            want, _ = glu_backward_reference(dprod if with_down else t["dprod"].double(), want_gate_up, act)
            assert error(grads, want) < limit
            assert error(product, glu_reference(want_gate_up, act)) < limit


def error(value, reference):
    return float((value.double() - reference).norm() / reference.norm())


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies bf16 as integers
@pytest.mark.parametrize(("m", "f", "p", "q"), [(1, 64, 4, 2), (70, 130, 16, 16), (9, 64, 33, 1)])
def test_triton_is_the_definition(monkeypatch, act, dtype, m, f, p, q):
    monkeypatch.setattr(op, "uses_triton", lambda x: x.dtype is not torch.float64)
    check(inputs(m, f, p, q, dtype), act, m, f, 1e-6 if dtype == torch.float32 else 2e-3)
