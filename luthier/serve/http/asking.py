"""From a request's fields to engine requests, and from the engine's thread back to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import Request as HttpRequest

from luthier.serve.engine.grammar import GrammarState
from luthier.serve.engine.request import Piece, Request, Sampling
from luthier.serve.engine.scheduler import QueueFull
from luthier.serve.host import Host, Served
from luthier.serve.http.errors import ApiError, invalid
from luthier.serve.http.metrics import Metrics
from luthier.serve.http.schema import ChatBody, CompletionBody
from luthier.serve.settings import ServeSettings

__all__ = ["Answers", "Service", "failure", "sampling_of", "unless_gone", "usage"]

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Service:
    """What every route needs."""

    host: Host
    settings: ServeSettings
    metrics: Metrics

    def model(self, name: str) -> Served:
        """The model a request names.

        Raises:
            ApiError: 404.
        """
        served = self.host.find(name)
        if served is None:
            message = f"the model {name[:200]!r} does not exist; models are: {', '.join(self.host.names())}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return served

    def room(self, served: Served, prompt: Sequence[int], asked: int | None, *, param: str) -> int:
        """Most new tokens of an answer.

        Raises:
            ApiError: 400: prompt and answer do not fit, or more is asked for than the server gives.
        """
        left = served.context - len(prompt)
        if not prompt:
            raise invalid(param, "the prompt has no tokens: there is nothing to continue")
        if left < (asked or 1):
            message = (
                f"this model's maximum context length is {served.context} tokens; the prompt has {len(prompt)}"
                + (f" and {asked} are to follow" if asked else "")
            )
            raise invalid(param, message, code="context_length_exceeded")
        if asked is not None and asked > self.settings.max_new_tokens:
            message = f"at most {self.settings.max_new_tokens} tokens an answer on this server, {asked} were asked for"
            raise invalid("max_tokens", message)
        return asked or min(left, self.settings.max_new_tokens)


_Item = tuple[int, Piece, float]
"""Number of the answer, its piece, and when the engine made it."""


class _Mail:
    """Pieces from the engine's thread to one event loop: the loop is woken once for all that came meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[asyncio.Queue[_Item], _Item]] = deque()
        self._told = False

    def put(self, queue: asyncio.Queue[_Item], item: _Item) -> None:
        """Called in the engine's thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._items.append((queue, item))
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._told = False  # before the first is taken: what comes from now on wakes the loop again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


_mails: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mail] = WeakKeyDictionary()


class Answers:
    """The answers to one HTTP request: submitted at once, read as they come, given up together."""

    def __init__(self, service: Service, served: Served) -> None:
        self.service, self.served = service, served
        self.requests: list[Request] = []
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._mail = _mails.get(loop) or _mails.setdefault(loop, _Mail(loop))
        self._started = time.monotonic()
        self._last: dict[int, float] = {}
        self._open = 0
        self.made = 0
        """Tokens so far."""

    def add(
        self, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling, stop: Sequence[str],
        grammar: GrammarState | None = None,
    ) -> None:  # fmt: skip
        """One more answer to make."""
        index = len(self.requests)

        def on_piece(piece: Piece) -> None:
            self._mail.put(self._queue, (index, piece, time.monotonic()))

        self.requests.append(
            Request(
                prompt=tuple(prompt), max_new_tokens=max_new_tokens, sampling=sampling, stop=tuple(stop),
                tokenizer=self.served.tokenizer, stop_ids=frozenset(self.served.stop_ids), on_piece=on_piece,
                adapter=self.served.adapter, grammar=grammar,
                deadline=self._started + self.service.settings.request_seconds,
            )
        )  # fmt: skip

    def submit(self) -> None:
        """Hand all of them to the engine.

        Raises:
            ApiError: 429 with `Retry-After`.
        """
        try:
            self.served.engine.submit(*self.requests)
        except QueueFull as full:
            seconds = str(max(1, round(full.retry_after)))
            raise ApiError(
                429, f"the queue is full; try again in {seconds} s", code="queue_full", headers={"Retry-After": seconds}
            ) from full
        self._open = len(self.requests)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(answer, piece) until all answers are finished.

        Pieces of one answer that came while others were being sent are one piece: under load an event has several
        tokens, and sending them does not fall behind making them.
        """
        held: _Item | None = None
        while self._open:
            index, piece, at = held or await self._queue.get()
            self._count(index, piece, at)
            held = None
            while piece.finish is None and not self._queue.empty():
                other, more, at = self._queue.get_nowait()
                if other != index:
                    held = other, more, at
                    break
                self._count(index, more, at)
                piece = Piece(
                    text=piece.text + more.text, ids=piece.ids + more.ids, infos=piece.infos + more.infos,
                    finish=more.finish, problem=more.problem,
                )  # fmt: skip
            if piece.finish is not None:
                self._open -= 1
            yield index, piece

    async def whole(self) -> list[list[Piece]]:
        """All pieces of all answers.

        Raises:
            ApiError: an answer failed.
        """
        found: list[list[Piece]] = [[] for _ in self.requests]
        async for index, piece in self.pieces():
            if problem := failure(piece):
                raise problem
            found[index].append(piece)
        return found

    def cancel(self) -> None:
        """Give up what is not finished."""
        if self._open:
            self.service.metrics.finished["cancelled"] += self._open
            for request in self.requests:
                self.served.engine.cancel(request)
            self._open = 0

    def _count(self, index: int, piece: Piece, now: float) -> None:
        metrics = self.service.metrics
        self.made += len(piece.ids)
        if piece.ids:
            if index in self._last:
                metrics.between_tokens.add(now - self._last[index])
            else:
                metrics.first_token.add(now - self._started)
            self._last[index] = now
        if piece.finish is not None:
            metrics.finished[piece.finish] += 1
            metrics.whole.add(now - self._started)


def failure(piece: Piece) -> ApiError | None:
    """The error that a piece tells of, if it does."""
    if piece.finish == "timeout":
        return ApiError(504, piece.problem or "timeout", code="timeout")
    if piece.finish == "error":
        stopping = "shutting down" in (piece.problem or "")
        return ApiError(503 if stopping else 500, piece.problem or "the model failed")
    if piece.finish == "cancelled":
        return ApiError(499, "the request was cancelled")
    return None


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """Wait for work, but not longer than the client does.

    Raises:
        ApiError: 499 (nobody reads it) when the client has gone.
    """

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has gone")
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()


def sampling_of(body: ChatBody | CompletionBody, served: Served, *, logprobs: int | None, choice: int) -> Sampling:
    """Sampling of one of the `n` answers; those of one seeded request differ from each other.

    Raises:
        ApiError: 400: a biased id that the model does not have.
    """
    vocabulary = served.engine.model.get_output_embeddings().weight.shape[0]
    unknown = [token for token in body.logit_bias if token >= vocabulary]
    if unknown:
        raise invalid("logit_bias", f"`logit_bias`: the model has {vocabulary} tokens, so {unknown[0]} is none of them")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias,
        seed=None if body.seed is None else body.seed + choice,
        logprobs=logprobs,
    )


def usage(answers: Answers, *, prompts: int = 1) -> dict[str, Any]:
    """Token counts; a prompt that is answered `n` times counts once."""
    each = len(answers.requests) // prompts
    read = sum(len(request.prompt) for request in answers.requests[::each])
    reused = sum(request.reused for request in answers.requests[::each])
    return {
        "prompt_tokens": read, "completion_tokens": answers.made, "total_tokens": read + answers.made,
        "prompt_tokens_details": {"cached_tokens": reused},
    }  # fmt: skip
