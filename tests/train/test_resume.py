"""Contract: a run that was stopped anywhere ends with the same weights and losses, bit for bit, or is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from typing import Any

import pytest

from luthier.runs.folder import RunFolder
from luthier.runtime.errors import Interrupted, RecipeError, RunFailed
from luthier.train import running
from tests.train.support import FULL, LORA, data, distance, examples, train

ROWS = examples(20)  # 5 steps of 4 an epoch
COMMON = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_steps": 1}

KINDS = {
    "full": {"method": FULL},
    "lora with dropout": {"method": {**LORA, "lora_dropout": 0.3}, "learning_rate": 5e-3},
    "packed": {"method": FULL},
    "neftune": {"method": FULL, "objective": {"neftune_noise_alpha": 5.0}},
    "adafactor": {"method": FULL, "optim": "adafactor"},
    "adamw 8 bit": {"method": FULL, "optim": "adamw_8bit"},
    "cosine": {"method": FULL, "lr_scheduler_type": "cosine", "warmup_steps": 2},
}


class Crash(Exception):
    """Stands for a kill between two steps."""


@pytest.fixture
def crash_before(monkeypatch):
    """Make the run die before step n (from 1); `None` lets it live."""
    real = running.update

    def at(step: int | None) -> None:
        def update(trainer, micro_batches, *, step: int, stop_requested):
            if step + 1 == limit:
                raise Crash
            return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

        limit = step
        monkeypatch.setattr(running, "update", update)

    return at


def prepared(kind: str):
    return data(ROWS, packed=kind == "packed", validation=6)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run of some settings that nobody stopped; made once per settings."""
    made: dict[str, Any] = {}

    def run(kind: str, settings: dict[str, Any]):
        key = f"{kind} {settings}"
        if key not in made:
            made[key] = train(tmp_path_factory.mktemp("whole"), prepared(kind), **settings)
        return made[key]

    return run


MOST = [*itertools.product(["full", "lora with dropout", "packed"], [2, 4, 6, 9])]
"""Mid-epoch, at the end of an epoch (6: five steps are done), in the second epoch."""


@pytest.mark.parametrize(("kind", "stop"), [*MOST, *((kind, 6) for kind in KINDS if kind not in dict(MOST))])
def test_resumed_equals_uninterrupted(tmp_path, crash_before, uninterrupted, kind, stop):
    settings = {**COMMON, **KINDS[kind], "eval_steps": 2}
    if kind == "packed":
        settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    whole = uninterrupted(kind, settings)
    assert whole.result.steps >= stop
    crash_before(stop)
    with pytest.raises(Crash):
        train(tmp_path / "cut", prepared(kind), **settings)
    crash_before(None)
    resumed = train(tmp_path / "cut", prepared(kind), **settings)
    assert resumed.result.resumed_from == stop - 1
    assert distance(whole, resumed) == 0.0
    assert whole.metrics == resumed.metrics, "every line once, with the same numbers"
    assert whole.moved > 1e-3


def test_resuming_from_an_older_checkpoint_rolls_the_metrics_back(tmp_path, crash_before, uninterrupted):
    settings = {**COMMON, "save_steps": 3, "eval_steps": 2}
    whole = uninterrupted("full", settings)
    crash_before(6)
    with pytest.raises(Crash):
        train(tmp_path / "cut", prepared("full"), **settings)
    steps = [line["step"] for line in RunFolder(tmp_path / "cut").read_lines("metrics.jsonl")]
    assert max(steps) == 5
    with (tmp_path / "cut/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # killed while writing
    crash_before(None)
    resumed = train(tmp_path / "cut", prepared("full"), **settings)
    assert resumed.result.resumed_from == 3
    assert resumed.metrics == whole.metrics
    assert distance(whole, resumed) == 0.0


def test_killed_before_the_first_checkpoint_starts_over_with_the_same_result(tmp_path, crash_before, uninterrupted):
    settings = {**COMMON, "save_steps": None}
    whole = uninterrupted("full", settings)
    crash_before(4)
    with pytest.raises(Crash):
        train(tmp_path / "cut", prepared("full"), **settings)
    crash_before(None)
    again = train(tmp_path / "cut", prepared("full"), **settings)
    assert again.result.resumed_from is None
    assert again.metrics == whole.metrics
    assert distance(whole, again) == 0.0


def test_a_finished_run_is_not_trained_again(tmp_path):
    one = train(tmp_path, prepared("full"), **COMMON)
    (tmp_path / "final/model.safetensors").unlink()
    two = train(tmp_path, prepared("full"), **COMMON)
    assert two.result.resumed_from == one.result.steps
    assert distance(one, two) == 0.0
    assert one.metrics == two.metrics
    assert (tmp_path / "final/model.safetensors").is_file(), "what a kill after the last step left undone is done"
    assert two.result.to_json()["first_loss"] == one.result.to_json()["first_loss"]


def test_metric_windows_survive(tmp_path, crash_before, uninterrupted):
    """A line over several steps, half of them before the kill."""
    settings = {**COMMON, "logging_steps": 4}
    whole = uninterrupted("full", settings)
    crash_before(7)
    with pytest.raises(Crash):
        train(tmp_path / "cut", prepared("full"), **settings)
    crash_before(None)
    resumed = train(tmp_path / "cut", prepared("full"), **settings)
    assert [line["step"] for line in resumed.metrics if "loss" in line] == [4, 8, 10]
    assert resumed.metrics == whole.metrics
    single = train(tmp_path / "single", prepared("full"), **COMMON)
    lines = single.metrics[:4]
    mean = sum(line["loss"] * line["trained_tokens"] for line in lines) / sum(line["trained_tokens"] for line in lines)
    assert whole.metrics[0]["loss"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("stop", [3, 5])
def test_early_stopping_counts_on_after_a_kill(tmp_path, crash_before, uninterrupted, stop):
    """A learning rate that makes the validation loss rise: best at the first evaluations, then patience."""
    settings = {
        **COMMON, "eval_steps": 1, "early_stopping_patience": 4, "learning_rate": 3e-2, "num_train_epochs": 4,
        "load_best_model_at_end": True,
    }  # fmt: skip
    whole = uninterrupted("full", settings)
    assert whole.result.stopped == "early_stopping"
    assert stop <= whole.result.steps < whole.result.total_steps
    crash_before(stop)
    with pytest.raises(Crash):
        train(tmp_path / "cut", prepared("full"), **settings)
    crash_before(None)
    resumed = train(tmp_path / "cut", prepared("full"), **settings)
    assert resumed.metrics == whole.metrics
    assert distance(whole, resumed) == 0.0
    clock = ("seconds", "tokens_per_second", "trained_tokens_per_second", "peak_bytes", "measured", "resumed_from")
    one, other = (
        {key: value for key, value in run.result.to_json().items() if key not in clock} for run in (whole, resumed)
    )
    assert one == other


@pytest.fixture
def stopped_at_validation(tmp_path, monkeypatch) -> dict[str, Any]:
    """A run in `cut` that a signal stopped before the validation of step 4; its settings."""
    settings = {**COMMON, "eval_steps": 2}
    real = running.validate

    def interrupted(trainer, rows, *, step: int, **kwargs):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, rows, step=step, **kwargs)

    monkeypatch.setattr(running, "validate", interrupted)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", prepared("full"), **settings)
    monkeypatch.setattr(running, "validate", real)
    return settings


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed after it, before the next checkpoint"])
def test_a_signal_during_validation_validates_again_on_resuming(
    tmp_path, crash_before, uninterrupted, stopped_at_validation, killed
):
    """Once in the metrics, however often it is made."""
    settings = stopped_at_validation
    if killed:
        crash_before(5)
        with pytest.raises(Crash):
            train(tmp_path / "cut", prepared("full"), **settings)
        crash_before(None)
    whole = uninterrupted("full", settings)
    resumed = train(tmp_path / "cut", prepared("full"), **settings)
    assert resumed.result.resumed_from == 4
    assert resumed.metrics == whole.metrics
    assert distance(whole, resumed) == 0.0


# -- damage


@pytest.fixture(scope="module")
def died_at_6(tmp_path_factory):
    """The folder of a run that died before step 6, once there is one."""
    return tmp_path_factory.mktemp("cut") / "run"


@pytest.fixture
def cut(died_at_6, crash_before):
    """Makes a folder a copy of it."""

    def copy(folder) -> None:
        if not died_at_6.exists():
            crash_before(6)
            with pytest.raises(Crash):
                train(died_at_6, prepared("full"), **COMMON)
            crash_before(None)
        shutil.copytree(died_at_6, folder, dirs_exist_ok=True)

    return copy


FILES = ["trainable-00001.safetensors", "optimizer-00001.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, cut, uninterrupted, name, damage):
    """B50, F30: transformers goes on from fresh optimizer state without a word (d = 6.5e-3)."""
    whole = uninterrupted("full", COMMON)
    folder = tmp_path / "cut"
    cut(folder)
    file = folder / "checkpoints/step-5" / name
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    resumed = train(folder, prepared("full"), **COMMON)
    assert resumed.result.resumed_from == 4
    refused = [line for line in resumed.folder.read_lines("events.jsonl") if line["event"] == "checkpoint_refused"]
    assert [line["step"] for line in refused] == [5]
    if not (name == "manifest.json" and damage == "flipped"):
        assert name in refused[0]["problems"][0]
    assert distance(whole, resumed) == 0.0
    assert resumed.metrics == whole.metrics


def test_when_every_checkpoint_is_damaged_the_run_ends_and_names_each(tmp_path, cut):
    cut(tmp_path)
    for step in (4, 5):
        (tmp_path / f"checkpoints/step-{step}/state.json").unlink()
    with pytest.raises(RunFailed) as caught:
        train(tmp_path, prepared("full"), **COMMON)
    text = str(caught.value)
    assert "step-4/state.json is missing" in text
    assert "step-5/state.json is missing" in text
    assert "--restart" in text
    again = train(tmp_path, prepared("full"), restart=True, **COMMON)
    assert again.result.resumed_from is None
    assert [line["step"] for line in again.metrics if "loss" in line] == list(range(1, 11))


def test_the_newest_step_is_used_whatever_the_clock_says(tmp_path, cut):
    """F29: transformers orders by the time of files."""
    cut(tmp_path)
    future = 4_000_000_000
    for path in [tmp_path / "checkpoints/step-4", *(tmp_path / "checkpoints/step-4").iterdir()]:
        os.utime(path, (future, future))
    assert train(tmp_path, prepared("full"), **COMMON).result.resumed_from == 5


def test_what_a_killed_writer_left_is_removed(tmp_path, cut):
    cut(tmp_path)
    leftover = tmp_path / "checkpoints/.tmp-abc"
    leftover.mkdir()
    (leftover / "trainable-00001.safetensors").write_bytes(b"half")
    train(tmp_path, prepared("full"), **COMMON)
    assert not leftover.exists()


# -- another run


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"learning_rate": 5e-4}, "train.learning_rate: 0.001 -> 0.0005"),
        ({"seed": 1}, "train.seed: 0 -> 1"),
        ({"per_device_train_batch_size": 4}, "train.per_device_train_batch_size: 2 -> 4"),
        ({"num_train_epochs": 3.0}, "train.num_train_epochs: 2.0 -> 3.0"),
        ({"optim": "adamw_torch"}, "train.optim: adamw_torch_fused -> adamw_torch"),
    ],
)
def test_a_changed_setting_is_refused_with_the_difference(tmp_path, cut, change, line):
    """B50: a changed learning rate is ignored elsewhere, a changed seed accepted."""
    cut(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(RecipeError) as caught:
        train(tmp_path, prepared("full"), **{**COMMON, **change})
    text = str(caught.value)
    assert line in text
    assert "--restart" in text
    assert caught.value.exit_code == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == before, "a refusal changes nothing"
    again = train(tmp_path, prepared("full"), restart=True, **{**COMMON, **change})
    assert again.result.resumed_from is None


@pytest.mark.parametrize("key", ["data", "base"])
def test_changed_data_or_base_is_refused(tmp_path, crash_before, key):
    """F32."""
    fingerprint = {"data": "aa", "base": {"weights": "bb"}}
    crash_before(3)
    with pytest.raises(Crash):
        train(tmp_path, prepared("full"), fingerprint=fingerprint, **COMMON)
    crash_before(None)
    other = {**fingerprint, key: "cc"}
    with pytest.raises(RecipeError, match=rf"{key}.*-> "):
        train(tmp_path, prepared("full"), fingerprint=other, **COMMON)


@pytest.mark.parametrize(("batch", "goes_on"), [(1, True), (2, False)])
def test_another_number_of_processes_goes_on_where_a_step_is_the_same_set(tmp_path, cut, batch, goes_on):
    """4 sequences a step: 1 x 2 on each of two processes; with 2 x 2 on each a step would have 8."""
    cut(tmp_path)

    def of_two(state: dict) -> None:
        state["identity"]["processes"] = 2
        state["identity"]["train"]["per_device_train_batch_size"] = batch

    for step in (4, 5):
        pretend(tmp_path / f"checkpoints/step-{step}", of_two)
    if not goes_on:
        with pytest.raises(RecipeError, match="sequences_per_step: 8 -> 4"):
            train(tmp_path, prepared("full"), **COMMON)
        return
    run = train(tmp_path, prepared("full"), **COMMON)
    assert run.result.resumed_from == 5
    assert any(line["event"] == "resumed_on_other_processes" for line in run.folder.read_lines("events.jsonl"))


def test_another_library_version_is_reported_and_not_refused(tmp_path, cut):
    """F31."""
    cut(tmp_path)
    pretend(tmp_path / "checkpoints/step-5", lambda state: state["versions"].update(torch="1.0"))
    run = train(tmp_path, prepared("full"), **COMMON)
    events = [line for line in run.folder.read_lines("events.jsonl") if line["event"] == "resumed_with_other_versions"]
    assert run.result.resumed_from == 5
    assert events[0]["changed"][0].startswith("torch: 1.0 -> ")


def pretend(path, change) -> None:
    """Rewrite the state of a checkpoint, manifest included."""
    from luthier.runtime.hashing import hash_file

    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {
        "bytes": (path / "state.json").stat().st_size,
        "blake2b": hash_file(path / "state.json"),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
