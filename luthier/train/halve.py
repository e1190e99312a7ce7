"""Memory ran out in spite of the plan: smaller micro-batches from now on, told to the user and to the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.console import note
from luthier.train.memory import out_of_memory, same_batch, smaller_batch
from luthier.train.prefetch import Batches
from luthier.train.progress import Progress
from luthier.train.split import Failed

__all__ = ["Halving"]


@dataclass(slots=True, kw_only=True)
class Halving:
    """Halves the micro-batches of a run where they do not fit."""

    batches: Batches
    position: Progress
    recipe: Recipe
    run: RunFolder
    is_main: bool
    """This process writes the event."""

    def halve(self, failed: Sequence[Failed], *, during: str) -> None:
        """Take smaller micro-batches than those that failed; the caller runs again what it was doing (`during`).

        Raises:
            OutOfMemory: one of them is a single document.
        """
        before = self.batches.size
        after = before.halved(failed)
        if after is None:
            alone = max((item.tokens for item in failed if item.documents == 1), default=0)
            raise out_of_memory(self.recipe, self.batches.feed.device, document=alone)
        peak = max(item.peak_bytes for item in failed)
        self.batches.resize(after)
        self.position.size = after
        if self.is_main:
            self.run.event(
                "memory_halved", step=self.position.step + 1, during=during, before=asdict(before), after=asdict(after),
                peak_bytes=peak,
            )  # fmt: skip
        advice = (smaller_batch(self.recipe, at_most=after.sequences) if after.tokens is None else None) or same_batch(
            self.recipe
        )
        note(
            f"  {during}: memory ran out after {peak / 2**30:.1f} GiB with micro-batches of {before}; going on with "
            f"{after}. Tokens a step and result stay the same. To avoid it next time, {advice}",
            style="yellow",
        )
