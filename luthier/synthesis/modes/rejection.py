"""Several answers to each prompt, of which a scorer keeps the right ones: rejection sampling, best of n, pairs for DPO.

Each answer is a work of its own, so a budget that ends or a request that fails costs that answer alone. What is kept is
chosen afterwards, prompt by prompt, from all answers in the order of their draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luthier.curate.normal import normaliser
from luthier.data.sources import read_conversations
from luthier.data.types import RowRef
from luthier.evaluate.stats import proportion
from luthier.runtime.errors import DataError, Problem
from luthier.synthesis.asking import (
    Ask,
    Candidate,
    Driver,
    Failure,
    Halt,
    Made,
    Rejected,
    Steps,
    Work,
    answered,
    halted,
    provenance_of,
)
from luthier.synthesis.modes.base import candidate, flat, not_kept, rejected
from luthier.synthesis.score import Scorer, build_scorer
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.templates import Templates

__all__ = ["CONFIDENCE", "RejectionMode", "Task"]

CONFIDENCE = 0.95
_NORMAL = normaliser(["unicode", "whitespace"])


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and its right answer."""

    ref: RowRef
    messages: Sequence[Mapping[str, Any]]
    reference: str | None


@dataclass(slots=True)
class _Told:
    """What became of one prompt."""

    ref: RowRef
    answers: int
    accepted: int
    rows: int
    outcomes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"prompt": str(self.ref), "answers": self.answers, "accepted": self.accepted,
                                 "rows": self.rows, "outcomes": self.outcomes}  # fmt: skip
        if self.answers:
            interval = proportion(self.accepted, self.answers, confidence=CONFIDENCE)
            value |= {"rate": self.accepted / self.answers, "rate_interval": [interval.low, interval.high]}
        return value


class RejectionMode:
    """As `Mode`.

    Raises:
        DataError: rows that cannot be asked, or whose reference the scorer cannot use.
        RecipeError: a scorer that cannot be loaded.
    """

    def __init__(self, spec: SynthSpec, templates: Templates) -> None:
        assert spec.rejection is not None
        self.spec, self.section = spec, spec.rejection
        self.scorer = build_scorer(spec, templates)
        self.tasks = _read_tasks(spec, self.scorer)
        self.told: list[_Told] = []

    @property
    def total(self) -> int:
        """One work an answer."""
        return len(self.tasks) * self.section.n

    def requests(self) -> tuple[int, int]:
        """An answer each; a judge doubles it."""
        return self.total, self.total * (2 if self.section.scorer.name == "judge" else 1)

    def first(self) -> Ask:
        """The first answer to the first prompt."""
        return self._ask(self.tasks[0], 0)

    def report(self) -> dict[str, Any]:
        """Rate of accepted answers, and the prompts that none was accepted for."""
        answers, accepted = sum(told.answers for told in self.told), sum(told.accepted for told in self.told)
        unsolved = [str(told.ref) for told in self.told if not told.accepted]
        value: dict[str, Any] = {"prompts": len(self.tasks), "answers_per_prompt": self.section.n,
                                 "answers_scored": answers, "accepted": accepted,
                                 "solved": len(self.told) - len(unsolved), "unsolved": unsolved}  # fmt: skip
        if answers:
            interval = proportion(accepted, answers, confidence=CONFIDENCE)
            value |= {"rate": accepted / answers, "rate_interval": [interval.low, interval.high]}
        return value

    def per_prompt(self) -> list[dict[str, Any]]:
        """A line for each prompt, for `OUT.prompts.jsonl`."""
        return [told.to_json() for told in self.told]

    def produce(self, driver: Driver, on_done: Callable[[list[Made]], None]) -> list[Made]:
        """Sample all answers, score them, and choose."""
        works = [
            Work(f"{task.ref} answer {draw + 1}", partial(self._steps, task, draw))
            for task in self.tasks
            for draw in range(self.section.n)
        ]
        results = driver.run(works, on_done)
        n = self.section.n
        made: list[Made] = []
        for index, task in enumerate(self.tasks):
            made += self._choose(task, flat(results[index * n : (index + 1) * n]))
        return made

    def _ask(self, task: Task, draw: int) -> Ask:
        return Ask(messages=task.messages, template="none", draw=draw)

    def _steps(self, task: Task, draw: int) -> Steps:
        item = f"{task.ref} answer {draw + 1}"
        ask = self._ask(task, draw)
        source = {"mode": "rejection", "seeds": [str(task.ref)], "draw": draw}
        got = yield from answered(ask)
        if isinstance(got, Failure):
            return [rejected(item, got, ask, source)]
        answer = got.text.strip()
        row = {"messages": [*task.messages, {"role": "assistant", "content": answer}]}
        try:
            found = yield from self.scorer.score(task.messages, task.reference, answer, task.ref)
        except Halt as halt:
            return [halted(candidate(item, row, ask, got, source), halt)]
        if isinstance(found, Failure):
            told = {"judge": provenance_of(ask, found.got)}
            return [Rejected(item=item, outcome="unjudged", detail=found.detail, said=found.got.text, value=row,
                             provenance={**provenance_of(ask, got, **source), **told})]  # fmt: skip
        made = candidate(item, row, ask, got, {**source, "score": found.score})
        if found.accepted:
            return [replace(made, score=found.score)]
        return [Rejected(item=item, outcome="wrong", detail=found.detail, value=row, provenance=made.provenance)]

    # -- choosing

    def _choose(self, task: Task, made: list[Made]) -> list[Made]:
        """What is kept of the answers to one prompt."""
        good, repeated = _distinct([one for one in made if isinstance(one, Candidate)])
        bad = [one for one in made if isinstance(one, Rejected)]
        scored = len(good) + len(repeated) + sum(1 for one in bad if one.outcome == "wrong")
        if self.section.keep == "pairs":
            kept, rest = self._pairs(task, good, bad)
        else:
            kept, rest = self._rows(good)
            rest += bad
        outcomes: dict[str, int] = {}
        for one in bad:
            outcomes[one.outcome] = outcomes.get(one.outcome, 0) + 1
        self.told.append(_Told(task.ref, scored, len(good) + len(repeated), len(kept), outcomes))
        return [*kept, *rest, *repeated]

    def _rows(self, good: list[Candidate]) -> tuple[list[Made], list[Made]]:
        keep = self.section.keep
        if keep == "best":
            order = sorted(good, key=lambda one: (-(one.score or 0.0), len(one.value["messages"][-1]["content"])))
        else:
            order = good
        count = self.section.max_per_prompt if keep == "all" else 1
        chosen = order[:count]
        rest = [one for one in good if one not in chosen]
        return list(chosen), [not_kept(one, "another answer to this prompt was kept") for one in rest]

    def _pairs(self, task: Task, good: list[Candidate], bad: list[Rejected]) -> tuple[list[Made], list[Made]]:
        """The i-th accepted answer with the i-th wrong one."""
        wrong = _distinct_rejected([one for one in bad if one.outcome == "wrong"])
        count = min(len(good), len(wrong), self.section.max_per_prompt)
        pairs: list[Made] = []
        for chosen, other in zip(good[:count], wrong[:count], strict=True):
            assert other.value is not None
            value = {"prompt": list(task.messages), "chosen": [chosen.value["messages"][-1]],
                     "rejected": [other.value["messages"][-1]]}  # fmt: skip
            provenance = {"chosen": dict(chosen.provenance), "rejected": dict(other.provenance)}
            pairs.append(Candidate(item=str(task.ref), value=value, provenance=provenance, score=chosen.score))
        full = f"there are {count} pairs of this prompt already (max_per_prompt)"
        rest: list[Made] = [
            not_kept(one, full if place < len(wrong) else "there is no wrong answer to pair it with")
            for place, one in enumerate(good[count:], count)
        ]
        used = {id(one) for one in wrong[:count]}
        return pairs, [*rest, *(one for one in bad if id(one) not in used)]


def _distinct(good: list[Candidate]) -> tuple[list[Candidate], list[Made]]:
    """Answers that differ in more than white space, and the others as duplicates."""
    seen: dict[str, Candidate] = {}
    repeated: list[Made] = []
    for one in good:
        key = _NORMAL(one.value["messages"][-1]["content"])
        if key in seen:
            repeated.append(Rejected(item=one.item, outcome="duplicate", detail=f"the same answer as {seen[key].item}",
                                     value=one.value, provenance=one.provenance))  # fmt: skip
        else:
            seen[key] = one
    return list(seen.values()), repeated


def _distinct_rejected(wrong: list[Rejected]) -> list[Rejected]:
    seen: dict[str, Rejected] = {}
    for one in wrong:
        assert one.value is not None
        seen.setdefault(_NORMAL(one.value["messages"][-1]["content"]), one)
    return list(seen.values())


# -- reading


def _read_tasks(spec: SynthSpec, scorer: Scorer) -> list[Task]:
    """Prompts with their references; what stands before the last assistant message is the prompt."""
    assert spec.rejection is not None
    source = spec.rejection.source
    if spec.system is not None and source.system is None:
        source = source.model_copy(update={"system": spec.system})
    result = read_conversations(source, 0, on_empty="keep", loss_on="last_assistant")
    tasks, problems = [], []
    for row in result.conversations:
        fault: str | None = None
        if row.kind != "chat":
            fault = "the row is raw text, and a prompt is a chat: name the columns, map: {user: ..., assistant: ...}"
        messages = list(row.messages)
        last = messages[-1] if messages else {}
        reference = last.get("content") if last.get("role") == "assistant" else None
        if isinstance(reference, str):
            messages = messages[:-1]
        else:
            reference = None
        if fault is None and not any(message.get("role") == "user" for message in messages):
            fault = "nothing is asked before the answer"
        fault = fault or scorer.unusable(reference)
        if fault is not None:
            problems.append(Problem(code="D276", message=fault, file=row.ref.file, line=row.ref.line))
        tasks.append(Task(row.ref, messages, reference))
    if problems:
        raise DataError(problems=problems)
    return tasks
