"""Checkpoints as servers load them: beside each `checkpoints/step-N` a `served/step-N`, an adapter or a model.

A checkpoint holds what training needs to go on, in a form of its own; this is what `luthier serve` and PEFT read. Both
come and go together.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import TEMP_PREFIX, sweep

__all__ = ["Served"]


@dataclass(frozen=True, slots=True)
class Served:
    """Writes and removes them; on process 0 only."""

    run: RunFolder
    write: Callable[[Path], None]
    """Saves the weights as they are now into a folder that is complete or absent."""

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.run.path / "served"

    def keep(self, step: int, removed: Iterable[int] = ()) -> None:
        """Write the one of the present step, unless it is there (a kill between the two can leave it out).

        Args:
            step: The model is as after this step.
            removed: Steps whose checkpoints are gone: theirs go, too.
        """
        sweep(self.folder)
        target = self.folder / f"step-{step}"
        if not target.is_dir():
            self.write(target)
        self.run.event("checkpoint_served", step=step, path=f"served/step-{step}")
        for gone in removed:
            self._remove(gone)

    def _remove(self, step: int) -> None:
        target = self.folder / f"step-{step}"
        if target.is_dir():
            doomed = self.folder / f"{TEMP_PREFIX}step-{step}"
            target.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self.run.event("checkpoint_unserved", step=step)
