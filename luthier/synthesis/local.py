"""Works on a model of this machine: in waves, batch by batch, journalled like answers of a server.

A wave is what all works ask at the same time; it is cut into batches in their order (`sampler.py` computes them). The
draw of a batch is seeded by its requests, so a resumed job repeats the batch it was killed in and goes on alike.
Nothing here is paid, so a batch that is not whole in the journal is computed again as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from luthier.endpoint.cache import request_key
from luthier.runtime.errors import Interrupted
from luthier.runtime.signals import Stop
from luthier.synthesis.asking import Ask, Got, Halt, Made, Steps, Work, draw_seed, ended
from luthier.synthesis.journal import Journal
from luthier.synthesis.sampler import Request, Sampler, Together
from luthier.synthesis.spec import SynthSpec

__all__ = ["Local"]


@dataclass(slots=True)
class _Live:
    """A work under way."""

    index: int
    work: Work
    steps: Steps
    ask: Ask


class Local:
    """The driver for a local model; loaded when the first answer is missing.

    Args:
        spec: With a `local` section.
        journal: Where answers are kept.
        stop: Raised by Ctrl-C.
        together: The processes that compute; None: this one.
    """

    def __init__(self, spec: SynthSpec, journal: Journal, stop: Stop, together: Together | None = None) -> None:
        assert spec.local is not None
        self.spec, self.local, self.journal, self.stop = spec, spec.local, journal, stop
        self.together = together or Together(Sampler(spec.local))

    @property
    def host(self) -> str:
        """Name in the journal."""
        return self.together.sampler.name

    def run(self, works: Sequence[Work], on_done: Callable[[list[Made]], None]) -> list[list[Made]]:
        """As `Driver.run`."""
        results: list[list[Made]] = [[] for _ in works]
        live: list[_Live] = []

        def step(index: int, work: Work, steps: Steps, advance: Callable[[], Ask]) -> None:
            try:
                live.append(_Live(index, work, steps, advance()))
            except StopIteration as stop:
                results[index] = stop.value
                on_done(results[index])
            except Halt as halt:
                results[index] = ended(work, halt)
                on_done(results[index])

        for index, work in enumerate(works):
            steps = work.start()
            step(index, work, steps, lambda steps=steps: next(steps))  # type: ignore[misc]
        while live:
            wave, live = live, []
            for one, got in self._answers(wave):
                advance = (lambda: one.steps.throw(got)) if isinstance(got, Halt) else (lambda: one.steps.send(got))  # noqa: B023 (called at once)
                step(one.index, one.work, one.steps, advance)
        return results

    def _answers(self, wave: list[_Live]) -> Iterator[tuple[_Live, Got | Halt]]:
        """Answers to a wave, in its order within batches of one kind; a batch for each process at once."""
        size, together = self.local.batch_size, self.together.spread.size
        for _, kind in groupby(sorted(wave, key=lambda one: one.ask.judge), key=lambda one: one.ask.judge):
            members = list(kind)
            batches = [members[start : start + size] for start in range(0, len(members), size)]
            for start in range(0, len(batches), together):
                some = batches[start : start + together]
                answers = self._batches([[self._request(one.ask) for one in batch] for batch in some])
                yield from zip(chain(*some), chain(*answers), strict=True)

    def _batches(self, batches: list[list[Request]]) -> list[list[Got | Halt]]:
        """Answers from the journal; batches that are not whole there are computed."""
        missing = [batch for batch in batches if any(self._kept(request) is None for request in batch)]
        faults: dict[str, Halt] = {}
        if missing:
            if self.stop.requested:
                raise Interrupted(
                    code="D273", message=f"stopped by {self.stop.signal.name if self.stop.signal else 'a signal'}: "
                    f"answers so far ({len(self.journal):,}) are in {self.journal.path}",
                    hint="the same command goes on from here",
                )  # fmt: skip
            for batch, answers in zip(missing, self.together.answers(missing), strict=True):
                for request, answer in zip(batch, answers, strict=True):
                    if isinstance(answer, str):
                        faults[request.key] = Halt("bad_request", answer)
                    elif request.key not in self.journal:
                        self.journal.put(request.key, request.body, answer, host=self.host)
        return [[faults.get(request.key) or self._got(request) for request in batch] for batch in batches]

    def _request(self, ask: Ask) -> Request:
        sampling, judge = self.spec.sampling, self.spec.judge
        greedy = ask.judge or sampling.temperature == 0
        longest = judge.max_tokens if ask.judge and judge is not None else sampling.max_tokens
        body = {"messages": [dict(message) for message in ask.messages], "max_tokens": longest,
                "temperature": 0.0 if greedy else sampling.temperature, "top_p": 1.0 if greedy else sampling.top_p,
                "seed": draw_seed(self.spec.seed, ask.draw), "batch_size": self.local.batch_size}  # fmt: skip
        return Request(body, request_key(self.host, body, variant=ask.draw))

    def _kept(self, request: Request) -> dict[str, Any] | None:
        return self.journal.get(request.key, request.body)

    def _got(self, request: Request) -> Got:
        answer = self._kept(request)
        assert answer is not None
        choice = answer["choices"][0]
        return Got(
            text=choice["message"]["content"], finish_reason=choice["finish_reason"], model=self.local.name_or_path,
            parameters={key: value for key, value in request.body.items() if key != "messages"},
            request_id=answer["id"], at=self.journal.at(request.key),
        )  # fmt: skip
