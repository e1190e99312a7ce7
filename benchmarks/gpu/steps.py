"""Steps as the product's loop takes them: batches prepared ahead (on CUDA), one `update` each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.data.types import Example, Pack
from luthier.recipe.schema import Recipe
from luthier.train.prefetch import Batches
from luthier.train.setup import fit_base, make_feed, make_order
from luthier.train.step import Update, update

__all__ = ["Steps"]


class Steps:
    """A trainer with its batches. `close` it."""

    def __init__(
        self, trainer: Any, accelerator: Any, recipe: Recipe, *, examples: Sequence[Example], packs: Sequence[Pack]
    ) -> None:
        self.trainer = trainer
        order = make_order(recipe.train, sequences=len(packs), world_size=1)
        fit_base(trainer, examples, packs, order=order)
        feed = make_feed(accelerator, order, recipe.train, examples=examples, packs=packs, size=None)
        self.batches = Batches(feed)
        self.taken = 0

    def take(self) -> Update:
        """The next step."""
        result = update(
            self.trainer, self.batches.take(self.taken), step=self.taken, stop_requested=lambda: False
        )  # fmt: skip
        self.taken += 1
        return result

    def close(self) -> None:
        """End the thread, give the model back."""
        self.batches.close()
        self.trainer.weights.close()
        self.trainer.engine.detach()
