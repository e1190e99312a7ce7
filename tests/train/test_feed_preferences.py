"""Contract: batches of preferences are fed as batches of examples are: every row once, no row split, nothing counted
in a batch that stands in for none."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from luthier.data.branches import collate_branched, collate_rows
from luthier.train.feed import Feed, by_token_budget, without_weight
from luthier.train.order import Order
from luthier.train.split import MicroBatchSize
from tests.data.preferring import pairs, prepared


@pytest.fixture(scope="module", params=["pairs", "rated"])
def found(request, tmp_path_factory):
    rows = [{**row, "margin": 1.0} for row in pairs(24)]
    return prepared(tmp_path_factory.mktemp(request.param), rows, kind=request.param, max_length=48)


def feed(found, size, *, world_size=1, rank=0):
    order = Order(sequences=len(found.packs), sequences_per_step=4, num_train_epochs=1, max_steps=None)
    return Feed(examples=found.train, packs=found.packs, order=order, size=size, rank=rank, world_size=world_size,
                device=torch.device("cpu"))  # fmt: skip


def test_an_epoch_holds_every_row_once_whatever_the_split(found):
    for size in (MicroBatchSize(4), MicroBatchSize(1), MicroBatchSize(1, 60)):
        one = feed(found, size)
        batches = [item for step in range(one.order.total_steps) for item in one.step(step)]
        assert sorted(map(id, found.train)) == sorted(id(row) for item in batches for row in item.examples)
        assert sum(item.batch.weight_sum for item in batches) == len(found.train)
        assert sum(item.batch.tokens for item in batches) == sum(map(len, found.train))
        assert sum(len(item.batch.answers.chosen) for item in batches) == len(found.train)
    budget = MicroBatchSize(1, 60)
    most = [item.batch.tokens for step in range(2) for item in feed(found, budget).step(step) if len(item.examples) > 1]
    assert all(tokens <= 60 for tokens in most)


def test_a_process_without_rows_gets_a_batch_that_counts_nothing(found):
    step = feed(found, MicroBatchSize(1), world_size=5, rank=4)
    batches = [item for number in range(step.order.total_steps) for item in step.step(number)]
    empty = [item for item in batches if not item.examples]
    assert empty, "a step has four sequences, and there are five processes"
    for item in empty:
        assert (item.batch.weight_sum, item.batch.tokens, item.batch.trained_tokens) == (0.0, 0, 0)


def test_without_weight_no_row_is_left_to_compare(found):
    batch = without_weight(collate_branched(found.train[:3]))
    answers = batch.answers
    assert not batch.target_weights.any() and batch.weight_sum == 0.0
    assert len(answers.chosen) == len(answers.rejected) == 0
    assert answers.labels is None or len(answers.labels) == 0
    assert answers.margins is None or len(answers.margins) == 0
    assert len(answers.lengths) == len(answers.last_index) == len(batch.doc_lengths), "the documents stay"
    values = torch.zeros(len(answers.lengths), requires_grad=True)
    (values[answers.chosen] - values[answers.rejected]).sum().backward()
    assert values.grad is not None and not values.grad.any()


def test_groups_of_a_token_budget_are_neighbours_and_complete(found):
    groups = list(by_token_budget(found.validation or found.train, 80))
    assert [row for group in groups for row in group] == list(found.train)
    assert all(sum(map(len, group)) <= 80 or len(group) == 1 for group in groups)
    assert all(collate_rows(group).answers is not None for group in groups)


def test_pinning_covers_the_answers(found, monkeypatch):
    """No CUDA here: what is pinned is recorded instead."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: seen.append(self) or self.clone())
    item = feed(found, MicroBatchSize(1)).step(0)[0]
    item.pin()
    answers = item.batch.answers
    tensors = [
        v for record in (item.batch, answers) for f in fields(record) if torch.is_tensor(v := getattr(record, f.name))
    ]
    assert {id(tensor) for tensor in seen} == {id(tensor) for tensor in tensors} and len(tensors) > 10
