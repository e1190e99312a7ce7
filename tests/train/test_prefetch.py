"""Contract: batches prepared in a thread are those of the step, in its size; failures arrive, the thread ends."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from luthier.train import feed as feeding
from luthier.train import loop
from luthier.train.feed import Feed
from luthier.train.order import Order
from luthier.train.prefetch import Batches
from luthier.train.split import MicroBatchSize
from tests.train.short_of_memory import short_of_memory
from tests.train.support import LORA, data, distance, train
from tests.train.test_memory import level, size


def feed(steps: int = 5) -> Feed:
    prepared = data()
    order = Order(sequences=len(prepared.packs), sequences_per_step=8, num_train_epochs=1, max_steps=steps)
    return Feed(examples=prepared.train, packs=prepared.packs, order=order, size=MicroBatchSize(4), rank=0,
                world_size=1, device=torch.device("cpu"))  # fmt: skip


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("luthier-batches")]


def refs(batches) -> list[list[str]]:
    return [[str(ref) for ref in item.batch.refs] for item in batches]


def test_a_step_gets_its_batches_whatever_was_prepared():
    plain, ahead = Batches(feed()), Batches(feed(), ahead=True)
    try:
        for step in (0, 1, 2, 4, 2, 3):
            assert refs(ahead.take(step)) == refs(plain.take(step))
        ahead.resize(MicroBatchSize(2))
        plain.resize(MicroBatchSize(2))
        assert refs(ahead.take(4)) == refs(plain.take(4))
        assert len(ahead.take(4)) == 4
    finally:
        ahead.close()
    assert threads() == []


def test_after_a_resize_the_next_step_has_the_new_size_too():
    batches = Batches(feed(), ahead=True)
    assert len(batches.take(0)) == 2
    batches.resize(MicroBatchSize(1))
    assert [len(batches.take(step)) for step in (0, 1, 2)] == [8, 8, 8], "step 1 was prepared in the old size"
    batches.close()


def test_the_next_step_is_prepared_while_this_one_runs_and_none_beyond_the_last(monkeypatch):
    asked: list[int] = []
    real = Feed.step

    def step(self, number):
        asked.append(number)
        return real(self, number)

    monkeypatch.setattr(Feed, "step", step)
    batches = Batches(feed(3), ahead=True)
    batches.take(0)
    until = time.monotonic() + 60
    while asked != [0, 1] and time.monotonic() < until:
        time.sleep(0.01)
    assert asked == [0, 1]
    batches.take(1), batches.take(2)
    batches.close()
    assert asked == [0, 1, 2]


def test_a_failure_in_the_thread_is_raised_by_its_step_and_not_before(monkeypatch):
    real = feeding.collate_rows

    def broken(rows):
        if rows[0].ref.line == data().packs[feed().order.step(1)[0]].examples[0] + 1:
            raise ValueError("row without tokens")
        return real(rows)

    monkeypatch.setattr(feeding, "collate_rows", broken)
    batches = Batches(feed(), ahead=True)
    assert len(batches.take(0)) == 2
    with pytest.raises(ValueError, match="row without tokens"):
        batches.take(1)
    batches.close()
    assert threads() == []


@pytest.mark.parametrize("method", [{"name": "full"}, {**LORA, "lora_dropout": 0.3}], ids=["full", "dropout"])
def test_runs_with_and_without_the_thread_are_equal_also_when_they_halve(tmp_path, monkeypatch, method):
    settings = {"method": method, "max_steps": 5, "learning_rate": 5e-3, **size(4, 2)}
    with short_of_memory(50, after=3):
        plain = train(tmp_path / "plain", level(), **settings)
    monkeypatch.setattr(loop, "Batches", lambda feed: Batches(feed, ahead=True))
    with short_of_memory(50, after=3):
        ahead = train(tmp_path / "ahead", level(), **settings)
    assert distance(plain, ahead) == 0.0
    assert plain.metrics == ahead.metrics
    assert threads() == []


def test_the_thread_ends_with_a_run_that_fails(tmp_path, monkeypatch):
    from luthier.train import running

    def update(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(loop, "Batches", lambda feed: Batches(feed, ahead=True))
    monkeypatch.setattr(running, "update", update)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(tmp_path, max_steps=3)
    assert threads() == []
