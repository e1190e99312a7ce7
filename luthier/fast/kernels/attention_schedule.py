"""Which tiles of rows and keys the attention kernels run over, and in which order.

A program takes one tile of one document, so no program is launched that has nothing to do. Tiles are `rows` pairs of
(token, query head) against blocks of `keys` keys. `packed` tiles hold all query heads of a key/value head: the rows of
a tile then are few tokens by many heads, which wastes less of a short document's triangle and reads K and V once for
all of them. Documents come longest first, and within each the tiles with most work first: tiles that share K and V run
at about the same time, and the last programs are the lightest.

A document may go on from the first tokens of an earlier one (`prefixes`: the answers to one prompt): its queries see
those as well, as if they stood in front of it. It lies right behind the document whose beginning it shares, and is the
only one to share it.

The tables of block sizes are picked by head width and longest document; `benchmarks/gpu/attention.py` times the
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Blocks", "FixedSchedule", "Plan", "Prefixes", "Schedule", "Tiles", "blocks_for", "longest_seen", "supports"]

Prefixes = Sequence[tuple[int, int]]
"""(first row, tokens) for each document; (0, 0) where it has none. Empty: no document has one."""
Table = np.ndarray[tuple[int, int], np.dtype[np.int32]]

# Above this a document is long: most of its work is off the diagonal.
LONG = 2048
# Query heads that share a tile at most.
MOST_PACKED = 16


class Blocks(NamedTuple):
    """Shape of one kernel's programs."""

    rows: int
    """(token, head) pairs of a tile or, in the kernel of dk and dv, of a step."""
    keys: int
    """Keys of a step or, in the kernel of dk and dv, of a tile."""
    warps: int
    stages: int
    packed: bool = True
    """Rows are tokens by the query heads that share a key/value head; else tokens of one head."""

    def pack(self, group: int) -> int:
        """Query heads of a tile, for `group` query heads a key/value head: a divisor of it."""
        most = min(group, MOST_PACKED, self.rows) if self.packed else 1
        return max(n for n in range(1, most + 1) if group % n == 0)


# (forward, dq, dk and dv) by head width, for short and for long documents: the best on an H200 among those that
# benchmarks/gpu/attention.py times (benchmarks/results/engine_h200.md); 256 was not timed.
_SHORT = {
    64: (Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 2)),
    128: (Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 2), Blocks(64, 64, 4, 2)),
    256: (Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 64, 8, 2)),
}
_LONG = {
    64: (Blocks(128, 128, 4, 3), Blocks(64, 64, 4, 2), Blocks(64, 128, 8, 3)),
    128: (Blocks(128, 128, 8, 3), Blocks(64, 64, 4, 2), Blocks(64, 128, 8, 2)),
    256: (Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2), Blocks(32, 64, 8, 2)),
}


def supports(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels take heads of this width and type."""
    return head_dim in _SHORT and dtype in (torch.bfloat16, torch.float16)


def blocks_for(head_dim: int, longest: int) -> tuple[Blocks, Blocks, Blocks]:
    """Blocks of the three kernels (forward; dq; dk and dv)."""
    return (_LONG if longest > LONG else _SHORT)[head_dim]


class Tiles(NamedTuple):
    """Programs of one kernel, before they are multiplied by heads."""

    blocks: Blocks
    pack: int
    """Query heads of a tile."""
    table: Tensor
    """(n, 5) int32 on the device: the document's first row, its length, the tile's first token in it, and of queries
    the first row and the tokens of its prefix, of keys the tokens that the document behind it goes on from and the
    length of that one."""


class Plan(NamedTuple):
    """Tiles of the three kernels."""

    forward: Tiles
    dq: Tiles
    dkdv: Tiles


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Tiles of a batch of documents laid end to end. Made once a batch, used by every layer."""

    lengths: tuple[int, ...]
    longest: int
    device: torch.device
    prefixes: tuple[tuple[int, int], ...] = ()
    _plans: dict[tuple[object, ...], Plan] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str, prefixes: Prefixes = ()) -> Schedule:
        """From the documents' lengths in tokens, all at least 1, in the order of the rows. Copies nothing yet.

        Raises:
            ValueError: a prefix is not the beginning of the document right before.
        """
        assert lengths and min(lengths) > 0, "a document holds at least one token"
        _check_prefixes(lengths, prefixes)
        return cls(tuple(lengths), longest_seen(lengths, prefixes), torch.device(device), tuple(prefixes))

    @property
    def prefixed(self) -> bool:
        """Whether any document goes on from another."""
        return bool(self.prefixes)

    def plan(self, group: int, head_dim: int, blocks: tuple[Blocks, Blocks, Blocks] | None = None) -> Plan:
        """Tiles for `group` query heads a key/value head. The first call makes one copy to the device, without a wait;
        later ones return the same."""
        key = (group, head_dim, blocks)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._build(group, blocks or blocks_for(head_dim, self.longest))
        return found

    def _build(self, group: int, blocks: tuple[Blocks, Blocks, Blocks]) -> Plan:
        packs, rows = _rows(self.lengths, self.prefixes, group, blocks)
        table = torch.from_numpy(np.concatenate(rows))
        if self.device.type == "cuda":
            table = table.pin_memory().to(self.device, non_blocking=True)
        parts = table.split([len(each) for each in rows])
        return Plan(*(Tiles(b, p, t) for b, p, t in zip(blocks, packs, parts, strict=True)))


class FixedSchedule:
    """A schedule whose tables lie at one place and have one size, whatever documents they hold: for CUDA graphs.

    Spare programs repeat the lightest tile: they write what it writes.
    """

    def __init__(
        self, *, tokens: int, documents: int, longest: int, device: torch.device, prefixed: bool = False
    ) -> None:
        """For at most `documents` documents of `tokens` tokens in all, the longest of at most `longest`."""
        self.tokens, self.documents, self.longest, self.device = tokens, documents, longest, device
        self.prefixed = prefixed
        self.lengths: tuple[int, ...] = ()
        self.prefixes: tuple[tuple[int, int], ...] = ()
        self._plans: dict[tuple[int, int], tuple[tuple[Blocks, Blocks, Blocks], Plan]] = {}

    def load(self, lengths: Sequence[int], prefixes: Prefixes = ()) -> None:
        """Take these documents from now on; fills the tables that were asked for before. Waits for nothing."""
        assert sum(lengths) == self.tokens and len(lengths) <= self.documents
        assert longest_seen(lengths, prefixes) <= self.longest and (self.prefixed or not prefixes)
        _check_prefixes(lengths, prefixes)
        self.lengths, self.prefixes = tuple(lengths), tuple(prefixes)
        for (group, _), (blocks, plan) in self._plans.items():
            host = self._filled(group, blocks)
            for tiles, rows in zip(plan, host, strict=True):
                tiles.table.copy_(rows, non_blocking=True)

    def plan(self, group: int, head_dim: int, blocks: tuple[Blocks, Blocks, Blocks] | None = None) -> Plan:
        """As `Schedule.plan`."""
        assert blocks is None and self.lengths, "load documents first"
        found = self._plans.get((group, head_dim))
        if found is None:
            chosen = blocks_for(head_dim, self.longest)
            tables = [rows.to(self.device) for rows in self._filled(group, chosen)]
            packs = [each.pack(group) for each in chosen]
            made = Plan(*(Tiles(b, p, t) for b, p, t in zip(chosen, packs, tables, strict=True)))
            found = self._plans[group, head_dim] = (chosen, made)
        return found[1]

    def _filled(self, group: int, blocks: tuple[Blocks, Blocks, Blocks]) -> list[Tensor]:
        packs, rows = _rows(self.lengths, self.prefixes, group, blocks)
        sizes = [blocks[0].rows // packs[0], blocks[1].rows // packs[1], blocks[2].keys]
        filled = []
        for size, table in zip(sizes, rows, strict=True):
            most = self.tokens // size + self.documents
            whole = torch.from_numpy(np.concatenate([table, np.repeat(table[-1:], most - len(table), axis=0)]))
            filled.append(whole.pin_memory() if self.device.type == "cuda" else whole)
        return filled


def longest_seen(lengths: Sequence[int], prefixes: Prefixes) -> int:
    """Tokens of the longest document, its prefix included."""
    return max(lengths) if not prefixes else max(n + p for n, (_, p) in zip(lengths, prefixes, strict=True))


def _check_prefixes(lengths: Sequence[int], prefixes: Prefixes) -> None:
    if prefixes and len(prefixes) != len(lengths):
        raise ValueError(f"{len(prefixes)} prefixes for {len(lengths)} documents")
    at, parent, parent_length = 0, -1, 0
    for length, (start, tokens) in zip(lengths, prefixes, strict=False):
        if tokens and (start != parent or not 0 < tokens <= parent_length):
            raise ValueError(
                f"the document at row {at} goes on from {tokens} tokens at row {start}, which are not the beginning "
                "of a document of its own right before it"
            )
        parent, parent_length = (-1, 0) if tokens else (at, length)
        at += length


def _rows(
    lengths: Sequence[int], prefixes: Prefixes, group: int, blocks: tuple[Blocks, Blocks, Blocks]
) -> tuple[list[int], list[Table]]:
    """(query heads of a tile, table) of the three kernels."""
    packs = [each.pack(group) for each in blocks]
    seen, followed = _relations(lengths, prefixes)
    # Causal: a query tile has more work the later it lies, a tile of keys the earlier it lies.
    return packs, [
        _tiles(lengths, blocks[0].rows // packs[0], seen, latest_first=True),
        _tiles(lengths, blocks[1].rows // packs[1], seen, latest_first=True),
        _tiles(lengths, blocks[2].keys, followed, latest_first=False),
    ]


def _relations(lengths: Sequence[int], prefixes: Prefixes) -> tuple[Table, Table]:
    """The last two columns of `Tiles.table` for each document: of tiles of queries, and of tiles of keys."""
    seen = np.array(prefixes or [(0, 0)] * len(lengths), dtype=np.int32)
    followed = np.zeros_like(seen)
    for document, (_, tokens) in enumerate(prefixes):
        if tokens:
            followed[document - 1] = tokens, lengths[document]
    return seen, followed


def _tiles(lengths: Sequence[int], size: int, relations: Table, *, latest_first: bool) -> Table:
    """(n, 5) int32 rows of `Tiles.table` for tiles of `size` tokens."""
    length = np.asarray(lengths, dtype=np.int64)
    start = np.cumsum(length) - length
    order = np.argsort(-length, kind="stable")
    length, start, related = length[order], start[order], relations[order]
    count = -(-length // size)
    total = int(count.sum())
    document = np.repeat(np.arange(len(length)), count)
    within = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    if latest_first:
        within = count[document] - 1 - within
    table = np.zeros((total, 5), dtype=np.int32)
    table[:, 0], table[:, 1], table[:, 2] = start[document], length[document], within * size
    table[:, 3:] = related[document]
    return table
