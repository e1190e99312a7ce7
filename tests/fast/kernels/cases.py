"""Checks of the kernels against the plain definitions in fp64, for any device: the CUDA tests, the tests under Triton's
interpreter and `benchmarks/gpu/kernels.py` run these.

A check raises AssertionError with the tensor's name and error. Inputs and outputs are views of wider buffers, whose
margins must stay as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.fast.kernels.adamw import adamw_, adamw_reference_
from luthier.fast.kernels.cross_entropy import cross_entropy_, cross_entropy_reference_
from luthier.fast.kernels.fp8 import add_rms_norm_fp8, glu_fp8, quantize_rows
from luthier.fast.kernels.glu import glu, glu_backward, glu_backward_reference, glu_reference
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_again, rms_norm_backward, rms_norm_backward_reference
from luthier.fast.kernels.rope import rope, rope_qkv_backward, rope_qkv_backward_reference, rope_reference
from luthier.fast.kernels.scale import scaled_

ACTS = ("silu", "gelu", "gelu_tanh")
MARGIN = 7.0


@dataclass
class Bench:
    """Where checks run, and how far a value may be off: relative Frobenius norm, and (units of eps) for every value."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    truncates: bool = False
    """Triton's interpreter cuts bf16 off instead of rounding it."""
    exact_fp8: bool = True
    """Its casts to e4m3 lose the carry from mantissa to exponent: 1 to 2% of the values are half their size."""
    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.seed)

    def rows(self, m: int, width: int, extra: int = 64, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(m, width, generator=self.generator, device=self.device)
        return self.room(m, width, extra, dtype).copy_(values)

    def room(self, m: int, width: int, extra: int = 64, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((m, width + extra), MARGIN, device=self.device, dtype=dtype or self.dtype)[:, :width]

    def near(self, name: str, got: Tensor, want: Tensor, *, exact: float | None = None) -> None:
        assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} for {tuple(want.shape)}"
        got64, want64 = got.double(), want.double()
        eps = torch.finfo(got.dtype).eps
        norm = exact or {torch.float32: 2e-6}.get(got.dtype, eps / 2)
        if self.truncates and got.dtype == torch.bfloat16:
            norm = eps * 1.1
        error = float((got64 - want64).norm() / want64.norm().clamp_min(1e-30))
        assert error <= norm, f"{name}: relative error {error:.2e} over {norm:.1e}"
        unit = 2 * eps if got.dtype != torch.float32 else 1e-5
        typical = want64.square().mean().sqrt()
        worst = float(((got64 - want64).abs() / (want64.abs() + typical + 1e-30)).max())
        assert worst <= unit, f"{name}: a value is off by {worst:.2e}, over {unit:.1e}"

    @staticmethod
    def margins(name: str, view: Tensor) -> None:
        base = view._base
        assert base is not None
        assert (base[:, view.shape[1] :] == MARGIN).all(), f"{name}: wrote beside its columns"


def check_norm(b: Bench, m: int, d: int, *, plus_one: bool, residual: bool) -> None:
    x, res = b.rows(m, d), b.rows(m, d, 128) if residual else None
    weight, out = b.rows(1, d, 0)[0].contiguous(), b.room(m, d)
    n, h, rstd = add_rms_norm(x, weight, eps=1e-5, residual_md=res, plus_one=plus_one, out_md=out)
    assert n is out
    b.margins("n", out)
    b.near("h", h, x.double() + (res.double() if res is not None else 0.0))
    want_rstd = (h.double().square().mean(dim=1) + 1e-5).rsqrt()
    b.near("rstd", rstd, want_rstd)
    hat = h.double() * want_rstd[:, None]
    once = hat * (1 + weight.double()) if plus_one else hat * weight.double()
    b.near("n", n, once, exact=None if plus_one else {torch.float32: 2e-6}.get(b.dtype, torch.finfo(b.dtype).eps))
    if not plus_one and not (b.truncates and b.dtype == torch.bfloat16):
        twice = (h.float() * rstd[:, None]).to(b.dtype) * weight
        assert torch.equal(n, twice), "n: not rounded before the weight"
    assert torch.equal(rms_norm_again(h, weight, rstd, plus_one=plus_one), n), "again: another n"
    check_norm_backward(b, h, weight, rstd, plus_one=plus_one, residual=residual)


def check_norm_backward(b: Bench, h: Tensor, weight: Tensor, rstd: Tensor, *, plus_one: bool, residual: bool) -> None:
    m, d = h.shape
    dn = b.rows(m, d, 8)
    for need_weight in (False, True):
        dh = b.rows(m, d, 192) if residual else None
        exact = [t.double() for t in (dn, h, weight, rstd)]
        want = rms_norm_backward_reference(
            *exact, plus_one=plus_one, dh_md=None if dh is None else dh.double(), need_weight=need_weight
        )
        out = b.room(m, d) if dh is None else dh
        got, dweight = rms_norm_backward(
            dn, h, weight, rstd, plus_one=plus_one, dh_md=dh, out_md=out, need_weight=need_weight
        )
        assert got is out
        b.margins("dh", out)
        b.near("dh", got, want[0])
        assert (dweight is not None) == need_weight
        if dweight is not None:
            b.near("dweight", dweight, want[1], exact=1e-5)


def check_rope(b: Bench, m: int, heads: int, groups: int, width: int, rot: int, table: torch.dtype) -> None:
    cos, sin = b.rows(m, rot, 0, table), b.rows(m, rot, 8, table)
    for inverse in (False, True):
        x = b.rows(m, heads * width, 72).unflatten(1, (heads, width))
        want = rope_reference(x.double(), cos.double(), sin.double(), inverse=inverse)
        b.near("rope", rope(x, cos, sin, inverse=inverse), want)
        flat = b.room(m, heads * width)
        rope(x, cos, sin, inverse=inverse, out_mhk=flat.unflatten(1, (heads, width)))
        b.margins("rope", flat)
        b.near("rope out", flat.unflatten(1, (heads, width)), want)
        rope(x, cos, sin, inverse=inverse, out_mhk=x)
        b.near("rope in place", x, want)
    dq, dk, dv = (b.rows(m, n * width, 16).unflatten(1, (n, width)) for n in (heads, groups, groups))
    total = (heads + 2 * groups) * width
    want = torch.zeros(m, total, dtype=torch.float64, device=b.device)
    rope_qkv_backward_reference(*(t.double() for t in (dq, dk, dv, cos, sin)), want)
    out = b.room(m, total)
    rope_qkv_backward(dq, dk, dv, cos, sin, out)
    b.margins("qkv", out)
    b.near("qkv", out, want)


def check_glu(b: Bench, m: int, f: int, act: str) -> None:
    x, dprod = b.rows(m, 2 * f), b.rows(m, f, 8)
    want, out = glu_reference(x.double(), act), b.room(m, f)
    b.near("glu", glu(x, act), want)
    glu(x, act, out_mf=out)
    b.margins("glu", out)
    b.near("glu out", out, want)
    want_grad, _ = glu_backward_reference(dprod.double(), x.double(), act)
    grad, nothing = glu_backward(dprod, x, act)
    assert nothing is None
    b.near("grad", grad, want_grad)
    wide, product = b.room(m, 2 * f), b.room(m, f)
    glu_backward(dprod, x, act, out_m2f=wide, prod_out_mf=product)
    b.margins("grad", wide)
    b.margins("product", product)
    b.near("grad out", wide, want_grad)
    b.near("product", product, want)
    glu_backward(dprod, x, act, out_m2f=x, prod_out_mf=dprod)
    b.near("grad in place", x, want_grad)
    b.near("product in place", dprod, want)


def check_cross_entropy(b: Bench, s: int, v: int, smoothing: float, scale: float, softcap: float | None) -> None:
    raw = b.rows(s, v).mul_(3.0)
    ids = torch.randint(0, v, (s,), generator=b.generator, device=b.device)
    weights = torch.randn(s, generator=b.generator, device=b.device)
    top = raw.argmax(dim=1)
    ids[::2] = top[::2]
    raw[0, 0] = raw[0, v - 1] = raw[0, ids[0]] = raw[0].max() + 1  # ties
    ids[0] = 0 if v % 2 else v - 1
    options = {"label_smoothing": smoothing, "scale": scale, "softcap": softcap}
    want = raw.double()
    want_loss, want_correct = cross_entropy_reference_(want, ids, weights.double(), **options)
    before = raw.clone()
    loss, correct = cross_entropy_(raw, ids, weights, with_gradient=False, **options)
    assert torch.equal(raw, before), "logits changed without a gradient"
    for _ in range(2):
        assert (loss.dtype, correct.dtype, loss.shape) == (torch.float32, torch.int64, ())
        assert abs(float(loss) - float(want_loss)) <= 1e-5 * float(weights.abs().sum()) * 10, "loss"
        assert int(correct) == int(want_correct), f"correct: {int(correct)} for {int(want_correct)}"
        raw.copy_(before)
        loss, correct = cross_entropy_(raw, ids, weights, **options)
    b.margins("logits", raw)
    # fp16: most of a row's probabilities are below its normal numbers.
    exact = {torch.float32: 1e-5, torch.float16: 2 * torch.finfo(torch.float16).eps}.get(b.dtype)
    b.near("grad", raw, want, exact=exact)


def check_fp8(b: Bench, m: int, d: int) -> None:
    x, weight = b.rows(m, d), b.rows(1, d, 0)[0].contiguous()
    if m > 1:
        x[-1] = 0.0
    _same_copy(b, x, *quantize_rows(x))
    *normed, q, scale = add_rms_norm_fp8(x, weight, eps=1e-5, residual_md=x)
    for name, got, want in zip(
        "n h rstd".split(), normed, add_rms_norm(x, weight, eps=1e-5, residual_md=x), strict=True
    ):
        _same(b, name, got, want)
    _same_copy(b, normed[0], q, scale)
    for act in ACTS:
        prod, q, scale = glu_fp8(x, act)
        _same(b, "product", prod, glu(x, act))
        _same_copy(b, prod, q, scale)


def _same(b: Bench, name: str, got: Tensor, want: Tensor) -> None:
    """Equal but for last bits where a compiler contracted a product and a sum in one kernel and not in the other, which
    rounding to 16 bits mostly hides."""
    b.near(name, got, want)
    if got.dtype == torch.float32:
        return
    count = int((got != want).sum())
    assert count <= max(3, got.numel() // 200), f"{name}: {count} of the values differ from the separate kernel"


def _same_copy(b: Bench, values: Tensor, q: Tensor, scale: Tensor) -> None:
    values = values.float()
    want_scale = values.abs().amax(dim=1, keepdim=True) / 448.0
    want_scale[want_scale == 0] = 1.0
    assert (scale / want_scale - 1).abs().max() < 1e-6, "scale"
    want = (values * (1.0 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    count = int((q.float() != want).sum())
    assert count <= (0 if b.exact_fp8 else max(8, q.numel() // 20)), f"q: {count} of the values differ"


def check_adamw(
    b: Bench, sizes: tuple[int, ...], param: torch.dtype | None, grad: torch.dtype, on_device: bool
) -> None:
    def fresh() -> list[list[Tensor]]:
        g = torch.Generator(b.device).manual_seed(1)
        master, mean, square, grads = ([torch.randn(n, generator=g, device=b.device) for n in sizes] for _ in range(4))
        params = master if param is None else [t.to(param) for t in master]
        return [master, params, [t.to(grad) for t in grads], mean, [t.abs() for t in square]]

    scale = torch.tensor(0.5, device=b.device) if on_device else 0.5
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1, "step": 3, "grad_scale": scale}
    got, want = fresh(), fresh()
    adamw_(*got, **options)
    adamw_reference_(*want, **options)
    for name, mine, theirs in zip("master param grad mean square".split(), got, want, strict=True):
        for a, c in zip(mine, theirs, strict=True):
            b.near(name, a, c)


def check_scale(b: Bench, n: int, source: torch.dtype, to: torch.dtype) -> None:
    x, factor = b.rows(n, 3, 0, source).contiguous(), torch.tensor(0.3337, device=b.device)
    want = x.double() * factor.double()
    got = scaled_(x, factor, to)
    assert (got is x) == (source == to)
    b.near("scaled", got, want)


def all_checks(b: Bench, *, small: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, check) of every op at odd and even sizes (few if `small`). Each check has its own seed."""

    def seeded(label: str, check: Callable[[], None]) -> None:
        b.generator.manual_seed(sum(label.encode()))
        check()

    for label, check in _checks(b, small=small):
        yield label, lambda label=label, check=check: seeded(label, check)


def _checks(b: Bench, *, small: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    flags = (False, True)
    ms = (1, 5) if small else (1, 3, 257, 1024)
    widths = (7, 576, 1000) if small else (7, 576, 896, 1000, 2048, 2560, 4096, 8192, 12289)
    # 37 rows: more than one tile for each of the interpreter's programs, which sum the weight's gradient.
    for m, d in (*itertools.product(ms, widths), (37, 576)):
        for plus_one, residual in itertools.product(flags, flags):
            yield (
                f"norm {m}x{d} plus_one={plus_one} residual={residual}",
                lambda m=m, d=d, p=plus_one, r=residual: check_norm(b, m, d, plus_one=p, residual=r),
            )
    shapes = [(9, 3, 64, 64), (4, 2, 16, 16), (2, 1, 96, 40)]
    if not small:
        shapes += [(32, 8, 128, 128), (14, 2, 64, 64), (8, 4, 256, 256), (5, 1, 80, 20)]
    for m, (heads, groups, width, rot), table in itertools.product(ms, shapes, (torch.float32, b.dtype)):
        yield (
            f"rope {m}x({heads},{groups})x{width} rot={rot} cos={table}",
            lambda a=(m, heads, groups, width, rot, table): check_rope(b, *a),
        )
    for m, f, act in itertools.product(ms, (7, 300, 1536) if small else (7, 300, 1536, 4864, 8192, 14336), ACTS):
        yield f"glu {m}x{f} {act}", lambda m=m, f=f, act=act: check_glu(b, m, f, act)
    vocabs = (5, 601, 9000) if small else (5, 601, 32000, 49152, 50257, 128256, 151936, 262144)
    transforms = [(1.0, None), (0.25, None), (1.0, 30.0), (2.0, 15.0)]
    for s, v, smoothing, (scale, cap) in itertools.product((1, 9), vocabs, (0.0, 0.1), transforms):
        yield (
            f"cross_entropy {s}x{v} smoothing={smoothing} scale={scale} softcap={cap}",
            lambda a=(s, v, smoothing, scale, cap): check_cross_entropy(b, *a),
        )
    for m, d in itertools.product(ms[:3], (64, 1000) if small else (64, 576, 1000, 4096, 9728, 28672)):
        yield f"fp8 {m}x{d}", lambda m=m, d=d: check_fp8(b, m, d)
    pairs = [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (None, torch.float32)]
    for (param, grad), on_device in itertools.product(pairs, flags):
        sizes = (1, 1000, 9000, 16)
        yield (
            f"adamw param={param} grad={grad} scale_on_device={on_device}",
            lambda a=(sizes, param, grad, on_device): check_adamw(b, *a),
        )
    for n, source, to in [(1, torch.float32, b.dtype), (999, b.dtype, b.dtype), (5000, torch.float32, torch.float32)]:
        yield f"scaled {n} {source} {to}", lambda a=(n, source, to): check_scale(b, *a)
