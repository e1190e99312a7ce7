"""Contract: out of memory in spite of the plan, the micro-batch halves at the same tokens a step; nothing is lost."""

from __future__ import annotations

import pytest
import torch

from luthier.data.types import Pack, RowRef
from luthier.runtime.errors import OutOfMemory
from luthier.train import running
from luthier.train.split import Failed, MicroBatchSize
from tests.support.tiny import tiny_model
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, Data, data, distance, examples, resolved, train

DROPOUT = {"method": {**LORA, "lora_dropout": 0.3}, "learning_rate": 5e-3}
KINDS = {"full": {"method": FULL}, "lora with dropout": DROPOUT}


def level(n: int = 16, tokens: int = 20) -> Data:
    """Rows of one length: a micro-batch of k rows has k x `tokens` tokens."""
    return data(examples(n, low=tokens, high=tokens))


def events(run, kind: str = "memory_halved") -> list[dict]:
    return [line for line in run.folder.read_lines("events.jsonl") if line["event"] == kind]


def size(batch: int, accumulate: int = 1) -> dict[str, int]:
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_run_that_halves_is_the_run_in_small_micro_batches_bit_for_bit(tmp_path, kind, backward):
    """8 rows do not fit, nor 4: from the first step in micro-batches of 2, with the same random numbers."""
    small = train(tmp_path / "small", level(), max_steps=5, **size(2, 4), **KINDS[kind])
    with short_of_memory(60, backward=backward) as memory:
        run = train(tmp_path / "halved", level(), max_steps=5, **size(8), **KINDS[kind])
    assert memory.failures == 2
    assert memory.leaks == 0, "an activation of the failed pass was alive when the step began again"
    assert distance(small, run) == 0.0
    assert small.metrics == run.metrics, "every token counted once"
    assert small.moved > 1e-3
    assert memory.seen == [160, 80, *[40] * 20], "the failed passes, then 5 steps of 4"
    assert run.result.micro_batch == MicroBatchSize(2)
    first, second = events(run)
    assert (first["step"], first["before"]["sequences"], first["after"]["sequences"]) == (1, 8, 4)
    assert (second["step"], second["before"]["sequences"], second["after"]["sequences"]) == (1, 4, 2)
    assert first["peak_bytes"] > 10_000_000


@pytest.mark.parametrize("failing", [1, 4, 7], ids=["first pass of a step", "last pass of a step", "in step 2"])
def test_halving_in_the_middle_of_a_run_loses_and_repeats_nothing(tmp_path, failing):
    """2 x 4 rows a step; the n-th pass fails, so gradients of earlier ones were there already."""
    small = train(tmp_path / "small", level(), max_steps=4, **size(1, 8))
    with short_of_memory(30, after=failing) as memory:
        run = train(tmp_path / "halved", level(), max_steps=4, **size(2, 4))
    assert memory.failures == 1
    assert distance(small, run) <= 1e-5
    assert max(abs(a - b) for a, b in zip(small.losses, run.losses, strict=True)) <= 1e-6
    assert [line["tokens"] for line in run.metrics] == [line["tokens"] for line in small.metrics]
    assert [line["token_accuracy"] for line in run.metrics] == [line["token_accuracy"] for line in small.metrics]
    assert run.result.tokens == 4 * 160


def test_bf16_weights_halve_too(tmp_path):
    """Kept 16-bit gradients of the only pass are dropped; two passes are then summed in fp32."""
    small = train(tmp_path / "small", level(), recipe=resolved(method=FULL, max_steps=3, **size(4, 2)),
                  model=tiny_model().to(torch.bfloat16))  # fmt: skip
    with short_of_memory(100, backward=True) as memory:
        run = train(tmp_path / "halved", level(), recipe=resolved(method=FULL, max_steps=3, **size(8)),
                    model=tiny_model().to(torch.bfloat16))  # fmt: skip
    assert (memory.failures, memory.leaks) == (1, 0)
    assert distance(small, run) == 0.0


def test_a_single_sequence_is_split_by_documents(tmp_path):
    """One pack of six rows a micro-batch; 50 tokens fit, so two rows at a time."""
    rows = examples(12, low=20, high=20)
    packed = Data(rows, [], [Pack(tuple(range(s, s + 6)), 120) for s in (0, 6)])
    whole = train(tmp_path / "whole", packed, max_steps=4, **size(1))
    with short_of_memory(50, backward=True) as memory:
        run = train(tmp_path / "split", packed, max_steps=4, **size(1))
    assert memory.seen[:3] == [120, 60, 20], "120 halves to 60; 60 does not fit; to at most 30 tokens: one row each"
    assert run.result.micro_batch == MicroBatchSize(1, 30)
    assert distance(whole, run) <= 1e-5
    assert whole.moved > 1e-3
    assert [line["tokens"] for line in run.metrics] == [line["tokens"] for line in whole.metrics] == [120] * 4
    assert "up to 30 tokens" in str(run.result.micro_batch)


def test_rows_of_unequal_length_halve_until_the_longest_fits(tmp_path):
    """The order of the rows is not changed by it."""
    small = train(tmp_path / "small", data(examples(24)), max_steps=6, **size(1, 8))
    with short_of_memory(61) as memory:
        run = train(tmp_path / "halved", data(examples(24)), max_steps=6, **size(8))
    assert run.result.micro_batch == MicroBatchSize(1)
    assert memory.leaks == 0
    assert distance(small, run) <= 2e-4, "3e-3 if the last step of an epoch had another weight"
    assert [line["tokens"] for line in run.metrics] == [line["tokens"] for line in small.metrics]


def test_a_document_that_does_not_fit_alone_ends_the_run_and_says_so(tmp_path):
    with short_of_memory(30), pytest.raises(OutOfMemory) as caught:
        train(tmp_path, level(tokens=40), max_steps=2, **size(4))
    assert caught.value.exit_code == 5
    assert "a single document of 40 tokens" in str(caught.value)
    assert "gradient_checkpointing=true" in str(caught.value), "smaller batches would not help any more"
    assert not (tmp_path / "final").exists()


def test_other_failures_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    from luthier.train import step

    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(step, "forward_backward", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        train(tmp_path, max_steps=1)
    assert not [line for line in (tmp_path / "events.jsonl").read_text().splitlines() if "halved" in line]


def test_resuming_keeps_the_smaller_micro_batch_and_the_trajectory(tmp_path, monkeypatch):
    """Stopped after the halving; the second session has memory again, and still goes the same way, dropout and all."""
    settings = {"max_steps": 6, "save_steps": 1, **size(4, 2), **DROPOUT}
    with short_of_memory(60, after=3):
        whole = train(tmp_path / "whole", level(), **settings)
    real = running.update

    def update(trainer, micro_batches, *, step, stop_requested):
        if step == 4:
            raise KeyboardInterrupt
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", update)
    with short_of_memory(60, after=3), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", level(), **settings)
    monkeypatch.setattr(running, "update", real)
    with short_of_memory(10_000) as memory:
        resumed = train(tmp_path / "cut", level(), **settings)
    assert resumed.result.resumed_from == 4
    assert set(memory.seen) == {40}, "micro-batches of two rows from the first step on"
    assert len(memory.seen) == 2 * 4
    assert distance(whole, resumed) == 0.0
    assert whole.metrics == resumed.metrics


def test_a_run_cut_before_the_halving_is_saved_halves_again(tmp_path, monkeypatch):
    settings = {"max_steps": 4, "save_steps": 1, **size(4, 2), **DROPOUT}
    with short_of_memory(60, after=5):
        whole = train(tmp_path / "whole", level(), **settings)
    real = running.update

    def update(trainer, micro_batches, *, step, stop_requested):
        done = real(trainer, micro_batches, step=step, stop_requested=stop_requested)
        if step == 2:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(running, "update", update)
    with short_of_memory(60, after=5), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", level(), **settings)
    monkeypatch.setattr(running, "update", real)
    with short_of_memory(60, after=1):
        resumed = train(tmp_path / "cut", level(), **settings)
    assert resumed.result.resumed_from == 2
    assert distance(whole, resumed) == 0.0


# -- sizes


def failed(sequences: int, documents: int, tokens: int) -> Failed:
    return Failed(sequences, documents, tokens, 0)


@pytest.mark.parametrize(
    ("size", "what", "after"),
    [
        (MicroBatchSize(8), [failed(8, 8, 800)], MicroBatchSize(4)),
        (MicroBatchSize(8), [failed(3, 3, 800)], MicroBatchSize(1)),
        (MicroBatchSize(8), [failed(8, 8, 800), failed(5, 20, 800)], MicroBatchSize(2)),
        (MicroBatchSize(8), [failed(1, 6, 900)], MicroBatchSize(1, 450)),
        (MicroBatchSize(1), [failed(1, 6, 900)], MicroBatchSize(1, 450)),
        (MicroBatchSize(1, 450), [failed(1, 3, 401)], MicroBatchSize(1, 200)),
        (MicroBatchSize(1, 450), [failed(1, 2, 450), failed(1, 5, 301)], MicroBatchSize(1, 150)),
        (MicroBatchSize(1, 450), [failed(1, 1, 450)], None),
        (MicroBatchSize(8), [failed(8, 8, 800), failed(1, 1, 900)], None),
        (MicroBatchSize(8), [failed(0, 1, 7)], None),
    ],
)
def test_sizes_halve_until_a_single_document(size, what, after):
    assert size.halved(what) == after


def test_parts_of_a_step_hold_its_documents_in_order_whatever_the_size():
    from luthier.train.feed import Feed
    from luthier.train.order import Order

    prepared = data(examples(40), packed=True)
    order = Order(sequences=len(prepared.packs), sequences_per_step=4, num_train_epochs=1.0)
    device = torch.device("cpu")

    def rows(size: MicroBatchSize, rank: int, world: int) -> list[list[RowRef]]:
        feed = Feed(examples=prepared.train, packs=prepared.packs, order=order, size=size, rank=rank,
                    world_size=world, device=device)  # fmt: skip
        steps = [feed.step(step) for step in range(order.total_steps)]
        for step in steps:
            assert [item.index for item in step] == list(range(len(step)))
            if size.tokens is not None:
                assert all(item.batch.tokens <= size.tokens or len(item.examples) <= 1 for item in step)
        return [[ref for item in step for ref in item.batch.refs if item.examples] for step in steps]

    for world in (1, 2):
        for rank in range(world):
            whole = rows(MicroBatchSize(4), rank, world)
            for size in (MicroBatchSize(2), MicroBatchSize(1), MicroBatchSize(1, 64), MicroBatchSize(1, 1)):
                assert rows(size, rank, world) == whole
    feeds = [
        Feed(examples=prepared.train, packs=prepared.packs, order=order, size=MicroBatchSize(1, 50), rank=rank,
             world_size=2, device=device)
        for rank in (0, 1)
    ]  # fmt: skip
    counts = [[len(feed.shares(step)) for step in range(order.total_steps)] for feed in feeds]
    assert counts[0] == counts[1], "collective operations pair up"
    mine = [[len(feed._shares(order.step(s), feed.rank)) for s in range(order.total_steps)] for feed in feeds]
    assert mine[0] != mine[1], "the case at hand"


def test_the_advice_keeps_the_tokens_of_a_step(tmp_path, capsys):
    from luthier.runtime.console import set_quiet

    set_quiet(False)
    with short_of_memory(100):
        train(tmp_path, level(), max_steps=1, **size(8, 2))
    said = " ".join(capsys.readouterr().err.split())
    assert "`train.per_device_train_batch_size=4` and `train.gradient_accumulation_steps=4`" in said
    assert "micro-batches of 8 sequences; going on with 4 sequences" in said
