"""Steps on a GPU are started before the tokens of the last one are known to the host.

While the device computes step n+1, the host turns the tokens of step n into text and sends them. A row that turns out
to have ended was computed once for nothing; its token is dropped. Rows whose next token needs the host's knowledge of
the last one (a grammar, penalties) or tells log-probabilities are not run ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from luthier.generation.paged.model import Handed
from luthier.serve.engine.paged import PagedSlots
from luthier.serve.engine.request import TokenInfo
from luthier.serve.engine.row import Counters, Row
from luthier.serve.engine.sampling import choose, choose_free

__all__ = ["Ahead"]

Accept = Callable[[Sequence[Row], Sequence[int | None], Sequence[TokenInfo | None]], None]


class Ahead:
    """Forwards under way.

    Args:
        slots: The engine's.
        accept: Called with rows, their tokens (None: not finite) and log-probabilities.
        counters: The engine's.
    """

    def __init__(self, slots: PagedSlots, accept: Accept, counters: Counters) -> None:
        self.slots, self._accept, self._counters = slots, accept, counters
        self._pending: deque[tuple[Sequence[Row], Handed]] = deque()
        self._read_again = 0.0

    def decode(self, rows: list[Row]) -> None:
        """Start one more token for the rows that decode, and take those of the step before."""
        if not all(row.reading or row.chooser.free for row in rows):
            self.take(0)  # rows may leave `rows` here
        places = [
            place for place, row in enumerate(rows) if not row.reading and row.started < row.request.max_new_tokens
        ]
        if places:
            chosen = [rows[place] for place in places]
            tokens, logits = self.slots.decode(places, [row.request.adapter for row in chosen])
            self._counters.steps += 1
            self.say(chosen, places, tokens, logits)
        self.take(1 if places else 0)

    def say(self, rows: Sequence[Row], places: Sequence[int], tokens: Tensor, logits: Tensor) -> None:
        """Choose the next token of rows that were forwarded; likeliest tokens and logits come from the slots."""
        choosers = [row.chooser for row in rows]
        for row in rows:
            row.started += 1
        if all(chooser.free for chooser in choosers):
            if not all(chooser.greedy for chooser in choosers):
                tokens = choose_free(logits.float(), choosers)
                self.slots.set_last(places, tokens)
            self._pending.append((rows, Handed(tokens)))
            return
        chosen, infos = choose(logits.float(), choosers)
        self._counters.waits += 1
        self.slots.set_last(places, tokens.new_tensor([token or 0 for token in chosen]))
        self.take(0)
        self._accept(rows, chosen, infos)

    def take(self, keep: int) -> None:
        """Tokens of all forwards but the last `keep`."""
        while len(self._pending) > keep:
            rows, handed = self._pending.popleft()
            numbers = handed.wait()
            self._counters.waits += 1
            self._accept(rows, [None if number < 0 else number for number in numbers], [None] * len(rows))

    def drop(self) -> None:
        """Forget what is under way."""
        self._pending.clear()

    def may_read(self, rows: Sequence[Row]) -> bool:
        """Whether prompts are to be read now: beside rows that decode, at most half of the time."""
        return time.monotonic() >= self._read_again or all(row.reading for row in rows)

    def has_read(self, started: float) -> None:
        """Prompts were read since `started`; a pause as long follows, in which more of them come together."""
        now = time.monotonic()
        self._read_again = now + (now - started)
