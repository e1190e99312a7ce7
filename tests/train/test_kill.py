"""Contract: SIGKILL at any file operation of a save leaves every checkpoint complete or absent, and resuming is exact.

A forked child kills itself at its n-th operation on the run folder: every open, mkdir, rename,
removal and fsync (seen by an audit hook and by wrapping `os.fsync`), and in the middle of
every safetensors file. The child is a real process and SIGKILL is real; only the moment is chosen.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

from luthier.train.checkpoint import checkpoints, verify
from tests.train.fork import forked
from tests.train.support import LORA, data, distance, examples, train

SETTINGS = {
    "per_device_train_batch_size": 4, "num_train_epochs": 2, "save_steps": 2, "save_total_limit": 2,
    "method": LORA, "learning_rate": 5e-3,
}  # fmt: skip
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def rows():
    return data(examples(20))


class Counter:
    """Counts operations on a folder; at the limit the process dies."""

    def __init__(self, folder, limit: int | None) -> None:
        self.folder, self.limit, self.count = str(folder), limit, 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Install in this process for good: only ever called in a child."""
        import safetensors.torch

        real_sync, real_save = os.fsync, safetensors.torch.save_file

        def audit(event: str, arguments: tuple) -> None:
            if event in WATCHED and self.folder in str(arguments[0]):
                self.tick()

        def fsync(handle) -> None:
            self.tick()
            real_sync(handle)

        def save_file(tensors, path, **kwargs) -> None:
            real_save(tensors, path, **kwargs)
            if self.folder in str(path):
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])  # torn: these two opens are counted, too
                path.write_bytes(content)

        sys.addaudithook(audit)
        os.fsync = fsync
        safetensors.torch.save_file = save_file


def killed_at(folder, limit: int | None):
    def child() -> int:
        counter = Counter(folder, limit)
        counter.watch()
        train(folder, rows(), **SETTINGS)
        return counter.count

    return forked(child)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run", rows(), **SETTINGS)


@pytest.fixture(scope="module")
def operations(tmp_path_factory) -> int:
    """File operations of an uninterrupted run."""
    return killed_at(tmp_path_factory.mktemp("count") / "run", None).value


def check(folder, limit: int, whole) -> None:
    ended = killed_at(folder, limit)
    assert ended.signal == signal.SIGKILL
    for item in checkpoints(folder / "checkpoints"):
        assert verify(item.path) == [], f"killed at operation {limit}"
    resumed = train(folder, rows(), **SETTINGS)
    assert distance(whole, resumed) == 0.0
    assert resumed.metrics == whole.metrics
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".tmp-")] == []
    assert (folder / "final/adapter_model.safetensors").is_file()


POINTS = 14


@pytest.mark.parametrize("share", range(POINTS))
def test_killed_at_points_spread_over_the_run(tmp_path, whole, operations, share):
    assert operations > 100
    check(tmp_path / "run", 1 + share * (operations - 1) // (POINTS - 1), whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_operation(tmp_path, whole, operations):
    for limit in range(1, operations + 1):
        check(tmp_path / str(limit), limit, whole)


def test_the_count_reaches_saves_and_removals(tmp_path, whole, operations):
    """The sweep is only worth something if it passes through saving, renaming and removing."""
    seen: set[str] = set()

    def child() -> set[str]:
        def audit(event: str, arguments: tuple) -> None:
            if event in WATCHED and str(tmp_path) in str(arguments[0]):
                seen.add(event)

        sys.addaudithook(audit)
        train(tmp_path, rows(), **SETTINGS)
        return seen

    assert forked(child).value >= {"open", "os.mkdir", "os.rename", "shutil.rmtree"}
    assert len(whole.metrics) == 10
