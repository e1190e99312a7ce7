"""One batch of prompts being answered: read the prompts, then decode; finished rows leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.generation.cache import Group, Prefix, joined, loses_rows, new_cache
from luthier.generation.decode import extend, find_stop

__all__ = ["Batch", "grouped"]

# Rows that met a stop token leave the batch every so many tokens. Less often: computing for finished
# rows; more often: the set-up time of `generate` (about 2 ms) and copies of the cache.
SEGMENT_TOKENS = 16
# Prompts are read in groups. Below so many tokens a forward is not busy enough for padding to matter ...
GROUP_TOKENS = {"cpu": 256, "cuda": 4_096}
# ... above, this share of padding starts a new group, and so many tokens fill one.
GROUP_PADDING = 1 / 16
MAX_GROUP_TOKENS = 16_384


class Batch:
    """Rows of `ids`: shared prefix, padding, the row's own prompt, its answer so far.

    Args:
        inner: From `ready_to_generate`.
        prompts: Token ids, longest first.
        prefix: What all of them begin with, or None.
        config: From `decode.settings`.
        stop_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        inner: Any,
        prompts: Sequence[Sequence[int]],
        prefix: Prefix | None,
        config: Any,
        *,
        stop_ids: frozenset[int],
    ) -> None:
        self.inner, self.config, self.stop_ids, self.prefix = inner, config, stop_ids, prefix
        self.prompts = prompts
        self.width = max(map(len, prompts))
        self.rows = list(range(len(prompts)))
        """Which prompt each row of `ids` belongs to."""
        self.ids: Tensor
        self.mask: Tensor
        self.cache: Any

    @property
    def grown(self) -> int:
        """Columns behind the prompts."""
        return int(self.ids.shape[1]) - self.width

    def decode(
        self, max_new_tokens: int, on_tokens: Callable[[int, int], None]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (index of the prompt, generated ids) as rows finish; `on_tokens` hears (rows, tokens each)."""
        limit = self.width + max_new_tokens
        self._read()
        on_tokens(len(self.rows), 1)
        leaving = loses_rows(self.cache)
        segment = SEGMENT_TOKENS if leaving else max_new_tokens
        while True:
            done = self._finished(full=self.ids.shape[1] >= limit)
            if leaving or len(done) == len(self.rows):
                yield from done.values()
                self._drop(set(done))
            if not self.rows:
                return
            before = self.ids.shape[1]
            step = min(segment, limit - before)
            self.ids = extend(self.inner, self.ids, self.mask, self.cache, self.config, new_tokens=step)
            grown = self.ids.shape[1] - before
            self.mask = torch.nn.functional.pad(self.mask, (0, grown), value=1)
            on_tokens(len(self.rows), grown)

    def _read(self) -> None:
        """Compute the prompts' keys and values and the first token of every answer."""
        shared = len(self.prefix.ids) if self.prefix else 0
        own = [len(prompt) - shared for prompt in self.prompts]
        _, simple = new_cache(self.inner)
        spans = grouped(own, floor=GROUP_TOKENS.get(self.inner.device.type, 256)) if simple else [(0, len(own))]
        groups, tokens = [], []
        for start, end in spans:
            prompts = self.prompts[start:end]
            ids, mask = self._laid_out(prompts, shared, max(map(len, prompts)))
            cache = self.prefix.expanded(len(prompts)) if self.prefix else new_cache(self.inner)[0]
            tokens.append(extend(self.inner, ids, mask, cache, self.config, new_tokens=1)[:, -1:])
            groups.append(Group(cache, ids.shape[1]))
        self.cache = groups[0].cache
        if len(groups) > 1:
            self.cache = joined(groups, self.inner, shared=shared, width=self.width)
        ids, mask = self._laid_out(self.prompts, shared, self.width)
        self.ids = torch.cat([ids, torch.cat(tokens)], dim=1)
        self.mask = torch.nn.functional.pad(mask, (0, 1), value=1)

    def _laid_out(self, prompts: Sequence[Sequence[int]], shared: int, width: int) -> tuple[Tensor, Tensor]:
        """(B, width) ids and mask."""
        pad = self.config.pad_token_id
        ids, mask = [], []
        for prompt in prompts:
            gap = width - len(prompt)
            ids.append([*prompt[:shared], *[pad] * gap, *prompt[shared:]])
            mask.append([1] * shared + [0] * gap + [1] * (len(prompt) - shared))
        device = self.inner.device
        return torch.tensor(ids, dtype=torch.long, device=device), torch.tensor(mask, dtype=torch.long, device=device)

    def _finished(self, *, full: bool) -> dict[int, tuple[int, tuple[int, ...]]]:
        """Rows that met a stop token (or all, when there is no room left): position -> (prompt, ids)."""
        done = {}
        for position, ids in enumerate(self.ids[:, self.width :].tolist()):
            stop = find_stop(ids, self.stop_ids)
            if stop is not None or full:
                done[position] = (self.rows[position], tuple(ids if stop is None else ids[: stop + 1]))
        return done

    def _drop(self, positions: set[int]) -> None:
        kept = [position for position in range(len(self.rows)) if position not in positions]
        self.rows = [self.rows[position] for position in kept]
        if positions and kept:
            index = torch.tensor(kept, device=self.ids.device)
            self.ids, self.mask = self.ids[index], self.mask[index]
            self.cache.batch_select_indices(index)


def grouped(lengths: Sequence[int], *, floor: int) -> list[tuple[int, int]]:
    """Cut rows, longest first, into spans with little padding: [(start, end), ...].

    Args:
        lengths: Tokens of each row, descending.
        floor: A span may be padded freely up to so many tokens.
    """
    spans, start = [], 0
    for index in range(1, len(lengths) + 1):
        if index == len(lengths):
            spans.append((start, index))
            break
        padded = (index + 1 - start) * lengths[start]
        padding = padded - sum(lengths[start : index + 1])
        if padded > MAX_GROUP_TOKENS or (padded > floor and padding > GROUP_PADDING * padded):
            spans.append((start, index))
            start = index
    return spans
