"""The engine: one thread that owns a model and makes answers for many requests at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from luthier.generation.paged.pool import PAGE_TOKENS
from luthier.serve.engine.adapters import AdapterBank
from luthier.serve.engine.ahead import Ahead
from luthier.serve.engine.paged import PagedSlots, new_slots
from luthier.serve.engine.prefixes import Kept, PrefixStore
from luthier.serve.engine.request import FinishReason, Piece, Request, TokenInfo
from luthier.serve.engine.row import Counters, Row
from luthier.serve.engine.sampling import Chooser, choose
from luthier.serve.engine.scheduler import EngineLimits, QueueFull, Waiting
from luthier.serve.engine.slots import Slots
from luthier.serve.engine.text import TextStream

__all__ = ["Counters", "Engine"]

log = logging.getLogger("luthier.serve")


class Engine:
    """Continuous batching on one model.

    Args:
        model: A causal language model of transformers, in eval mode; it belongs to the engine from now on.
        limits: Rows, queue, memory.
        paged: Keys and values in pages, steps as CUDA graphs; None for that on a GPU.

    Raises:
        EnvironmentProblem: the model keeps its state in a way that cannot be batched like this.
    """

    def __init__(self, model: Any, limits: EngineLimits, *, paged: bool | None = None) -> None:
        self.model, self.limits = model, limits
        self.bank = AdapterBank(model)
        self.slots: Slots | PagedSlots = new_slots(model, limits, self.bank, paged=paged)
        self.prefixes = PrefixStore(limits.prefix_tokens, self.slots.release)
        self.counters = Counters()
        on_pages = isinstance(self.slots, PagedSlots)
        self._ahead = Ahead(self.slots, self._accept, self.counters) if isinstance(self.slots, PagedSlots) else None
        self._rows: list[Row] = []
        """Row i has slot i; rows that decode stand before rows that are still being read."""
        self._waiting = Waiting(limits, PAGE_TOKENS if on_pages else None)
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="luthier-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Give up all requests and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a row."""
        return len(self._rows)

    def submit(self, *requests: Request) -> None:
        """Queue requests: all of them or none.

        Raises:
            QueueFull: with the seconds after which another try makes sense.
        """
        with self._wake:
            # A free row counts as room: with a queue of 0 an idle engine still takes a request.
            room = self.limits.max_queue + max(0, self.limits.max_batch_size - len(self._rows))
            if len(self._waiting) + len(requests) > room:
                raise QueueFull(self._retry_after())
            for request in requests:
                self._waiting.add(request)
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Give a request up; its row is free before the next step."""
        with self._wake:
            request.cancelled = True
            self._wake.notify()

    def _retry_after(self) -> float:
        """Seconds until about a full batch has left, at the pace so far; 1 to 60."""
        if not self.counters.generated_tokens:
            return 1.0
        pace = self.counters.generated_tokens / max(self.counters.busy_seconds, 1e-9)
        left = sum(row.request.max_new_tokens - len(row.made) for row in list(self._rows))
        return min(60.0, max(1.0, left / pace))

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode(), self.slots.ready():
            while True:
                with self._wake:
                    while not (self._closing or self._rows or len(self._waiting)):
                        self._wake.wait()
                    self._drop_unwanted()
                    if self._closing:
                        return
                    entering = self._waiting.admit([row.request for row in self._rows])
                    for request in entering:
                        self._enter(request)
                started = time.monotonic()
                self._guarded(self._read)
                self._guarded(self._decode)
                self.counters.busy_seconds += time.monotonic() - started

    def _enter(self, request: Request) -> None:
        row = Row(request, Chooser(request.sampling, request.grammar), TextStream(request.tokenizer, request.stop))
        slot = self.slots.open()
        self._rows.append(row)
        found = self.prefixes.find(request.prompt, request.adapter)
        if found is not None:
            kept, length = found
            row.read = self.slots.copy_in(slot, kept.layers, length)
            request.reused = row.read
            self.counters.reused_tokens += row.read

    def _drop_unwanted(self) -> None:
        """Requests that were cancelled, ran out of time, or all of them when the engine closes."""
        now = time.monotonic()

        def verdict(request: Request) -> FinishReason | None:
            if request.cancelled:
                return "cancelled"
            if request.deadline is not None and now > request.deadline:
                return "timeout"
            return "error" if self._closing else None

        why = {"error": "the server is shutting down", "timeout": "the request took longer than the server allows"}
        gone = [(request, reason) for request in self._waiting.all() if (reason := verdict(request))]
        if gone:
            self._waiting.remove([request for request, _ in gone])
        for request, reason in gone:
            self._tell(request, Piece(finish=reason, problem=why.get(reason)))
        for row in list(self._rows):
            if reason := verdict(row.request):
                self._leave(row)
                self._tell(row.request, Piece(finish=reason, problem=why.get(reason)))

    def _guarded(self, work: Callable[[], None]) -> None:
        """A step that fails ends the requests in it, not the server."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a model raises must not leave others waiting for ever
            out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
            log.error("a step failed: %s: %s", type(error).__name__, str(error).splitlines()[0] if str(error) else "")
            problem = "out of memory; lower --max-batch-size" if out else "the model failed on this batch"
            if self._ahead is not None:
                self._ahead.drop()
            for row in list(self._rows):
                self._leave(row)
                self._tell(row.request, Piece(finish="error", problem=problem))

    def _read(self) -> None:
        """Read the next part of the prompts in line: at most `prefill_tokens` tokens, padding included."""
        first = next((index for index, row in enumerate(self._rows) if row.reading), None)
        if first is None or (self._ahead is not None and not self._ahead.may_read(self._rows)):
            return
        started = time.monotonic()
        head = self._rows[first]
        longest = min(len(head.request.prompt) - head.read, self.limits.prefill_tokens)
        rows = self._rows[first : first + max(1, self.limits.prefill_tokens // longest)]
        parts = [row.request.prompt[row.read : row.read + longest] for row in rows]
        adapters = [row.request.adapter for row in rows]
        tokens = None
        if isinstance(self.slots, PagedSlots):
            tokens, logits = self.slots.read(first, parts, adapters)
        else:
            self.bank.use(adapters)
            logits = self.slots.forward(first, parts)
        for row, part in zip(rows, parts, strict=True):
            row.read += len(part)
            self.counters.prompt_tokens += len(part)
        done = [index for index, row in enumerate(rows) if not row.reading]
        if done:
            ready = [rows[index] for index in done]
            self._settle(first, ready)
            if self._ahead is not None and tokens is not None:
                self._ahead.say(ready, range(first, first + len(ready)), tokens[done], logits[done])
                self._ahead.has_read(started)
            else:
                self._say(ready, logits[done])

    def _settle(self, border: int, ready: list[Row]) -> None:
        """Move rows that were read to the end before all rows that were not."""
        for row in ready:
            place = self._rows.index(row)
            self._exchange(place, border)
            border += 1

    def _decode(self) -> None:
        """One more token for every row that decodes."""
        if self._ahead is not None:
            self._ahead.decode(self._rows)
            return
        rows = [row for row in self._rows if not row.reading]
        if not rows or not isinstance(self.slots, Slots):
            return
        self.bank.use([row.request.adapter for row in rows])
        logits = self.slots.forward(0, [row.made[-1:] for row in rows])
        self.counters.steps += 1
        self._say(rows, logits)

    def _say(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Choose a token for each row."""
        if logits.device.type == "mps":
            logits = logits.cpu()  # no float64 there
        self._accept(rows, *choose(logits, [row.chooser for row in rows]))

    def _accept(self, rows: Sequence[Row], tokens: Sequence[int | None], infos: Sequence[TokenInfo | None]) -> None:
        """Tell the text of each row's new token, and let finished rows go."""
        for row, token, info in zip(rows, tokens, infos, strict=True):
            if row.gone:
                continue  # it ended with an earlier token; this one was under way
            if token is None:
                self._leave(row)
                self._tell(row.request, Piece(finish="error", problem="the model's output is not finite"))
                continue
            row.made.append(token)
            row.chooser.accept(token)
            self.counters.generated_tokens += 1
            piece = self._piece(row, token, info)
            if piece.finish is not None:
                self._keep(row)
                self._leave(row)
            if piece.finish is not None or piece.text or piece.infos or piece.ids:
                self._tell(row.request, piece)

    def _piece(self, row: Row, token: int, info: TokenInfo | None) -> Piece:
        infos = () if info is None else (info,)
        if token in row.request.stop_ids:
            return Piece(text=row.text.finish(), ids=(token,), infos=infos, finish="stop")
        text = row.text.push(token)
        if not row.text.stopped and len(row.made) >= row.request.max_new_tokens:
            text += row.text.finish()
            return Piece(text=text, ids=(token,), infos=infos, finish="stop" if row.text.stopped else "length")
        return Piece(text=text, ids=(token,), infos=infos, finish="stop" if row.text.stopped else None)

    def _keep(self, row: Row) -> None:
        """Keep what was read and said for prompts that go on from here."""
        slot, request = self._rows.index(row), row.request
        ids = (*request.prompt, *row.made)
        ids = ids[: self.slots.kept_length(min(self.slots.lengths[slot], len(ids)))]
        if self.prefixes.wants(ids, request.adapter):
            self.prefixes.keep(Kept(ids, request.adapter, self.slots.copy_out(slot, len(ids))))

    def _leave(self, row: Row) -> None:
        """Free a row's slot and keep decoding rows in front, without holes."""
        place = self._rows.index(row)
        row.gone = True
        if not row.reading:
            # The last decoding row moves into the hole, then the last row of all into its place.
            last = sum(not other.reading for other in self._rows) - 1
            self._exchange(place, last)
            place = last
        self.slots.close(place)
        self._rows[place] = self._rows[-1]
        self._rows.pop()

    def _exchange(self, one: int, other: int) -> None:
        self.slots.swap(one, other)
        self._rows[one], self._rows[other] = self._rows[other], self._rows[one]

    def _tell(self, request: Request, piece: Piece) -> None:
        try:
            request.on_piece(piece)
        except RuntimeError:
            # The listener's event loop is closed: nobody waits for this answer any more.
            request.cancelled = True
