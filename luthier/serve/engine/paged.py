"""The engine's slots over pages (`luthier.generation.paged`), for a GPU. Same calls as `slots.Slots`.

Beginnings that are kept are pages with one more user, so keeping and finding one copies nothing; whole pages only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from luthier.generation.decode import context_length
from luthier.generation.paged.graphs import recorded_size
from luthier.generation.paged.model import PagedModel, Shape
from luthier.generation.paged.pool import PAGE_TOKENS, pages_for
from luthier.generation.paged.support import shape_of
from luthier.runtime.console import note
from luthier.serve.engine.adapters import Adapter, AdapterBank
from luthier.serve.engine.scheduler import EngineLimits
from luthier.serve.engine.slots import Slots

__all__ = ["PagedSlots", "new_slots"]

# Tokens of a row when neither the model nor the limits say.
UNKNOWN_CONTEXT = 32_768


def new_slots(model: Any, limits: EngineLimits, bank: AdapterBank, *, paged: bool | None) -> Slots | PagedSlots:
    """Pages on a GPU where the model allows it (None) or anywhere (True); otherwise one slot a row.

    Raises:
        EnvironmentProblem: the model cannot be served here at all.
    """
    if paged is False or (paged is None and model.device.type != "cuda"):
        return Slots(model)
    with torch.inference_mode():
        shape = shape_of(model)
        if isinstance(shape, Shape):
            return PagedSlots(model, shape, limits, bank)
    slots = Slots(model)
    note(f"served row by row, without pages and CUDA graphs: {shape}")
    return slots


class PagedSlots:
    """Rows in the engine's order, each in a slot of a `PagedModel`."""

    def __init__(self, model: Any, shape: Shape, limits: EngineLimits, bank: AdapterBank) -> None:
        context = min(context_length(model) or UNKNOWN_CONTEXT, limits.cache_tokens)
        rows = min(limits.cache_tokens, limits.max_batch_size * (context + PAGE_TOKENS))
        self.bank = bank
        self.paged = PagedModel(
            model, shape, slots=limits.max_batch_size, tokens=rows + limits.prefix_tokens + PAGE_TOKENS,
            context=context + PAGE_TOKENS,
        )  # fmt: skip
        self._order: list[int] = []
        self._packs = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def bytes(self) -> int:
        """Memory of the pages in use."""
        return self.paged.pool.used * self.paged.pool.page_bytes

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self.paged.lengths[slot] for slot in self._order]

    def ready(self) -> AbstractContextManager[None]:
        """To be held while the engine works."""
        return self.paged.ready()

    def open(self) -> int:
        """A new empty row behind the last; its index."""
        self._order.append(self.paged.open())
        return len(self._order) - 1

    def close(self, row: int) -> None:
        """Free a row; the last one takes its index."""
        self.paged.close(self._order[row])
        self._order[row] = self._order[-1]
        self._order.pop()

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows' indices."""
        self._order[one], self._order[other] = self._order[other], self._order[one]

    def copy_out(self, row: int, length: int) -> list[int]:
        """Pages full of a row's first `length` tokens, with one more user."""
        pages = self.paged.full_pages(self._order[row], length)
        self.paged.pool.share(pages)
        return pages

    def copy_in(self, row: int, held: Sequence[int], length: int) -> int:
        """Begin an empty row with pages of at most `length` tokens; how many that were."""
        pages = held[: length // PAGE_TOKENS]
        self.paged.adopt(self._order[row], pages)
        return len(pages) * PAGE_TOKENS

    def release(self, held: Sequence[int]) -> None:
        """What `copy_out` gave is not needed any more."""
        self.paged.pool.release(held)

    def kept_length(self, length: int) -> int:
        """How many of so many tokens `copy_out` can keep."""
        return length // PAGE_TOKENS * PAGE_TOKENS

    def read(
        self, first: int, tokens: Sequence[Sequence[int]], adapters: Sequence[Adapter | None]
    ) -> tuple[Tensor, Tensor]:
        """Read new tokens of rows `first`, ...: likeliest next tokens (R,), -1 if not finite, and logits (R, V)."""
        self.bank.use(adapters, counts=[len(row) for row in tokens])
        slots = self._order[first : first + len(tokens)]
        return self.paged.read(list(zip(slots, tokens, strict=True)))

    def decode(self, rows: Sequence[int], adapters: Sequence[Adapter | None]) -> tuple[Tensor, Tensor]:
        """One more token for some rows; as `read`. Overwritten by the next call."""
        self.bank.use(adapters, room=recorded_size(len(rows)))
        if self.bank.wanted and self.bank.version != self._packs and self.paged.graphs is not None:
            self.paged.graphs.forget(self._packs)
            self._packs = self.bank.version
        tokens = self.paged.decode([self._order[row] for row in rows], self.bank.version if self.bank.wanted else None)
        return tokens, self.paged.logits

    def set_last(self, rows: Sequence[int], tokens: Tensor) -> None:
        """Tokens that were chosen instead of the likeliest."""
        self.paged.set_last([self._order[row] for row in rows], tokens)

    def most_tokens(self, tokens: int) -> int:
        """Tokens that a row of so many takes from the pool."""
        return pages_for(tokens) * PAGE_TOKENS
