"""Greedy answers for evaluation: rows enter as others finish, so nobody waits for the longest of a batch.

    waiting --read (several at once)--> decoding --stop or length--> out
       ^------------- pages ran out: the youngest row goes back, and is read again later

A row's answer does not depend on who else is there (up to rounding, see `luthier.generation.generate`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from luthier.generation.paged.model import Handed, PagedModel
from luthier.generation.paged.pool import PAGE_TOKENS, NoPages, pages_for

__all__ = ["Counts", "NotFinite", "answers"]

# Most prompt tokens of one forward, and the share of the slots that must be free before more rows are read beside
# others: a forward over one short prompt costs nearly as much as one over thirty.
READ_TOKENS = 16_384
REFILL_SHARE = 1 / 8


class NotFinite(Exception):
    """The model's logits are not finite."""


@dataclass(slots=True)
class Counts:
    """What happened."""

    steps: int = 0
    reads: int = 0
    tokens: int = 0
    preempted: int = 0
    waits: int = 0
    """Times the host waited for the device."""


@dataclass(eq=False, slots=True)
class _Row:
    index: int
    prompt: Sequence[int]
    said: list[int] = field(default_factory=list)
    started: int = 0
    """Tokens said and under way."""
    slot: int = -1

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.said]


def answers(
    paged: PagedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    shared: int = 0,
    on_tokens: Callable[[int], None] = lambda tokens: None,
    counts: Counts | None = None,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (index of the prompt, generated ids) as rows finish.

    Args:
        paged: Inside of `paged.ready()`; all slots free.
        prompts: Token ids, longest first if memory is short.
        max_new_tokens: Longest answer, stop token included.
        stop_ids: Tokens that end an answer.
        shared: Tokens that all prompts begin with; read once.
        on_tokens: Hears of new tokens.
        counts: Filled in.

    Raises:
        NoPages: a single row does not fit.
    """
    run = _Run(paged, prompts, max_new_tokens, stop_ids, counts or Counts())
    try:
        run.share(shared)
        while run.waiting or run.rows or run.pending:
            run.enter()
            yield from run.take(keep=1 if run.step() else 0)
            on_tokens(run.fresh_tokens())
    finally:
        run.close()


class _Run:
    def __init__(
        self, paged: PagedModel, prompts: Sequence[Sequence[int]], longest: int, stop_ids: frozenset[int],
        counts: Counts,
    ) -> None:  # fmt: skip
        self.paged, self.longest, self.stop_ids, self.counts = paged, longest, stop_ids, counts
        self.waiting = deque(_Row(index, prompt) for index, prompt in enumerate(prompts))
        self.rows: list[_Row] = []
        """In slots, oldest first."""
        self.pending: deque[tuple[list[_Row], Handed]] = deque()
        self._done: list[tuple[int, tuple[int, ...]]] = []
        self._told = 0
        self._prefix_slot: int | None = None
        self._prefix: list[int] = []

    def share(self, tokens: int) -> None:
        """Read what all prompts begin with; only full pages can be shared."""
        full = tokens // PAGE_TOKENS * PAGE_TOKENS
        if not full or len(self.waiting) < 2 or self.paged.free_slots < 2:
            return
        self._prefix_slot = self.paged.open()
        self.paged.read([(self._prefix_slot, list(self.waiting[0].prompt[:full]))])
        self._prefix = self.paged.full_pages(self._prefix_slot, full)

    def enter(self) -> None:
        """Read waiting rows, if enough can enter to be worth a forward."""
        want = min(len(self.waiting), max(1, int(self.paged.slots * REFILL_SHARE)))
        if not self.waiting or (self.rows and self.paged.free_slots < want):
            return
        while self.waiting and self.paged.free_slots:
            entering: list[_Row] = []
            tokens, pages = 0, len(self.rows)  # every row that decodes may need a page soon
            while self.waiting and self.paged.free_slots:
                row = self.waiting[0]
                needed = pages_for(len(row.ids) + 1) - len(self._prefix)
                own = len(row.ids) - len(self._prefix) * PAGE_TOKENS
                if pages + needed > self.paged.pool.free or (entering and tokens + own > READ_TOKENS):
                    break
                self.waiting.popleft()
                row.slot = self.paged.open()
                self.paged.adopt(row.slot, self._prefix)
                entering.append(row)
                tokens, pages = tokens + own, pages + needed
            if not entering:
                if not self.rows and not self.pending:
                    raise NoPages
                return
            found, _ = self.paged.read([(row.slot, row.ids[self.paged.lengths[row.slot] :]) for row in entering])
            self.counts.reads += 1
            self.rows += entering
            self._start(entering, Handed(found))

    def step(self) -> bool:
        """Start one more token for every row that may have one; whether there was any."""
        rows = [row for row in self.rows if row.started < self.longest]
        while rows and sum(self.paged.missing(row.slot) for row in rows) > self.paged.pool.free:
            if self.pending:
                self._done += self.take(keep=0)
            else:
                self._preempt()
            rows = [row for row in self.rows if row.started < self.longest]
        if rows:
            tokens = self.paged.decode([row.slot for row in rows])
            self.counts.steps += 1
            self._start(rows, Handed(tokens))
        return bool(rows)

    def _start(self, rows: list[_Row], tokens: Handed) -> None:
        for row in rows:
            row.started += 1
        self.pending.append((rows, tokens))

    def _preempt(self) -> None:
        """The youngest row goes back to the front of the line; what it said stays said."""
        if len(self.rows) < 2:
            raise NoPages
        row = self.rows.pop()
        self.paged.close(row.slot)
        row.slot, row.started = -1, len(row.said)
        self.waiting.appendleft(row)
        self.counts.preempted += 1

    def take(self, keep: int) -> list[tuple[int, tuple[int, ...]]]:
        """Tokens that arrived, but for those of the last `keep` forwards; rows that are finished leave."""
        done, self._done = self._done, []
        while len(self.pending) > keep:
            rows, handed = self.pending.popleft()
            numbers = handed.wait()
            self.counts.waits += 1
            for row, token in zip(rows, numbers, strict=True):
                if row.slot < 0:
                    continue  # finished by an earlier token; this one was under way
                if token < 0:
                    raise NotFinite
                row.said.append(token)
                self.counts.tokens += 1
                if token in self.stop_ids or len(row.said) >= self.longest:
                    self.paged.close(row.slot)
                    row.slot = -1
                    self.rows.remove(row)
                    done.append((row.index, tuple(row.said)))
        return done

    def fresh_tokens(self) -> int:
        """Tokens since the last call."""
        new, self._told = self.counts.tokens - self._told, self.counts.tokens
        return new

    def close(self) -> None:
        """Free everything."""
        for row in self.rows:
            self.paged.close(row.slot)
        if self._prefix_slot is not None:
            self.paged.close(self._prefix_slot)
