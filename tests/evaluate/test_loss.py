"""Contract: held-out loss is summed negative log-likelihood over summed weights, at any batch size (B51)."""

import math

import pytest
import torch

from luthier.data.types import Example, RowRef
from luthier.evaluate.loss import row_losses
from tests.support.tiny import tiny_model


def examples(n=20, *, seed=0):
    """Rows of very different lengths and numbers of trained tokens, some weighted."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(n):
        length = int(torch.randint(3, 60, (1,), generator=generator))
        ids = torch.randint(0, 600, (length,), generator=generator).tolist()
        first = int(torch.randint(1, length, (1,), generator=generator))
        weight = 0.25 if row % 4 == 3 else 1.0
        weights = [0.0] * first + [weight] * (length - first)
        rows.append(Example(ids=ids, weights=weights, ref=RowRef("rows.jsonl", row + 1)))
    return rows


def by_hand(model, example):
    """Log-probabilities of one row alone, token by token."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0].double()
    nll = -torch.log_softmax(logits, dim=-1)
    total = sum(w * float(nll[t - 1, example.ids[t]]) for t, w in enumerate(example.weights) if w)
    return total, sum(example.weights)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_loss_is_that_of_an_independent_forward_at_any_batch_size(batch_size):
    model, rows = tiny_model(seed=2), examples()
    losses = row_losses(model, rows, batch_size=batch_size)
    for loss, example in zip(losses, rows, strict=True):
        total, weight = by_hand(model, example)
        assert loss.nll == pytest.approx(total, rel=1e-6)
        assert loss.weight == pytest.approx(weight, rel=1e-12)
        assert loss.tokens == sum(1 for w in example.weights if w)
    expected = sum(by_hand(model, row)[0] for row in rows) / sum(by_hand(model, row)[1] for row in rows)
    assert sum(loss.nll for loss in losses) / sum(loss.weight for loss in losses) == pytest.approx(expected, rel=1e-6)


def test_batches_are_bounded_by_tokens_too(monkeypatch):
    model, rows = tiny_model(seed=2), examples()
    widest = []
    model.register_forward_pre_hook(lambda _, __, kwargs: widest.append(kwargs["input_ids"].shape), with_kwargs=True)
    monkeypatch.setattr("luthier.evaluate.loss.MAX_BATCH_TOKENS", 100)
    losses = row_losses(model, rows, batch_size=64)
    assert max(rows * width for rows, width in widest) <= 100
    assert sum(rows for rows, _ in widest) == 20
    monkeypatch.undo()
    assert [loss.nll for loss in losses] == pytest.approx(
        [loss.nll for loss in row_losses(model, rows, batch_size=64)], rel=1e-6
    )


def test_dropout_is_off_and_training_mode_comes_back():
    model = tiny_model(attention_dropout=0.5).train()
    one, two = (row_losses(model, examples(), batch_size=8) for _ in "ab")
    assert one == two
    assert model.training


def test_a_uniform_model_has_the_loss_of_a_uniform_model():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for loss in row_losses(model, examples(4), batch_size=2):
        assert loss.nll / loss.weight == pytest.approx(math.log(600), rel=1e-6)
