"""Which old checkpoints may go. Nothing is removed before the newest one has been verified."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from luthier.runtime.atomic import TEMP_PREFIX
from luthier.train.checkpoint import Checkpoint, checkpoints

__all__ = ["remove_old", "superfluous"]


def superfluous(found: Sequence[Checkpoint], *, newest: int, best: int | None, keep: int) -> list[Checkpoint]:
    """Checkpoints beyond the `keep` newest, the best one never among them.

    `newest` is the step just written and verified; folders of later steps were left by a run
    that was rolled back (a damaged checkpoint), so they are not counted and not touched.
    """
    past = [item for item in found if item.step <= newest and item.step != best]
    past.sort(key=lambda item: item.step, reverse=True)
    return [item for item in past[keep:] if item.step != newest]


def remove_old(folder: Path, *, newest: int, best: int | None, keep: int) -> list[int]:
    """Remove what is superfluous in `folder`; returns the steps removed."""
    removed = superfluous(checkpoints(folder), newest=newest, best=best, keep=keep)
    for item in removed:
        # Renamed first: a kill in the middle leaves something that `sweep` removes, not half a checkpoint.
        doomed = folder / f"{TEMP_PREFIX}{item.path.name}"
        item.path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [item.step for item in removed]
