"""A client of one model: `chat` asks once, `chat_many` asks many at the same time.

    cache (disk) -> equal request in flight? -> budget -> gate -> pace -> attempt -> retry -> cache

Threads, not coroutines: callers are plain functions, and the work is waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.endpoint.cache import AnswerCache, Answers, request_key
from luthier.endpoint.events import pieces_of
from luthier.endpoint.pace import Pace, tokens_at_most
from luthier.endpoint.reply import BadReply, ChatRequest, Reply, error_of, read_reply, text_of
from luthier.endpoint.retry import Gate, asked_wait, backoff, worth_retrying
from luthier.endpoint.settings import EndpointSettings
from luthier.endpoint.transport import Answer, Fault, Stream, open_stream, post_json
from luthier.endpoint.usage import Meter, Spent, Usage, body_bytes, spent_by
from luthier.runtime.console import note
from luthier.runtime.env import read_secret
from luthier.runtime.errors import AccessError, RecipeError, RunFailed

__all__ = ["Endpoint"]

_LOCAL = ("localhost", "127.", "[::1]")


class Endpoint:
    """One model behind an OpenAI-compatible server. Use as a context manager, or `close` it.

    Args:
        settings: server, model, limits.
        cache_dir: where answers are kept; None: nowhere.
        answers: instead of `cache_dir`, what keeps them.
        earlier: what earlier sessions of the same work have used of the budgets.

    Raises:
        RecipeError: settings that cannot be right.
        AccessError: the variable that should hold the API key is not set.
    """

    def __init__(
        self, settings: EndpointSettings, *, cache_dir: Path | None = None, answers: Answers | None = None,
        earlier: Spent | None = None,
    ) -> None:  # fmt: skip
        settings.require_valid()
        self.settings = settings
        self._key = _api_key(settings)
        self._cache: Answers = answers or AnswerCache(cache_dir)
        self._meter = Meter(settings, earlier=earlier)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._gate = Gate()
        self._lock = threading.Lock()
        self._flying: dict[str, Future[dict[str, Any]]] = {}
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="endpoint")

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send nothing more; threads that wait stop waiting."""
        self._gate.closed_for_good.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def send_no_more(self) -> None:
        """Nothing new is sent and nobody waits for another attempt; what is in flight is waited for, and kept."""
        self._gate.closed_for_good.set()

    def usage(self) -> Usage:
        """Counts and cost so far."""
        return self._meter.usage()

    def chat(self, request: ChatRequest) -> Reply:
        """Ask once.

        Raises:
            AccessError: the server cannot be reached, keeps failing, or refuses the key.
            RecipeError: it refuses the request (unknown model, wrong parameter).
            RunFailed: its answers are no chat answers, or the budget is used up.
        """
        return self.chat_many([request])[0]

    def chat_many(self, requests: Sequence[ChatRequest], *, on_answer: Callable[[], None] | None = None) -> list[Reply]:
        """Ask many at once, at most `concurrency` in flight; answers in the order of the requests.

        The first failure ends it: what is not sent yet is not sent, nobody waits for another attempt, what is in flight
        is waited for, and every answer that came is in the cache. `on_answer` is called after each answer, from this
        thread or another.

        Raises:
            AccessError, RecipeError, RunFailed: as `chat`.
        """
        given_up = threading.Event()
        futures = [self._pool.submit(self._one, request, given_up) for request in requests]
        if on_answer is not None:
            for future in futures:
                future.add_done_callback(lambda done: on_answer() if not done.cancelled() else None)
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future in done and future.exception() is not None]
        if failed:
            given_up.set()
            for future in waiting:
                future.cancel()
            wait(waiting)
            failed[0].result()
        return [future.result() for future in futures]

    def stream(self, request: ChatRequest) -> Iterator[str]:
        """Ask once, and yield the answer as it comes; nothing is cached. Retried only while no piece has come.

        Raises:
            AccessError, RecipeError, RunFailed: as `chat`; also in the middle of an answer.
        """
        body = {**request.body(self.settings.model), "stream": True}
        reserved = self._meter.reserve(request_bytes=body_bytes(body), max_tokens=request.max_tokens)
        try:
            yield from self._streamed(body)
        except BaseException:
            self._meter.release(reserved)
            raise
        self._meter.settle(reserved, None)

    def _streamed(self, body: dict[str, Any]) -> Iterator[str]:
        settings, waiting, pause, reason = self.settings, threading.Event(), 0.0, ""
        for attempt in range(settings.max_retries + 1):
            if not self._gate.wait(waiting, at_least=pause):
                raise AccessError(code="R760", message=f"{settings.host}: given up, or the client was closed")
            asked, begun = None, False
            try:
                with open_stream(
                    settings.url, body, headers=self._headers(), timeout=settings.timeout_seconds
                ) as answer:
                    if isinstance(answer, Stream):
                        for piece in pieces_of(answer.lines, answer.content_type):
                            begun = True
                            yield piece
                        return
                    self._refuse_hopeless(answer)
                    asked, reason = asked_wait(answer.headers), f"status {answer.status}"
            except Fault as fault:
                reason = fault.reason
                if begun or not fault.again:
                    raise self._unreachable(reason, attempts=attempt + 1) from fault
            except BadReply as error:
                message = f"{settings.host} sends what is no answer: {self._hide(str(error))}"
                raise RunFailed(code="R763", message=message, hint="check base_url, and the server's log") from error
            self._meter.count_retry()
            pause = self._pause(attempt, asked, reason)
        raise self._unreachable(reason, attempts=settings.max_retries + 1)

    # -- one request, in a thread of the pool

    def _one(self, request: ChatRequest, given_up: threading.Event) -> Reply:
        body = request.body(self.settings.model)
        key = request_key(self.settings.url, body, variant=request.variant)
        kept = self._cache.get(key, body)
        if kept is not None:
            self._meter.count_cached()
            return _reply(kept, cached=True)
        with self._lock:
            flying = self._flying.get(key)
            mine: Future[dict[str, Any]] = Future()
            if flying is None:
                self._flying[key] = mine
        if flying is not None:
            answer = flying.result()
            self._meter.count_cached()
            return _reply(answer, cached=True)
        try:
            answer = self._ask(body, request.max_tokens, given_up)
            self._cache.put(key, body, answer)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(answer)
        finally:
            with self._lock:
                del self._flying[key]
        return _reply(answer, cached=False)

    def _ask(self, body: dict[str, Any], max_tokens: int, given_up: threading.Event) -> dict[str, Any]:
        """Attempts until an answer is good, within the budget."""
        size = body_bytes(body)
        reserved = self._meter.reserve(request_bytes=size, max_tokens=max_tokens)
        try:
            value = self._attempts(body, given_up, tokens=tokens_at_most(size, max_tokens))
        except BaseException:
            self._meter.release(reserved)
            raise
        self._meter.settle(reserved, value.get("usage"))
        return value

    def _attempts(self, body: dict[str, Any], given_up: threading.Event, *, tokens: float) -> dict[str, Any]:
        settings = self.settings
        pause = 0.0
        for attempt in range(settings.max_retries + 1):
            open_now = self._gate.wait(given_up, at_least=pause)
            sent = self._pace.wait(tokens, given_up, self._gate.closed_for_good) if open_now else None
            if sent is None:
                raise AccessError(code="R760", message=f"{settings.host}: given up, or the client was closed")
            if attempt:
                self._meter.count_retry()
            asked: float | None = None
            try:
                answer = post_json(settings.url, body, headers=self._headers(), timeout=settings.timeout_seconds)
                if answer.status == 200:
                    value = read_reply(answer.body)
                    used = spent_by(body, value.get("usage")).tokens if isinstance(value.get("usage"), dict) else tokens
                    self._pace.correct(sent, used)
                    return value
                self._refuse_hopeless(answer)
                asked = asked_wait(answer.headers)
                reason = f"status {answer.status}: {self._hide(error_of(answer.body)[0])}"
                broken = False
            except Fault as fault:
                reason, broken = fault.reason, False
                if not fault.again:
                    raise self._unreachable(reason, attempts=attempt + 1) from fault
            except BadReply as error:
                reason, broken = self._hide(str(error)), True
            pause = self._pause(attempt, asked, reason)
        if broken:
            message = f"{settings.host} answered {settings.max_retries + 1} times with what is no answer: {reason}"
            raise RunFailed(code="R763", message=message, hint="check base_url, and the server's log")
        raise self._unreachable(reason, attempts=settings.max_retries + 1)

    def _pause(self, attempt: int, asked: float | None, reason: str) -> float:
        """Seconds to wait before the next attempt; when the server named the time, all threads do."""
        settings = self.settings
        if asked is not None and asked > settings.max_wait_seconds and attempt < settings.max_retries:
            message = f"{settings.host} asks to wait {asked:.0f} s ({reason})"
            hint = f"come back later, or raise max_wait_seconds ({settings.max_wait_seconds:g})"
            raise AccessError(code="R760", message=message, hint=hint)
        if asked:
            self._gate.close_for(asked)
            return 0.0
        return backoff(attempt, first=settings.first_wait_seconds, most=settings.max_wait_seconds)

    def _refuse_hopeless(self, answer: Answer) -> None:
        """Answers that no further attempt would change."""
        said, code = error_of(answer.body)
        if worth_retrying(answer.status, code):
            return
        said = self._hide(said)
        where = f"{self.settings.host} (model {self.settings.model})"
        if answer.status in (401, 403):
            variable = self.settings.api_key_env
            hint = f"check the key in {variable}" if variable else "name the variable with the key in api_key_env"
            message = f"{where} refuses the key: status {answer.status}: {said}"
            raise AccessError(code="R761", message=message, hint=hint)
        if answer.status in (402, 429) or answer.status >= 500:
            raise AccessError(code="R760", message=f"{where}: status {answer.status}: {said}")
        message = f"{where} refuses the request: status {answer.status}: {said}"
        raise RecipeError(code="R762", message=message, hint="check base_url and model")

    def _unreachable(self, reason: str, *, attempts: int) -> AccessError:
        tried = f"{attempts} attempts" if attempts > 1 else "1 attempt"
        message = f"no answer from {self.settings.host} after {tried}; the last: {reason}"
        return AccessError(code="R760", message=message, hint="is the server running, and is base_url right?")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _hide(self, text: str) -> str:
        """Servers quote the key they refuse; it belongs in no message and no log."""
        return text.replace(self._key, "***") if self._key else text


def _reply(answer: dict[str, Any], *, cached: bool) -> Reply:
    text, reason = text_of(answer)
    return Reply(text=text, finish_reason=reason, cached=cached, raw=answer)


def _api_key(settings: EndpointSettings) -> str | None:
    name = settings.api_key_env
    if name is None:
        return None
    key = read_secret(name)
    if not key:
        raise AccessError(
            code="R765", message=f"the environment variable {name} (api_key_env) is not set",
            hint=f"export {name}=..., or leave api_key_env out for a server without keys",
        )  # fmt: skip
    if settings.base_url.startswith("http://") and not settings.host.startswith(_LOCAL):
        note(f"warning: the API key travels unencrypted to {settings.host}", style="yellow")
    return key
