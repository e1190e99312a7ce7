"""Contract: the chunked head gives the loss, the arg-max count and every gradient of the plain definition.

Planted and seen to fail: one weight for all targets (B10); the gradient without its smoothing term; a log-sum-exp
over the vocabulary padded to a multiple of 64 (B12); the last chunk left out; the tanh derivative left out.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.fast import head, reference
from luthier.fast.head import LogitTransform
from tests.fast.helpers import relative


def make(vocab, *, rows=23, width=32, dtype=torch.float32, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    bias_v = torch.randn(vocab, generator=generator).to(dtype).requires_grad_() if bias else None
    # 90% of the vocabulary never occurs as a target; weights differ from row to row and may be negative.
    targets = torch.randint(0, max(1, vocab // 10), (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator)
    return hidden, weight, bias_v, targets, weights


def run(function, hidden, weight, bias, targets, weights, upstream=0.37, **settings):
    tensors = [t for t in (hidden, weight, bias) if t is not None and t.requires_grad]
    loss, correct = function(hidden, weight, bias_v=bias, target_ids_s=targets, target_weights_s=weights, **settings)
    grads = torch.autograd.grad(loss * upstream, tensors) if tensors else ()
    return loss.detach(), int(correct), grads


def plain(transform):
    return {"logit_scale": transform.scale, "softcap": transform.softcap}


@pytest.mark.parametrize("vocab", [601, 640, 1021])
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 23, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_every_gradient_equal_the_reference_in_fp32(vocab, rows_per_chunk, smoothing):
    inputs = make(vocab, bias=vocab == 601)
    want = run(reference.linear_cross_entropy, *inputs, label_smoothing=smoothing)
    got = run(head.linear_cross_entropy, *inputs, label_smoothing=smoothing, rows_per_chunk=rows_per_chunk)
    assert relative(got[0], want[0]) < 1e-5
    assert got[1] == want[1]
    for mine, theirs in zip(got[2], want[2], strict=True):
        assert relative(mine, theirs) < 1e-5


@pytest.mark.parametrize(
    "transform", [LogitTransform(scale=0.25), LogitTransform(softcap=2.0), LogitTransform(3.0, 5.0)]
)
def test_scaled_and_soft_capped_logits_equal_the_reference(transform):
    inputs = make(601)
    want = run(reference.linear_cross_entropy, *inputs, **plain(transform), label_smoothing=0.1)
    got = run(head.linear_cross_entropy, *inputs, transform=transform, label_smoothing=0.1, rows_per_chunk=7)
    assert relative(got[0], want[0]) < 1e-5
    for mine, theirs in zip(got[2], want[2], strict=True):
        assert relative(mine, theirs) < 1e-5


@pytest.mark.parametrize("vocab", [601, 640])
def test_bf16_is_as_close_to_fp32_as_plain_bf16(vocab):
    inputs = make(vocab, dtype=torch.bfloat16)
    *tensors, bias, targets, weights = inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]
    exact_inputs = [*(t.detach().float().requires_grad_() for t in tensors), bias, targets, weights]
    exact = run(reference.linear_cross_entropy, *exact_inputs)
    theirs = run(reference.linear_cross_entropy, *inputs)
    mine = run(head.linear_cross_entropy, *inputs, rows_per_chunk=7)
    assert mine[0].dtype == torch.float32
    assert relative(mine[0], exact[0]) <= max(2 * relative(theirs[0], exact[0]), 2e-3)
    for got, reference_grad, exact_grad in zip(mine[2], theirs[2], exact[2], strict=True):
        assert got.dtype == torch.bfloat16
        assert relative(got, exact_grad) <= max(1.5 * relative(reference_grad, exact_grad), 4e-3)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_still_do():
    hidden, weight, _, targets, weights = make(601)
    frozen = weight.detach()
    want = run(reference.linear_cross_entropy, hidden, frozen, None, targets, weights)
    got = run(head.linear_cross_entropy, hidden, frozen, None, targets, weights)
    assert len(got[2]) == 1
    assert relative(got[2][0], want[2][0]) < 1e-5


def test_any_head_module_gives_the_same_as_the_matrix_inside_it():
    hidden, weight, bias, targets, weights = make(601, bias=True)
    linear = nn.Linear(32, 601)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    want = run(
        reference.linear_cross_entropy, hidden, linear.weight, linear.bias, targets, weights, label_smoothing=0.1
    )
    settings = {"target_ids_s": targets, "target_weights_s": weights, "label_smoothing": 0.1, "vocab_size": 601}
    loss, correct = head.module_cross_entropy(hidden, linear, rows_per_chunk=7, **settings)
    grads = torch.autograd.grad(loss * 0.37, [hidden, linear.weight, linear.bias])
    assert relative(loss.detach(), want[0]) < 1e-5
    assert int(correct) == want[1]
    for mine, theirs in zip(grads, want[2], strict=True):
        assert relative(mine, theirs) < 1e-5


def test_without_gradients_the_loss_is_the_same_and_needs_none():
    hidden, weight, _, targets, weights = make(640)
    want = run(reference.linear_cross_entropy, hidden, weight, None, targets, weights)
    with torch.no_grad():
        loss, correct = head.linear_cross_entropy(hidden, weight, target_ids_s=targets, target_weights_s=weights)
    assert not loss.requires_grad
    assert relative(loss, want[0]) < 1e-6
    assert int(correct) == want[1]


def test_no_target_at_all_is_a_zero_loss_with_zero_gradients():
    hidden, weight, _, _, _ = make(601)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss, correct = head.linear_cross_entropy(hidden[:0], weight, target_ids_s=nothing, target_weights_s=torch.zeros(0))
    (grad,) = torch.autograd.grad(loss, [weight])
    assert float(loss) == 0.0
    assert int(correct) == 0
    assert not grad.any()


def test_a_second_backward_pass_raises_instead_of_scaling_the_gradients_again():
    hidden, weight, _, targets, weights = make(601)
    loss, _ = head.linear_cross_entropy(hidden, weight, target_ids_s=targets, target_weights_s=weights)
    first = torch.autograd.grad(loss * 0.5, [hidden, weight], retain_graph=True)
    kept = [grad.clone() for grad in first]
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(loss * 0.5, [hidden, weight])
    assert all(torch.equal(grad, copy) for grad, copy in zip(first, kept, strict=True))


def test_parameters_take_the_gradient_buffers_without_a_copy():
    hidden, weight, _, targets, weights = make(601)
    loss, _ = head.linear_cross_entropy(hidden, weight, target_ids_s=targets, target_weights_s=weights)
    made = [gradient.data_ptr() for gradient in loss.grad_fn.gradients[:2]]
    (loss * 0.5).backward()
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == made


@pytest.mark.parametrize(("rows", "vocab"), [(1, 262_144), (300, 49_152), (16_384, 128_256), (1_000_000, 50_257)])
@pytest.mark.parametrize(("device_type", "element_bytes"), [("cpu", 4), ("cuda", 4), ("cuda", 2)])
def test_a_chunk_of_logits_never_reaches_two_to_the_31_elements(rows, vocab, device_type, element_bytes):
    chunk = head.chunk_rows(rows, vocab, device_type, element_bytes=element_bytes)
    assert 1 <= chunk <= rows
    assert chunk * vocab < 2**31
    chunks = -(-rows // chunk)
    assert chunks * chunk - rows < max(chunks, chunk)  # near-equal chunks
