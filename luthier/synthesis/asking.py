"""Work as a conversation with a model, without knowing who answers.

A work is a generator: it yields an `Ask`, is sent the `Got`, and returns what came of it (`Made`). `remote.py` drives
many of them in threads against a server, `local.py` in batches on a model of this machine. `Halt` is thrown into a work
whose request cannot be answered; a work that does not catch it ends as one rejected row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from luthier.runtime.hashing import hash_json
from luthier.synthesis.structured import Shape, is_refusal, read_shape
from luthier.synthesis.templates import Template

__all__ = [
    "OUTCOMES", "Ask", "Candidate", "Driver", "Failure", "Got", "Halt", "Made", "Outcome", "Rejected", "Steps", "Work",
    "answered", "draw_seed", "ended", "halted", "provenance_of", "written",
]  # fmt: skip

Outcome = Literal[
    "ok", "invalid_json", "refusal", "cut", "empty", "ungrounded", "unchanged", "wrong", "not_kept", "duplicate",
    "filtered", "judged_low", "unjudged", "bad_request", "failed", "over_budget",
]  # fmt: skip
OUTCOMES: Mapping[str, str] = {
    "ok": "rows written",
    "invalid_json": "JSON that is none or of another shape, after all repairs",
    "refusal": "the model refused",
    "cut": "cut at max_tokens",
    "empty": "nothing was said",
    "ungrounded": "the quotation is not in the passage",
    "unchanged": "the evolved prompt is the old one",
    "wrong": "not accepted by the scorer",
    "not_kept": "good, but not wanted: another answer or a later round was kept, or there are enough",
    "duplicate": "says what another row says",
    "filtered": "left out by a filter",
    "judged_low": "scored too low by the judge",
    "unjudged": "no usable score of the judge",
    "bad_request": "the server refuses the request",
    "failed": "no answer after all retries; asked again by the next run",
    "over_budget": "not asked, the budget being used up",
}
"""What can become of a row, and what it means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    messages: Sequence[Mapping[str, Any]]
    template: str
    """Hash of the template it was made from."""
    draw: int = 0
    """Equal requests with different numbers are sampled apart."""
    shape: Shape | None = None
    """JSON that is wanted; None: text."""
    judge: bool = False
    """Asked from the judge, greedily."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """One answer."""

    text: str
    finish_reason: str | None
    value: Any = None
    """Of an `Ask` with a shape: the value."""
    model: str
    parameters: Mapping[str, Any]
    """Of the request, without its messages."""
    request_id: str | None
    at: str | None
    """When it came: UTC, ISO 8601."""
    repairs: int = 0
    """How often it was asked for again before it was valid."""


class Halt(Exception):
    """The request of a work gets no answer."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that cannot be used."""

    outcome: Outcome
    detail: str
    got: Got


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row, until the steps at the end take it away."""

    item: str
    """What it was made from, for people."""
    value: Mapping[str, Any]
    """`messages`, or `prompt`, `chosen` and `rejected`."""
    provenance: Mapping[str, Any]
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """What became no row, and why."""

    item: str
    outcome: Outcome
    detail: str
    said: str | None = None
    """The model's words."""
    value: Mapping[str, Any] | None = None
    """The row, where there was one."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a line of `OUT.rejected.jsonl`."""
        row = {"row": dict(self.value)} if self.value is not None else {}
        said = {"said": self.said} if self.said is not None else {}
        return {"item": self.item, "outcome": self.outcome, "detail": self.detail, **said, **row,
                "provenance": dict(self.provenance)}  # fmt: skip


Made = Candidate | Rejected
Steps = Generator[Ask, Got, list[Made]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is done for one item."""

    item: str
    start: Callable[[], Steps]


class Driver(Protocol):
    """Has works answered."""

    def run(self, works: Sequence[Work], on_done: Callable[[list[Made]], None]) -> list[list[Made]]:
        """What came of each work, in their order; `on_done` hears of each as it ends.

        Raises:
            Interrupted: a signal came; answers so far are in the journal.
            LuthierError: the model cannot be asked.
        """
        ...


def draw_seed(seed: int, draw: int) -> int:
    """A seed for the server, below 2^31."""
    return int(hash_json([seed, draw])[:8], 16) & 0x7FFFFFFF


def ended(work: Work, halt: Halt) -> list[Made]:
    """What a work comes to that did not catch a halt."""
    return [Rejected(item=work.item, outcome=halt.outcome, detail=halt.detail)]


def halted(one: Candidate, halt: Halt) -> Rejected:
    """A row whose next request gets no answer: what there is of it is kept with the reason."""
    return Rejected(item=one.item, outcome=halt.outcome, detail=halt.detail, value=one.value, provenance=one.provenance)


def written(ask: Ask, *, repair: Template, repairs: int) -> Generator[Ask, Got, Got | Failure]:
    """Ask for JSON; an answer that is not valid is shown to the model with what is wrong, `repairs` times at most."""
    assert ask.shape is not None
    current = ask
    for attempt in range(repairs + 1):
        got = yield current
        if is_refusal(got.text, got.finish_reason):
            return Failure("refusal", "the model refused", got)
        found = read_shape(got.text, ask.shape)
        if not isinstance(found, str):
            return replace(got, value=found, repairs=attempt)
        fault = found
        if got.finish_reason == "length":
            fault = f"it was cut at max_tokens, so {found}"
        turns = [{"role": "assistant", "content": got.text}, *repair.messages(fault=fault, shape=ask.shape.example)]
        current = replace(ask, messages=[*ask.messages, *turns], template=ask.template)
    return Failure("cut" if got.finish_reason == "length" else "invalid_json", fault, got)


def answered(ask: Ask) -> Generator[Ask, Got, Got | Failure]:
    """Ask for a text."""
    got = yield ask
    if is_refusal(got.text, got.finish_reason):
        return Failure("refusal", "the model refused", got)
    if got.finish_reason == "length":
        return Failure("cut", "cut at max_tokens", got)
    if not got.text.strip():
        return Failure("empty", "the answer is empty", got)
    return got


def provenance_of(ask: Ask, got: Got, **source: Any) -> dict[str, Any]:
    """Where a row came from."""
    repaired = {"repairs": got.repairs} if got.repairs else {}
    return {**source, "template": ask.template, "model": got.model, "parameters": dict(got.parameters),
            "request_id": got.request_id, "time": got.at, **repaired}  # fmt: skip
