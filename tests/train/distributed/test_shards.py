"""Which error a sharded checkpoint that cannot be written ends each process with."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

import pytest

from luthier.runtime.errors import EnvironmentProblem, RunFailed
from luthier.train.distributed.shards import _finish, _told


def failed(mine: int, error: Exception) -> None:
    """In process `mine`, where process 1 could not write."""
    from torch.distributed.checkpoint import CheckpointException

    with _told(Path("checkpoints/.tmp-step-2"), mine):
        raise CheckpointException("write", {1: (error, traceback.StackSummary())})


def test_the_one_that_could_not_write_says_why_and_the_others_that_they_follow():
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:
        failed(1, full)
    assert caught.value.exit_code == 4
    with pytest.raises(RunFailed) as caught:
        failed(0, full)
    assert caught.value.problems[0].code == "T462" and "process 1 could not write" in str(caught.value)
    with pytest.raises(RunFailed) as caught:
        failed(1, ValueError("odd"))
    assert caught.value.problems[0].code == "L290" and "ValueError: odd" in str(caught.value)


def test_a_damaged_checkpoint_is_replaced_whole(tmp_path):
    old, temporary = tmp_path / "step-2", tmp_path / ".tmp-step-2"
    for folder, text in ((old, "damaged"), (temporary, "new")):
        folder.mkdir()
        (folder / "shard-00001-model.safetensors").write_text(text)
    _finish(temporary, old, {"step": 2})
    assert (old / "shard-00001-model.safetensors").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["step-2"]
