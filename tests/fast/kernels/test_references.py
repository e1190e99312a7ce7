"""Contract: the plain definitions are the maths, gradients included, into views of wider buffers and in place.

Planted and seen to fail, among others: the mean left out of the norm's gradient; `plus_one` ignored in it; the halves
of sin swapped in the inverse rotation; the sigmoid for the derivative of silu; the up half missing from the product;
smoothing not divided by V; the last arg max of a tie.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.fast.kernels import backend
from luthier.fast.kernels.cross_entropy import cross_entropy_
from luthier.fast.kernels.glu import glu, glu_backward
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_again, rms_norm_backward
from luthier.fast.kernels.rope import rope, rope_qkv_backward
from luthier.fast.kernels.scale import scaled_
from tests.fast.kernels import plain
from tests.fast.kernels.plain import wide

few = settings(max_examples=25, deadline=None)
rows = st.integers(1, 6)
widths = st.integers(1, 33)
extras = st.sampled_from([0, 3, 64])


def near(got, want, tolerance=1e-11):
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs().max() if got.numel() else torch.zeros(())
    assert error <= tolerance * max(1.0, float(want.abs().max())), float(error)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@few
@given(m=rows, d=widths, extra=extras, plus_one=st.booleans(), with_residual=st.booleans(), seed=st.integers(0, 99))
def test_norm_and_its_gradient_are_autograds(m, d, extra, plus_one, with_residual, seed):
    g = seeded(seed)
    x, weight = wide(m, d, extra, generator=g), torch.randn(d, generator=g, dtype=torch.float64)
    residual = wide(m, d, extra + 1, generator=g) if with_residual else None
    out = torch.full((m, d + 5), 7.0, dtype=torch.float64)
    n, h, rstd = add_rms_norm(x, weight, eps=0.1, residual_md=residual, plus_one=plus_one, out_md=out[:, :d])
    leaf_h, leaf_w = h.clone().requires_grad_(), weight.clone().requires_grad_()
    want = plain.norm(leaf_h, leaf_w, 0.1, plus_one)
    near(h, x + residual if with_residual else x)
    near(n, want.detach())
    assert n.data_ptr() == out.data_ptr()
    assert (out[:, d:] == 7.0).all()
    assert torch.equal(rms_norm_again(h, weight, rstd, plus_one=plus_one), n)
    dn, dh = wide(m, d, 2, generator=g), wide(m, d, extra, generator=g)
    want_h, want_w = torch.autograd.grad(want, [leaf_h, leaf_w], dn)
    near(rms_norm_backward(dn, h, weight, rstd, plus_one=plus_one)[0], want_h)
    expected = want_h + dh
    got, got_w = rms_norm_backward(dn, h, weight, rstd, plus_one=plus_one, dh_md=dh, out_md=dh, need_weight=True)
    assert got.data_ptr() == dh.data_ptr()
    near(dh, expected)
    near(got_w, want_w)


@pytest.mark.parametrize("plus_one", [False, True])
def test_norm_in_bf16_rounds_where_the_models_do(plus_one):
    g = seeded()
    x, weight = wide(5, 24, 8, generator=g, dtype=torch.bfloat16), wide(1, 24, 0, generator=g, dtype=torch.bfloat16)[0]
    residual = wide(5, 24, 0, generator=g, dtype=torch.bfloat16)
    n, h, rstd = add_rms_norm(x, weight, eps=1e-6, residual_md=residual, plus_one=plus_one)
    assert (n.dtype, h.dtype, rstd.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.equal(h, x + residual)
    scaled = h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    want = (scaled * (1.0 + weight.float())).bfloat16() if plus_one else weight * scaled.bfloat16()
    assert (n != want).float().mean() < 0.02  # the last bit of rstd may differ
    assert torch.equal(rms_norm_again(h, weight, rstd, plus_one=plus_one), n)
    other = (scaled * weight.float()).bfloat16()
    assert plus_one or (n != other).float().mean() > 0.02  # once rounded is not what Llama does


@few
@given(
    m=rows, heads=st.integers(1, 3), half=st.integers(1, 5), rest=st.integers(0, 3), extra=extras,
    inverse=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_rope_is_the_rotation_and_its_inverse_the_transpose(m, heads, half, rest, extra, inverse, seed):
    g = seeded(seed)
    width = 2 * half + rest
    x = wide(m, heads * width, extra, generator=g).unflatten(1, (heads, width))
    cos, sin = wide(m, 2 * half, 1, generator=g), wide(m, 2 * half, 0, generator=g)
    leaf = torch.zeros_like(x).requires_grad_()
    if inverse:
        (want,) = torch.autograd.grad(plain.rope(leaf, cos, sin), leaf, x)
    else:
        want = plain.rope(x, cos, sin)
    near(rope(x, cos, sin, inverse=inverse), want)
    assert rope(x, cos, sin, inverse=inverse, out_mhk=x) is x
    near(x, want)


@few
@given(m=rows, heads=st.integers(1, 4), groups=st.integers(1, 2), half=st.integers(1, 4), rest=st.integers(0, 2))
def test_the_gradient_of_stacked_qkv_is_autograds(m, heads, groups, half, rest):
    g, width = seeded(), 2 * half + rest
    cos, sin = wide(m, 2 * half, 0, generator=g), wide(m, 2 * half, 0, generator=g)
    total = (heads + 2 * groups) * width
    leaf = torch.zeros(m, total, dtype=torch.float64, requires_grad=True)
    q, k, v = leaf.unflatten(1, (-1, width)).split((heads, groups, groups), dim=1)
    dq, dk, dv = (wide(m, n * width, 4, generator=g).unflatten(1, (n, width)) for n in (heads, groups, groups))
    outputs = [plain.rope(q, cos, sin), plain.rope(k, cos, sin), v]
    (want,) = torch.autograd.grad(outputs, leaf, [dq, dk, dv])
    out = torch.full((m, total + 64), 7.0, dtype=torch.float64)
    rope_qkv_backward(dq, dk, dv, cos, sin, out[:, :total])
    near(out[:, :total], want)
    assert (out[:, total:] == 7.0).all()


@few
@given(m=rows, f=widths, extra=extras, act=st.sampled_from(["silu", "gelu", "gelu_tanh"]), seed=st.integers(0, 99))
def test_glu_and_its_gradient_are_autograds(m, f, extra, act, seed):
    g = seeded(seed)
    x, dprod = wide(m, 2 * f, extra, generator=g), wide(m, f, extra + 1, generator=g)
    leaf = x.clone().requires_grad_()
    want = plain.glu(leaf, act)
    (want_x,) = torch.autograd.grad(want, leaf, dprod)
    out = torch.full((m, f + 3), 7.0, dtype=torch.float64)
    near(glu(x, act), want.detach())
    near(glu(x, act, out_mf=out[:, :f]), want.detach())
    assert (out[:, f:] == 7.0).all()
    got, nothing = glu_backward(dprod, x, act)
    near(got, want_x)
    assert nothing is None
    in_place, product = glu_backward(dprod, x, act, out_m2f=x, prod_out_mf=dprod)
    assert in_place is x
    assert product is dprod
    near(x, want_x)
    near(dprod, want.detach())


@few
@given(
    s=rows, v=st.integers(2, 40), extra=extras, smoothing=st.sampled_from([0.0, 0.1]),
    transform=st.sampled_from([(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 5.0)]), seed=st.integers(0, 99),
)  # fmt: skip
def test_cross_entropy_leaves_the_gradient_where_the_logits_were(s, v, extra, smoothing, transform, seed):
    g = seeded(seed)
    raw, (scale, softcap) = wide(s, v, extra, generator=g), transform
    raw[0, v // 2] = raw[0, 0] = raw[0].max() + 1  # a tie: the first counts
    ids = torch.randint(0, v, (s,), generator=g)
    ids[0] = (v // 2) * (seed % 2)
    weights = torch.randn(s, generator=g, dtype=torch.float64)
    leaf = raw.clone().requires_grad_()
    want, want_correct = plain.cross_entropy(leaf, ids, weights, smoothing, scale, softcap)
    (want_grad,) = torch.autograd.grad(want, leaf)
    options = {"label_smoothing": smoothing, "scale": scale, "softcap": softcap}
    before = raw.clone()
    loss, correct = cross_entropy_(raw, ids, weights, with_gradient=False, **options)
    assert torch.equal(raw, before)
    near(loss, want.detach(), 1e-6)
    loss, correct = cross_entropy_(raw, ids, weights, **options)
    assert (loss.dtype, correct.dtype) == (torch.float32, torch.int64)
    near(loss, want.detach(), 1e-6)
    assert int(correct) == want_correct
    near(raw, want_grad)


@pytest.mark.parametrize(("dtype", "to"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_scaling_rounds_once(dtype, to):
    x, factor = torch.randn(40, 3, generator=seeded()).to(dtype), torch.tensor(0.3337)
    want = (x.double() * factor.double()).to(to)
    got = scaled_(x, factor, to)
    assert torch.equal(got, want)
    assert (got is x) == (dtype == to)


def test_the_cpu_runs_the_definitions_and_says_so():
    name, why = backend(torch.device("cpu"))
    assert name == "reference"
    assert "cpu" in why
