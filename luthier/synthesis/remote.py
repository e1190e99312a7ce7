"""Works against a server: many at once, each in a thread; journalled, paced, within the budget.

One request that fails for good costs one row. Five in a row, with no answer between them, end the job: then it is the
server. Whatever ends a job, every answer that came is in the journal.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

from luthier.endpoint.cache import request_key
from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest
from luthier.endpoint.settings import EndpointSettings
from luthier.endpoint.usage import Usage
from luthier.runtime.console import note
from luthier.runtime.errors import Interrupted, LuthierError
from luthier.runtime.signals import Stop
from luthier.synthesis.asking import Ask, Got, Halt, Made, Work, draw_seed, ended
from luthier.synthesis.journal import Journal, OfHost
from luthier.synthesis.spec import EndpointSection, SamplingSection, SynthSpec
from luthier.synthesis.structured import EVOLVED, ResponseFormat

__all__ = ["Remote", "endpoint_settings"]

_MOST_FAILURES = 5
_POLL = 0.1
_FORMATS: tuple[ResponseFormat, ...] = ("json_schema", "json_object")
_UNSUPPORTED = re.compile(r"status (?:400|415|422|501):")
_PROBE = [{"role": "user", "content": 'Reply with this JSON: {"prompt": "ok"}'}]
_PROBE_TOKENS = 32


def endpoint_settings(section: EndpointSection) -> EndpointSettings:
    """The section as the client wants it."""
    values = section.model_dump(exclude={"extra_body"})
    return EndpointSettings(**values)


class _Stopped(Exception):
    """The work was given up between two requests."""


class _Server:
    """One model behind one server."""

    def __init__(self, section: EndpointSection, journal: Journal, sampling: SamplingSection, *, seed: int,
                 greedy: bool, structured: Literal["auto", "json_schema", "json_object", "none"]) -> None:  # fmt: skip
        self.section, self.journal, self.sampling, self.seed, self.greedy = section, journal, sampling, seed, greedy
        settings = endpoint_settings(section)
        self.url = settings.url
        self.client = Endpoint(
            settings, answers=OfHost(journal, f"{self.url} {section.model}"),
            earlier=journal.spent(f"{self.url} {section.model}"),
        )  # fmt: skip
        self.structured = structured
        self._format: ResponseFormat | None = None
        self._format_lock = threading.Lock()

    def ask(self, ask: Ask) -> Got:
        """One answer, from the journal if it is there."""
        request = self._request(ask)
        body = request.body(self.section.model)
        reply = self.client.chat(request)
        raw_id = reply.raw.get("id")
        return Got(
            text=reply.text, finish_reason=reply.finish_reason, model=str(reply.raw.get("model") or self.section.model),
            parameters={key: value for key, value in body.items() if key not in {"messages", "model"}},
            request_id=raw_id if isinstance(raw_id, str) else None,
            at=self.journal.at(request_key(self.url, body, variant=request.variant)),
        )  # fmt: skip

    def _request(self, ask: Ask) -> ChatRequest:
        sampling = self.sampling
        extra: dict[str, Any] = {}
        if not self.greedy:
            extra |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
            extra |= {"seed": draw_seed(self.seed, ask.draw)} if sampling.send_seed else {}
        if ask.shape is not None:
            with self._format_lock:  # whoever comes first finds out, the others wait
                if self._format is None:
                    self._format = self._find_format()
            extra |= ask.shape.request_keys(self._format)
        return ChatRequest(
            messages=ask.messages, max_tokens=sampling.max_tokens,
            temperature=0.0 if self.greedy else sampling.temperature, extra={**extra, **self.section.extra_body},
            variant=ask.draw,
        )  # fmt: skip

    def _find_format(self) -> ResponseFormat:
        """How JSON is asked for: as the spec says, or what the server takes (`auto`), by one short request."""
        if self.structured != "auto":
            return self.structured
        name = f"structured {self.url} {self.section.model}"
        known = self.journal.fact(name)
        if known is not None:
            found: ResponseFormat = known
            return found
        found = "none"
        for how in _FORMATS:
            try:
                extra = {**EVOLVED.request_keys(how), **self.section.extra_body}
                self.client.chat(ChatRequest(messages=_PROBE, max_tokens=_PROBE_TOKENS, extra=extra))
            except LuthierError as error:
                if error.problems[0].code != "R762" or not _UNSUPPORTED.search(error.problems[0].message):
                    raise
            else:
                found = how
                break
        self.journal.record(name, found)
        if found != "json_schema":
            how_then = "json_object" if found == "json_object" else "words alone"
            note(f"{self.client.settings.host} takes no response_format json_schema: JSON is asked for by {how_then}, "
                 "and checked here")  # fmt: skip
        return found


class Remote:
    """The driver for servers. Use as a context manager.

    Args:
        spec: With an `endpoint`.
        journal: Where answers are kept.
        stop: Raised by Ctrl-C.
    """

    def __init__(self, spec: SynthSpec, journal: Journal, stop: Stop) -> None:
        assert spec.endpoint is not None
        self.stop = stop
        make = {"journal": journal, "seed": spec.seed, "structured": spec.structured}
        self.writer = _Server(spec.endpoint, sampling=spec.sampling, greedy=False, **make)  # type: ignore[arg-type]
        self.judge: _Server | None = None
        if spec.judge is not None:
            section = spec.judge.endpoint or spec.endpoint
            sampling = SamplingSection(max_tokens=spec.judge.max_tokens)
            self.judge = _Server(section, sampling=sampling, greedy=True, **make)  # type: ignore[arg-type]
            if spec.judge.endpoint is None:
                self.judge.client.close()
                self.judge.client = self.writer.client
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._answers = 0
        self._last: LuthierError | None = None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers():
            server.client.close()

    def _servers(self) -> list[_Server]:
        return [self.writer, *([self.judge] if self.judge else [])]

    def usage(self) -> dict[str, Usage]:
        """Counts of this session, by `URL MODEL`."""
        return {f"{server.url} {server.section.model}": server.client.usage() for server in self._servers()}

    def run(self, works: Sequence[Work], on_done: Callable[[list[Made]], None]) -> list[list[Made]]:
        """As `Driver.run`."""
        if not works:
            return []
        results: list[list[Made]] = [[] for _ in works]
        fatal: BaseException | None = None
        with ThreadPoolExecutor(self.writer.section.concurrency, thread_name_prefix="synth") as pool:
            places = {pool.submit(self._drive, work): index for index, work in enumerate(works)}
            pending: set[Future[list[Made]]] = set(places)
            try:
                while pending:
                    done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                    for future in done:
                        error = None if future.cancelled() else future.exception()
                        if error is not None and not isinstance(error, _Stopped):
                            fatal = fatal or error
                        elif error is None and not future.cancelled():
                            results[places[future]] = future.result()
                            on_done(results[places[future]])
                    if (fatal is not None or self.stop.requested) and not self._stopping.is_set():
                        self._give_up(pending)
            except BaseException:
                self._give_up(pending)  # or the pool would have everything else asked, and paid, before it ends
                raise
        if fatal is not None:
            raise fatal
        if self._stopping.is_set():
            raise Interrupted(
                code="D273", message=f"stopped by {self.stop.signal.name if self.stop.signal else 'a signal'}: answers "
                f"so far ({len(self.writer.journal):,}) are in {self.writer.journal.path}",
                hint="the same command goes on from here; nothing is asked or paid twice",
            )  # fmt: skip
        if self._answers == 0 and self._last is not None:
            raise self._last
        return results

    def _give_up(self, pending: set[Future[list[Made]]]) -> None:
        self._stopping.set()
        for server in self._servers():
            server.client.send_no_more()
        for future in pending:
            future.cancel()

    # -- one work, in a thread

    def _drive(self, work: Work) -> list[Made]:
        steps = work.start()
        try:
            ask = next(steps)
            while True:
                try:
                    got = self._ask(ask)
                except Halt as halt:
                    ask = steps.throw(halt)
                else:
                    ask = steps.send(got)
        except StopIteration as stop:
            made: list[Made] = stop.value
            return made
        except Halt as halt:
            return ended(work, halt)

    def _ask(self, ask: Ask) -> Got:
        """An answer, or why this work gets none.

        Raises:
            Halt: this request alone has failed.
            LuthierError: the server cannot be used.
        """
        if self._stopping.is_set():
            raise _Stopped
        server = self.judge if ask.judge and self.judge is not None else self.writer
        try:
            got = server.ask(ask)
        except LuthierError as error:
            if self._stopping.is_set():
                raise _Stopped from error
            raise self._halt(error) from error
        with self._lock:
            self._failures, self._answers = 0, self._answers + 1
        return got

    def _halt(self, error: LuthierError) -> Halt:
        problem = error.problems[0]
        if problem.code == "R764":
            return Halt("over_budget", problem.message)
        if problem.code not in {"R760", "R762", "R763"}:
            raise error
        with self._lock:
            self._failures += 1
            self._last = error
            if self._failures >= _MOST_FAILURES:
                raise error
        return Halt("bad_request" if problem.code == "R762" else "failed", problem.message)
