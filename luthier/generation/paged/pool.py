"""Pages of keys and values. A row's tokens stand in pages of its own, or in pages it shares with others.

A page that several rows (or kept beginnings) use is full and never written again, so sharing needs no copy.
Page 0 is nobody's: rows that only fill up a batch write there.

Legend: L layers, P pages, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PAGE_TOKENS", "NoPages", "PagePool", "pages_for"]

PAGE_TOKENS = 64


class NoPages(Exception):
    """The pool is used up; the caller frees rows or waits."""


def pages_for(tokens: int) -> int:
    """Pages that so many tokens need."""
    return -(-tokens // PAGE_TOKENS)


class PagePool:
    """Storage and a count of users per page.

    Args:
        layers: Of the model.
        heads: Key/value heads.
        head_size: Of keys and of values.
        pages: Without page 0.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self, *, layers: int, heads: int, head_size: int, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Not cleared: whatever no token was written to is masked when it is loaded.
        self.data = torch.empty(2, layers, (pages + 1) * PAGE_TOKENS, heads, head_size, dtype=dtype, device=device)
        self.pages = pages
        self._free = list(range(pages, 0, -1))
        self._users = [0] * (pages + 1)

    @property
    def free(self) -> int:
        """Pages without a user."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages with a user."""
        return self.pages - len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return int(self.data.nbytes) // (self.pages + 1)

    def keys(self, layer: int) -> Tensor:
        """(P x page, H, D)."""
        return self.data[0, layer]

    def values(self, layer: int) -> Tensor:
        """(P x page, H, D)."""
        return self.data[1, layer]

    def take(self, count: int) -> list[int]:
        """Pages for one user: all of them or none.

        Raises:
            NoPages: not so many are free.
        """
        if count > len(self._free):
            raise NoPages
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._users[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more user for pages in use."""
        for page in pages:
            self._users[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One user less; pages without any are free."""
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
