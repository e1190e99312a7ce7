"""Contract: log-probabilities of targets and answers, and every gradient through them, are those of plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from luthier.data.branches import collate_branched
from luthier.fast.chunks import IDENTITY, LogitTransform
from luthier.fast.log_probs import answer_sums, linear_log_probs, module_log_probs
from tests.fast.helpers import relative
from tests.support.pairs import pairs


def make(vocab=601, *, rows=23, width=32, dtype=torch.float32, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    bias_v = torch.randn(vocab, generator=generator).to(dtype).requires_grad_() if bias else None
    return hidden, weight, bias_v, torch.randint(0, vocab, (rows,), generator=generator)


def plain(hidden, weight, bias, ids, transform=IDENTITY):
    logits = linear(hidden, weight, bias).float() * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1), logits.argmax(-1) == ids


def grads(values, tensors, seed=1):
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values.dtype)
    return torch.autograd.grad((values * upstream).sum(), [tensor for tensor in tensors if tensor is not None])


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(softcap=2.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_every_gradient_equal_plain_torch(rows_per_chunk, transform, bias):
    hidden, weight, bias_v, ids = make(bias=bias)
    want, right = plain(hidden, weight, bias_v, ids, transform)
    got, correct = linear_log_probs(
        hidden, weight, bias_v=bias_v, target_ids_s=ids, transform=transform, rows_per_chunk=rows_per_chunk
    )
    assert relative(got, want) < 1e-6
    assert torch.equal(correct, right)
    for mine, theirs in zip(grads(got, (hidden, weight, bias_v)), grads(want, (hidden, weight, bias_v)), strict=True):
        assert relative(mine, theirs) < 1e-5


def test_any_function_of_them_has_the_exact_gradient():
    hidden, weight, _, ids = make(rows=6, vocab=37, width=8, dtype=torch.float64)

    def loss(hidden, weight):
        found, _ = linear_log_probs(hidden, weight, target_ids_s=ids, rows_per_chunk=4)
        return torch.sigmoid(found[:3].sum() - found[3:].sum()) + found.square().sum()

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_any_head_module_gives_the_same():
    hidden, weight, bias, ids = make(bias=True)
    head = nn.Linear(32, 601)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    want, _ = plain(hidden, head.weight, head.bias, ids)
    got, _ = module_log_probs(hidden, head, vocab_size=601, target_ids_s=ids, rows_per_chunk=7)
    assert relative(got, want) < 1e-6
    tensors = (hidden, head.weight, head.bias)
    for mine, theirs in zip(grads(got, tensors), grads(want, tensors), strict=True):
        assert relative(mine, theirs) < 1e-5


def test_bf16_is_as_close_to_fp32_as_plain_bf16():
    hidden, weight, _, ids = make(dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    want, theirs = plain(*exact, None, ids)[0], plain(hidden, weight, None, ids)[0]
    got, _ = linear_log_probs(hidden, weight, target_ids_s=ids, rows_per_chunk=7)
    assert got.dtype == torch.float32
    assert relative(got, want) <= max(1.5 * relative(theirs, want), 4e-3)
    for mine, plainly, best in zip(
        grads(got, (hidden, weight)), grads(theirs, (hidden, weight)), grads(want, exact), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert relative(mine, best) <= max(1.5 * relative(plainly, best), 4e-3)


def test_a_frozen_head_gets_no_gradient_and_nothing_is_kept_without_one():
    hidden, weight, _, ids = make()
    got, _ = linear_log_probs(hidden, weight.detach(), target_ids_s=ids)
    assert len(grads(got, (hidden,))) == 1
    with torch.no_grad():
        assert not linear_log_probs(hidden, weight, target_ids_s=ids)[0].requires_grad


def test_the_sum_of_an_answer_is_over_its_own_targets():
    rows = pairs(7, context=True)
    batch = collate_branched(rows)
    values = torch.randn(batch.trained_tokens, dtype=torch.float64, requires_grad=True)
    got = answer_sums(values, batch.target_weights, batch.answers, longest=batch.max_doc)
    want = [values[batch.answers.of_target == answer].sum() for answer in range(14)]
    assert got.tolist() == pytest.approx([float(value.detach()) for value in want], rel=1e-12)
    (gradient,) = torch.autograd.grad((got * torch.arange(1.0, 15.0)).sum(), values)
    assert torch.equal(gradient, (batch.answers.of_target + 1).double())


def test_sums_do_not_depend_on_the_other_answers_of_a_batch():
    """Bitwise: the reference and the first step may be in other batches."""
    rows = pairs(9)
    batch = collate_branched(rows)
    values = torch.randn(batch.trained_tokens)
    whole = answer_sums(values, batch.target_weights, batch.answers, longest=batch.max_doc)
    alone = collate_branched(rows[3:4])
    mine = (batch.answers.of_target >= 6) & (batch.answers.of_target < 8)
    part = answer_sums(values[mine], alone.target_weights, alone.answers, longest=alone.max_doc)
    assert torch.equal(whole[6:8], part)


def test_weights_scale_what_a_token_counts():
    batch = collate_branched(pairs(2))
    heavy = replace(batch, target_weights=2.0 * batch.target_weights)
    values = torch.randn(batch.trained_tokens)
    got, twice = (answer_sums(values, b.target_weights, b.answers, longest=b.max_doc) for b in (batch, heavy))
    assert torch.allclose(2.0 * got, twice)
