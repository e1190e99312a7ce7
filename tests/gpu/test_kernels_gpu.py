"""Contract: on CUDA every op is its Triton kernel, gives what fp64 gives, and stays near its bandwidth floor.

    python3 -m pytest -m gpu tests/gpu/test_kernels_gpu.py -s

`benchmarks/gpu/kernels.py` runs the same checks and all timings without pytest.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from luthier.fast import head, reference
from luthier.fast.head import LogitTransform
from luthier.fast.kernels import backend
from luthier.fast.kernels.compensate import _round_block, compensated_rows, output_error, round_block_reference
from luthier.fast.kernels.cross_entropy import cross_entropy_
from luthier.fast.kernels.fp8 import quantize_rows
from luthier.fast.kernels.glu import glu, glu_backward
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_backward
from luthier.fast.kernels.rope import rope
from tests.fast.kernels.cases import Bench, all_checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "kernels.py"
OPS = ("norm", "rope", "glu", "cross_entropy", "fp8", "adamw", "scaled")


def test_cuda_runs_the_triton_kernels():
    assert backend(torch.device("cuda"))[0] == "triton"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_its_definition(op, dtype):
    failures = []
    bench = Bench("cuda", dtype)
    checks = [
        (label, check) for label, check in all_checks(bench, small=dtype != torch.bfloat16) if label.startswith(op)
    ]
    assert checks
    for label, check in checks:
        try:
            check()
        except AssertionError as error:
            failures.append(f"{label}: {error}")
    assert not failures, "\n".join(failures[:20])


@pytest.mark.parametrize(("n", "k"), [(64, 64), (100, 200), (4096, 1536)])
def test_compensated_rounding_is_its_definition(n, k):
    made = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(n, 64, generator=made, device="cuda")
    scale = weight.abs().amax(1, keepdim=True) / 448
    factor = torch.randn(64, 64, generator=made, device="cuda").triu() * 0.1 + torch.eye(64, device="cuda")
    got, want = _round_block(weight, scale, factor), round_block_reference(weight, scale, factor)
    # A sum in another order may round one value the other way, and its row goes on from there.
    same = (got[0].float() == want[0].float()).all(dim=1)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(got[1][same], want[1][same], rtol=1e-3, atol=1e-4)
    inputs = torch.randn(2 * k, k, generator=made, device="cuda") @ torch.randn(k, k, generator=made, device="cuda")
    matrix, gram = torch.randn(n, k, generator=made, device="cuda"), inputs.t() @ inputs
    fitted = output_error(matrix, *compensated_rows(matrix, gram), gram)
    assert fitted < 0.5 * output_error(matrix, *quantize_rows(matrix), gram)


def test_rows_beyond_two_to_the_31_elements():
    rows, stride, width = 140_000, 16_384, 64
    assert rows * stride > 2**31
    buffer = torch.empty(rows, stride, dtype=torch.bfloat16, device="cuda")
    view, last = buffer[:, :width], slice(rows - 5, rows)
    view.normal_()
    weight, cos = torch.ones(width, dtype=torch.bfloat16, device="cuda"), torch.randn(rows, 32, device="cuda")
    n, h, rstd = add_rms_norm(view, weight, eps=1e-5)
    assert torch.equal(n[last], add_rms_norm(view[last], weight, eps=1e-5)[0])
    got, _ = rms_norm_backward(view, h, weight, rstd)
    assert torch.equal(got[last], rms_norm_backward(view[last], h[last], weight, rstd[last])[0])
    assert torch.equal(glu(view, "silu")[last], glu(view[last], "silu"))
    dprod = buffer[:, 128:160].normal_()
    assert torch.equal(glu_backward(dprod, view, "silu")[0][last], glu_backward(dprod[last], view[last], "silu")[0])
    heads = view.unflatten(1, (2, 32))
    assert torch.equal(rope(heads, cos, cos)[last], rope(heads[last], cos[last], cos[last]))
    q, scale = quantize_rows(view)
    last_q, last_scale = quantize_rows(view[last])
    assert torch.equal(scale[last], last_scale)
    assert torch.equal(q[last].view(torch.uint8), last_q.view(torch.uint8))
    ids, weights = torch.zeros(rows, dtype=torch.int64, device="cuda"), torch.ones(rows, device="cuda")
    want = view[last].clone()
    cross_entropy_(want, ids[last], weights[last])
    cross_entropy_(view, ids, weights)
    assert torch.equal(view[last], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows_per_chunk", [256, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("smoothing", "transform"), [(0.0, LogitTransform()), (0.1, LogitTransform(0.5, 10.0))])
def test_the_head_gives_the_plain_loss_and_gradients(dtype, rows_per_chunk, bias, smoothing, transform):
    g = torch.Generator("cuda").manual_seed(0)
    rows, width, vocab = 1000, 128, 5003
    hidden, weight = (torch.randn(n, width, generator=g, device="cuda") for n in (rows, vocab))
    tensors = [hidden, weight / width**0.5] + ([torch.randn(vocab, generator=g, device="cuda")] if bias else [])
    tensors = [t.to(dtype).requires_grad_() for t in tensors]
    ids = torch.randint(0, vocab, (rows,), generator=g, device="cuda")
    weights = torch.rand(rows, generator=g, device="cuda")
    named = {"target_ids_s": ids, "target_weights_s": weights, "label_smoothing": smoothing}

    def run(function, tensors, **more):
        h, w, *b = tensors
        loss, correct = function(h, w, bias_v=b[0] if b else None, **named, **more)
        return loss, int(correct), torch.autograd.grad(loss * 0.37, tensors)

    exact = [t.detach().double().requires_grad_() for t in tensors]
    want = run(reference.linear_cross_entropy, exact, logit_scale=transform.scale, softcap=transform.softcap)
    got = run(head.linear_cross_entropy, tensors, transform=transform, rows_per_chunk=rows_per_chunk)
    limit = 1e-2 if dtype == torch.bfloat16 else 2e-3
    assert abs(float(got[0]) / float(want[0]) - 1) < limit / 5
    assert abs(got[1] - want[1]) <= 3
    for mine, theirs, tensor in zip(got[2], want[2], tensors, strict=True):
        assert mine.dtype == tensor.dtype
        assert float((mine.double() - theirs.double()).norm() / theirs.double().norm()) < limit


def test_times_against_the_bandwidth_floor():
    script = runpy.run_path(str(SCRIPT), run_name="kernels")
    records = []
    print()
    for record in script["run_times"](16384):
        records.append(record)
        print(
            " | ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in record.items()
            )
        )
    broken = [record for record in records if "error" in record]
    assert not broken, broken[:3]
