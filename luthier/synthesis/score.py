"""Whether an answer is accepted: by comparison with a reference, by the user's own function, by a judge."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.data.prompt_rows import ARGUMENTS
from luthier.data.rows import Faults, Row, row_problem
from luthier.data.sources import read_rows, source_files
from luthier.data.types import RowRef
from luthier.online.rewards.base import Completions
from luthier.online.rewards.python_file import PythonReward, load_function
from luthier.recipe.online_rules import split_python
from luthier.scoring.extract import compile_pattern
from luthier.scoring.metrics import check_reference, score_answer
from luthier.synthesis.asking import Ask, Failure, Got, written
from luthier.synthesis.spec import JudgeSpec, SynthSpec
from luthier.synthesis.structured import SCORE
from luthier.synthesis.templates import Template, Templates, marked

__all__ = ["Judge", "Scored", "Scorer", "build_judge", "build_scorer"]

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says of one answer."""

    score: float
    accepted: bool
    detail: str
    """In words, for the rejected."""


class Scorer(Protocol):
    """Scores one answer; may ask a model on the way."""

    def unusable(self, reference: str | None) -> str | None:
        """What makes a reference unusable, in words; None when it is fine, or when none is needed."""
        ...

    def score(
        self, prompt: Messages, reference: str | None, answer: str, ref: RowRef
    ) -> Generator[Ask, Got, Scored | Failure]:
        """Score an answer.

        Raises:
            RunFailed: the user's function failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Compare:
    metric: str
    pattern: Any

    def unusable(self, reference: str | None) -> str | None:
        if reference is None:
            return f"the scorer `{self.metric}` needs a reference: a last message of the assistant"
        return check_reference(self.metric, reference, pattern=self.pattern, bare_reference=True)

    def score(
        self, prompt: Messages, reference: str | None, answer: str, ref: RowRef
    ) -> Generator[Ask, Got, Scored | Failure]:
        assert reference is not None
        yield from ()  # nothing is asked
        found = score_answer(self.metric, answer, reference, pattern=self.pattern, bare_reference=True)
        detail = f"{self.metric}: found {found.extracted!r}"
        return Scored(found.value, found.value >= 1.0, detail)


@dataclass(frozen=True, slots=True)
class _Python:
    reward: PythonReward
    accept: float
    columns: Mapping[tuple[str, int], Mapping[str, Any]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    """The function is the user's own, and need not bear threads."""

    def unusable(self, reference: str | None) -> str | None:
        return None

    def score(
        self, prompt: Messages, reference: str | None, answer: str, ref: RowRef
    ) -> Generator[Ask, Got, Scored | Failure]:
        yield from ()  # nothing is asked
        batch = Completions(
            prompts=[prompt], texts=[answer], ids=[[]], references=[reference],
            columns=[self.columns[ref.file, ref.line]],
            extra={"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None},
        )  # fmt: skip
        with self.lock:
            value = self.reward.score(batch)[0]
        if value is None:
            return Scored(0.0, False, f"{self.reward.label} says nothing about it")
        return Scored(value, value >= self.accept, f"{self.reward.label}: {value:g}, accepted from {self.accept:g}")


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that scores by a rubric."""

    spec: JudgeSpec
    template: Template
    repair: Template
    repairs: int

    def unusable(self, reference: str | None) -> str | None:
        """A reference is shown where there is one; none is needed."""
        return None

    def score(
        self, prompt: Messages, reference: str | None, answer: str, ref: RowRef
    ) -> Generator[Ask, Got, Scored | Failure]:
        """Ask the judge; a score out of bounds is no score."""
        spec = self.spec
        asked = "\n\n".join(f"{message['role']}: {message.get('content')}" for message in prompt)
        parts = [("conversation", asked), ("reference answer", reference), ("answer to score", answer)]
        messages = self.template.messages(
            material=marked([(name, text) for name, text in parts if text is not None]), low=f"{spec.min_score:g}",
            high=f"{spec.max_score:g}", rubric=spec.rubric.strip(),
        )  # fmt: skip
        ask = Ask(messages=messages, template=self.template.hash, shape=SCORE, judge=True)
        got = yield from written(ask, repair=self.repair, repairs=self.repairs)
        if isinstance(got, Failure):
            return Failure("unjudged", got.detail, got.got)
        score = float(got.value.score)
        if not spec.min_score <= score <= spec.max_score:
            return Failure("unjudged", f"score {score:g} is not within {spec.min_score:g} to {spec.max_score:g}", got)
        reason = f": {got.value.reason}" if got.value.reason else ""
        return Scored(score, score >= spec.accept, f"judge: {score:g}, accepted from {spec.accept:g}{reason}")


def build_judge(spec: SynthSpec, templates: Templates) -> Judge:
    """The judge of a spec."""
    assert spec.judge is not None
    return Judge(spec.judge, templates["judge"], templates["repair"], spec.repairs)


def build_scorer(spec: SynthSpec, templates: Templates) -> Scorer:
    """The scorer of rejection sampling.

    Raises:
        RecipeError: a file or function that cannot be loaded.
    """
    assert spec.rejection is not None
    scorer = spec.rejection.scorer
    if scorer.python is not None:
        file, name = split_python(scorer.python)
        reward = PythonReward(name, 1.0, file, load_function(scorer.python, file, name))
        return _Python(reward, scorer.accept, _columns(spec))
    if scorer.name == "judge":
        return build_judge(spec, templates)
    assert scorer.name is not None
    return _Compare(scorer.name, compile_pattern(scorer.pattern) if scorer.pattern is not None else None)


def _columns(spec: SynthSpec) -> dict[tuple[str, int], dict[str, Any]]:
    """The raw rows, by file and line, less the names that the function has arguments of.

    Raises:
        DataError: several rows begin on one line, so that their columns cannot be told apart; all are told.
    """
    assert spec.rejection is not None
    notes: Counter[str] = Counter()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    faults = Faults()
    for row in read_rows(source_files(spec.rejection.source, notes), 0, notes=notes):
        if not isinstance(row, Row):
            continue  # told when the prompts are read
        if (row.ref.file, row.ref.line) in found:
            message = "several rows begin on this line, so the columns for the scorer cannot be told apart"
            faults.add(row_problem("D276", message, row.ref, hint="write one row a line (`.jsonl`)"))
        found[row.ref.file, row.ref.line] = {n: value for n, value in row.value.items() if n not in ARGUMENTS}
    faults.raise_if_any()
    return found
