"""Contract: the largest micro-batch is measured before the first step, and nothing of the run depends on it."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.plan.calibrate import calibration_file, correction
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import OutOfMemory
from luthier.train import calibrate as subject
from luthier.train.calibrate import Calibration, largest
from luthier.train.feed import Feed
from luthier.train.measure import Clock
from luthier.train.optim import expected_state_bytes, make_optimizer
from luthier.train.optim_state import state_bytes
from luthier.train.order import Order
from luthier.train.predicted import calibration_line, predicted, tell_next_plan
from luthier.train.split import MicroBatchSize
from tests.support.tiny import tiny_model
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train
from tests.train.test_memory import events, level, size
from tests.train.test_optim import give_gradients

NOISY = {"method": {**LORA, "lora_dropout": 0.3}, "objective": {"neftune_noise_alpha": 5.0}, "learning_rate": 5e-3}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"method": FULL}, torch.float32), (NOISY, torch.float32), ({"method": FULL}, torch.bfloat16)],
    ids=["full", "lora with dropout and noise", "bf16"],
)
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)], ids=["one pass", "four passes"])
def test_calibration_changes_no_result(tmp_path, settings, kind, shape):
    runs = [
        train(tmp_path / str(wanted), recipe=resolved(max_steps=4, **size(*shape), **settings),
              model=tiny_model().to(kind), calibrate=wanted)
        for wanted in (False, True)
    ]  # fmt: skip
    assert distance(*runs) == 0.0
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].moved > 1e-4
    assert not events(runs[0], "calibrated")
    assert events(runs[1], "calibrated")[0]["tokens"] > 0


def test_it_runs_the_largest_micro_batch_and_only_once_for_memory(tmp_path):
    """13 rows, 2 a micro-batch, in the seeded order: the pair with most tokens."""
    prepared = data(examples(13))
    with short_of_memory(10_000) as memory:
        run = train(tmp_path, prepared, num_train_epochs=2, calibrate=True, **size(2, 2))
    passes = 1 + subject.TIMED_PASSES
    assert len(set(memory.seen[:passes])) == 1
    assert memory.seen[0] == max(memory.seen[passes : passes + 7]), "of the first epoch, which has 7 micro-batches"
    found = run.result.measured.calibration
    assert (found.tokens, found.documents) == (memory.seen[0], 2)
    mean = sum(map(len, prepared.train)) / 4  # four steps an epoch
    assert found.seconds_per_step == pytest.approx(found.seconds / found.tokens * mean)


def test_of_equal_tokens_the_one_with_more_documents_is_larger():
    rows = examples(2, low=60, high=60) + examples(6, low=20, high=20)
    prepared = data(rows)
    packs = [type(prepared.packs[0])((i,), 60) for i in (0, 1)]
    packs += [type(prepared.packs[0])((2, 3, 4), 60), type(prepared.packs[0])((5,), 20)]
    order = Order(sequences=4, sequences_per_step=2, num_train_epochs=1, shuffle=False)
    feed = Feed(examples=rows, packs=packs, order=order, size=MicroBatchSize(1), rank=0, world_size=1,
                device=torch.device("cpu"))  # fmt: skip
    step, item, passes = largest(feed, 0)
    assert (step, item.index, passes) == (1, 0, 2)
    assert len(item.examples) == 3


def test_a_run_shorter_than_an_epoch_is_measured_on_what_it_will_see():
    rows = examples(2, low=20, high=20) + examples(1, low=60, high=60)
    prepared = data(rows)
    order = Order(sequences=3, sequences_per_step=1, num_train_epochs=1, max_steps=2, shuffle=False)
    feed = Feed(examples=rows, packs=prepared.packs, order=order, size=MicroBatchSize(1), rank=0, world_size=1,
                device=torch.device("cpu"))  # fmt: skip
    assert largest(feed, 0)[1].batch.tokens == 20


@pytest.mark.parametrize("settings", [{"method": FULL}, NOISY], ids=["full", "noisy"])
def test_a_lack_of_memory_shows_before_the_first_step(tmp_path, settings):
    small = train(tmp_path / "small", level(), max_steps=3, **size(2, 4), **settings)
    with short_of_memory(60, backward=True) as memory:
        run = train(tmp_path / "halved", level(), max_steps=3, calibrate=True, **size(8), **settings)
    assert (memory.failures, memory.leaks) == (2, 0)
    assert [line["during"] for line in events(run)] == ["calibration"] * 2
    assert distance(small, run) == 0.0
    assert small.metrics == run.metrics


def test_a_document_that_does_not_fit_ends_the_run_before_the_first_step(tmp_path):
    with short_of_memory(30), pytest.raises(OutOfMemory, match="a single document of 40 tokens"):
        train(tmp_path, level(tokens=40), max_steps=2, calibrate=True, **size(4))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_room_for_the_moments_that_do_not_fit_is_a_lack_of_memory(tmp_path, monkeypatch):
    """The moments come with the first update; without room for them the run would end there."""
    real = torch.empty

    def empty(*args, **kwargs):
        if kwargs.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(OutOfMemory, match="GiB of optimizer state do not fit") as caught:
        train(tmp_path, level(), max_steps=2, calibrate=True, **size(8))
    assert "train.optim=adamw_8bit" in str(caught.value), "smaller micro-batches would not help"
    assert not [line for line in (tmp_path / "events.jsonl").read_text().splitlines() if "halved" in line]


def test_a_resumed_run_calibrates_again_and_a_finished_one_does_not(tmp_path):
    train(tmp_path, max_steps=2, save_steps=1, calibrate=True, fingerprint={})
    with short_of_memory(10_000) as memory:
        again = train(tmp_path, max_steps=2, save_steps=1, calibrate=True, fingerprint={})
    assert memory.seen == []
    assert again.result.measured.calibration is None
    assert again.result.measured.seconds_to_first_step is None


# -- bytes of the optimizer's state


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adamw_8bit"])
def test_the_expected_state_of_an_optimizer_is_what_it_keeps(optim):
    shapes = {"a.weight": (300, 401), "a.bias": (300,), "b.norm": (64,), "c.weight": (2, 3)}
    tensors = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    section = resolved(optim=optim).recipe.train
    optimizer = make_optimizer(tensors, section, learning_rate=1e-3)
    give_gradients(tensors, 0)
    optimizer.step()
    expected = expected_state_bytes(tensors, optim)
    tables = ("step", "qmap1", "qmap2", "RMS")
    kept = [(key, v) for state in optimizer.state.values() for key, v in state.items() if isinstance(v, torch.Tensor)]
    assert sum(value.nbytes for key, value in kept if key not in tables) == expected
    assert expected <= state_bytes(optimizer) <= expected + 4 * len(tensors) + 2 * 1024 * len(tensors)
    assert (expected == 0) == (optim == "sgd")


# -- beside the plan

PLAN = {
    "memory": {"peak": 13_314_398_617, "total": 14_000_000_000},
    "time": {
        "seconds_per_step": 0.8, "parts": {"products": 0.3, "optimizer": 0.1},
        "tokens_per_second": 20_000.0, "mfu": 0.5,
    },
    "predicted": {"key": {"device": "x"}, "peak_bytes": 13_000_000_000, "seconds_per_step": 0.4, "more": 1},
}  # fmt: skip


def test_one_line_says_what_the_plan_said_and_what_was_measured(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    plan = predicted(RunFolder(tmp_path))
    assert plan.update_seconds == pytest.approx(0.2), "corrected as the whole step: 0.8 for 0.4"
    (tmp_path / "offloaded").mkdir()
    parts = {"products": 0.3, "optimizer": 0.1, "offload": 2.0}
    offloaded = {**PLAN, "time": {**PLAN["time"], "seconds_per_step": 2.4, "parts": parts}}
    (tmp_path / "offloaded" / "plan.json").write_text(json.dumps(offloaded))
    assert predicted(RunFolder(tmp_path / "offloaded")).update_seconds == pytest.approx(2.1)
    found = Calibration(tokens=16384, documents=52, seconds=0.4, seconds_per_step=0.6, peak_bytes=12_884_901_888)
    assert calibration_line(found, plan, steps=1200) == (
        "plan said 12.4 GiB and 0.8 s a step; measured 12.0 GiB and 0.8 s a step with 0.2 s planned for the update "
        "(largest micro-batch: 16,384 tokens, 52 documents); 1,200 steps take about 16 min"
    )
    assert calibration_line(found, None, steps=1200).startswith("measured 12.0 GiB and 0.6 s a step (largest")


def test_what_was_measured_is_kept_in_the_run_folder_beside_what_was_planned(tmp_path):
    tmp_path.joinpath("plan.json").write_text(json.dumps(PLAN))
    run = train(tmp_path, data(validation=4), max_steps=3, calibrate=True)
    value = json.loads((tmp_path / "measured.json").read_text())
    assert value.pop("predicted")["peak_bytes"] == 13_314_398_617
    assert value == json.loads(json.dumps(run.result.to_json()["measured"]))
    assert value["steps"] == 3
    assert 0 < value["seconds_per_step"] < value["seconds_to_first_step"]
    assert value["trained_tokens_per_second"] < value["tokens_per_second"]
    assert value["calibration"]["peak_bytes"] > 10_000_000
    assert value["mfu"] == pytest.approx(0.5 * value["tokens_per_second"] / 20_000)


def test_without_a_plan_there_is_nothing_beside_it(tmp_path):
    run = train(tmp_path, max_steps=1)
    assert predicted(run.folder) is None
    assert json.loads((tmp_path / "measured.json").read_text())["predicted"] is None
    assert run.result.measured.mfu is None


def test_medians_leave_the_first_step_out_and_a_slow_one_does_not_move_them():
    clock = Clock()
    for seconds in (9.0, 1.0, 1.0, 5.0, 1.0):
        clock.add(seconds, tokens=100, trained_tokens=60)
    measured = clock.measured(peak_bytes=1, calibration=None)
    assert (measured.seconds_per_step, measured.tokens_per_second) == (1.0, 100.0)
    assert (measured.trained_tokens_per_second, measured.steps) == (60.0, 5)


def test_the_next_plan_on_this_machine_learns_from_a_run(tmp_path):
    tmp_path.joinpath("plan.json").write_text(json.dumps(PLAN))
    run = train(tmp_path, max_steps=3)
    tell_next_plan(run.folder, run.result.measured, cache_dir=tmp_path / "cache")
    found = correction(calibration_file(tmp_path / "cache"), {"device": "x"})
    assert found.runs == 1
    ratio = run.result.measured.seconds_per_step / 0.4
    assert found.seconds == pytest.approx(min(max(ratio, 0.2), 5.0))


def test_a_single_step_or_no_plan_teaches_nothing(tmp_path):
    one = train(tmp_path, max_steps=1)
    tell_next_plan(one.folder, one.result.measured, cache_dir=tmp_path / "cache")
    tmp_path.joinpath("plan.json").write_text(json.dumps(PLAN))
    tell_next_plan(one.folder, one.result.measured, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
