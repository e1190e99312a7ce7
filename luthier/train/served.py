"""Checkpoints as servers load them: beside each `checkpoints/step-N` a `served/step-N`, an adapter or a model.

A checkpoint holds what training needs to go on, in a form of its own; this is what `luthier serve` and PEFT read. Both
come and go together.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import TEMP_PREFIX, sweep
from luthier.train.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Served"]


@dataclass(frozen=True, slots=True)
class Served:
    """Writes and removes them. Called on all processes: shards are gathered from all of them."""

    run: RunFolder
    accelerator: Accelerator
    write: Callable[[Path], None]
    """Saves the weights as they are now into a folder that is complete or absent; called on all processes."""

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
        target = self.folder / f"step-{step}"

        def missing() -> bool:
            sweep(self.folder)
            return not target.is_dir()

        if on_main(self.accelerator, missing):
            self.write(target)

        def told() -> None:
            self.run.event("checkpoint_served", step=step, path=f"served/step-{step}")
            for gone in removed:
                self._remove(gone)

        on_main(self.accelerator, told)

    def _remove(self, step: int) -> None:
        target = self.folder / f"step-{step}"
        if target.is_dir():
            doomed = self.folder / f"{TEMP_PREFIX}step-{step}"
            target.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self.run.event("checkpoint_unserved", step=step)
