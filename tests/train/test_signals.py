"""Contract: the first signal saves and ends with 130, the second ends at once; handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from luthier.runtime.errors import Interrupted
from luthier.runtime.signals import Stop, stop_on_signals
from luthier.train import running, step
from tests.train.fork import forked
from tests.train.support import data, distance, examples, train

SETTINGS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_steps": 4}


def rows():
    return data(examples(20))


def signal_in_micro_batch(monkeypatch, number: int, *, at_step: int, micro_batch: int) -> None:
    """Send a signal to this process when a micro-batch begins."""
    real = step.seed_micro_batch

    def seed(*, seed: int, step: int, micro_batch: int, rank: int) -> None:
        if (step + 1, micro_batch) == (at_step, position):
            os.kill(os.getpid(), number)
        real(seed=seed, step=step, micro_batch=micro_batch, rank=rank)

    position = micro_batch
    monkeypatch.setattr(step, "seed_micro_batch", seed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("micro_batch", "saved"), [(0, 2), (1, 3)])
def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path, monkeypatch, number, micro_batch, saved):
    """F02: a signal in the first of two micro-batches gives the step up (nothing was changed), in the last ends it."""
    whole = train(tmp_path / "whole", rows(), **SETTINGS)
    signal_in_micro_batch(monkeypatch, number, at_step=3, micro_batch=micro_batch)
    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "cut", rows(), **SETTINGS)
    assert caught.value.exit_code == 130
    assert f"stopped after step {saved} of 10" in str(caught.value)
    assert (tmp_path / f"cut/checkpoints/step-{saved}/manifest.json").is_file()
    assert not (tmp_path / "cut/final").exists()
    monkeypatch.undo()
    resumed = train(tmp_path / "cut", rows(), **SETTINGS)
    assert resumed.result.resumed_from == saved
    assert distance(whole, resumed) == 0.0
    assert resumed.metrics == whole.metrics


def test_a_signal_before_the_first_step_is_finished_saves_nothing_and_says_so(tmp_path, monkeypatch):
    signal_in_micro_batch(monkeypatch, signal.SIGINT, at_step=1, micro_batch=0)
    with pytest.raises(Interrupted, match="nothing had to be saved"):
        train(tmp_path, rows(), **SETTINGS)
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_signal_ends_at_once():
    def child() -> None:
        with stop_on_signals():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            time.sleep(240)

    started = time.monotonic()
    ended = forked(child)
    assert (ended.exit_code, ended.signal) == (130, 0)
    assert time.monotonic() - started < 120


def test_of_several_processes_a_second_signal_is_the_launchers(monkeypatch):
    """A cluster sends SIGTERM to all of a job, and the launcher passes its own on: they still save."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    def child() -> str:
        with stop_on_signals() as stop:
            stop.begun = True
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            stop._since -= 31  # later than torch's agent would have killed it
            if stop.requested:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return "lives"

    def loading() -> str:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return "lives"

    for action in (child, loading):
        ended = forked(action)
        assert (ended.exit_code, ended.signal) == (130, 0)


def test_a_stop_during_a_long_step_comes_quickly(tmp_path):
    """A real signal from outside, a step of many micro-batches: far from finished, saved and gone within seconds."""
    settings = {**SETTINGS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 400}

    def child() -> str:
        real = running.update

        def slow(*args, **kwargs):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return real(*args, **kwargs)

        running.update = slow
        try:
            train(tmp_path, data(examples(400, low=50, high=60)), **settings)
        except Interrupted as error:
            return str(error)
        return "finished"

    ended = forked(child)
    assert "no step was finished" in ended.value


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop.handle
        assert not stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_there_is_a_flag_and_no_handler():
    found: list[Stop] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0].requested


def test_a_handler_imports_nothing():
    """It may have come in the middle of the import of the very same module."""
    code = (
        "import sys\n"
        "from luthier.runtime.signals import stop_on_signals\n"
        "with stop_on_signals() as stop:\n"
        "    before = set(sys.modules)\n"
        "    stop.handle(2, None)\n"
        "    print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]" and "SIGINT: saving a checkpoint" in done.stderr
