"""Prompts made harder or more varied, round by round, then answered. After Evol-Instruct (arXiv:2304.12244).

An evolved prompt that is the old one, or that talks of rewriting instead of asking something, is left out, and the next
round begins with the one before it (the paper's elimination). Its other rules, about the answer, are those of
`answered`: refused, cut or empty answers make no row.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from luthier.curate.normal import normaliser
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
    written,
)
from luthier.synthesis.modes.base import Prompt, as_row, first_prompts, flat, not_kept, rejected
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.structured import EVOLVED
from luthier.synthesis.templates import Templates, load_operators, marked

__all__ = ["EvolveMode"]

_TALKS_OF_REWRITING = re.compile(r"\b(?:rewritten|given|evolved|original|new) prompt\b", re.IGNORECASE)
_NORMAL = normaliser(["unicode", "case", "whitespace", "punctuation"])


class EvolveMode:
    """As `Mode`.

    Raises:
        DataError: the prompts cannot be read.
    """

    def __init__(self, spec: SynthSpec, templates: Templates) -> None:
        assert spec.evolve is not None
        self.spec, self.section, self.templates = spec, spec.evolve, templates
        self.prompts = first_prompts(self.section.source, section="evolve")
        self.operators = load_operators()

    @property
    def total(self) -> int:
        """One work a prompt, through all rounds."""
        return len(self.prompts)

    def requests(self) -> tuple[int, int]:
        """A rewrite each round; an answer for each that is kept."""
        rewrites = self.total * self.section.rounds
        answers = rewrites if self.section.keep == "all" else self.total
        return rewrites, rewrites + answers

    def first(self) -> Ask:
        """The first rewrite of the first prompt."""
        return self._ask(self.prompts[0].text, self._operator(0, 0), 0)

    def report(self) -> dict[str, Any]:
        """Prompts, rounds, and how often each operator was drawn."""
        drawn = [self._operator(index, r) for index in range(self.total) for r in range(self.section.rounds)]
        return {"prompts": self.total, "rounds": self.section.rounds,
                "operators": {name: drawn.count(name) for name in dict.fromkeys(self.section.operators)}}  # fmt: skip

    def produce(self, driver: Driver, on_done: Callable[[list[Made]], None]) -> list[Made]:
        """Evolve every prompt."""
        works = [
            Work(str(prompt.ref), partial(self._steps, index, prompt)) for index, prompt in enumerate(self.prompts)
        ]
        return flat(driver.run(works, on_done))

    def _operator(self, index: int, number: int) -> str:
        return random.Random(f"{self.spec.seed} operator {index} {number}").choice(self.section.operators)

    def _ask(self, text: str, operator: str, draw: int) -> Ask:
        template = self.templates["evolve"]
        messages = template.messages(material=marked([("prompt", text)]), operator=self.operators[operator])
        return Ask(messages=messages, template=template.hash, draw=draw, shape=EVOLVED)

    def _steps(self, index: int, prompt: Prompt) -> Steps:
        item, made, evolved = str(prompt.ref), list[Made](), list[Candidate]()
        text, operators = prompt.text, list[str]()
        try:
            for number in range(self.section.rounds):
                operator = self._operator(index, number)
                ask = self._ask(text, operator, number)
                source = {"mode": "evolve", "seeds": [item], "round": number + 1, "operators": [*operators, operator]}
                got = yield from written(ask, repair=self.templates["repair"], repairs=self.spec.repairs)
                if isinstance(got, Failure):
                    made.append(rejected(item, got, ask, source))
                    continue
                row = as_row(self.spec.system, got.value.prompt, None)
                fault = _eliminated(text, got.value.prompt)
                if fault is not None:
                    made.append(Rejected(item=item, outcome="unchanged", detail=fault, value=row,
                                         provenance=provenance_of(ask, got, **source)))  # fmt: skip
                    continue
                text, operators = got.value.prompt, [*operators, operator]
                evolved.append(Candidate(item=f"{item} round {number + 1}", value=row,
                                         provenance=provenance_of(ask, got, **source)))  # fmt: skip
        except Halt as halt:
            made.append(Rejected(item=item, outcome=halt.outcome, detail=halt.detail))
        if self.section.keep == "last":
            made += [not_kept(one, "a later round of this prompt was kept") for one in evolved[:-1]]
            evolved = evolved[-1:]
        for one in evolved:
            made.append((yield from self._answer(one)))
        return made

    def _answer(self, one: Candidate) -> Any:
        ask = Ask(messages=one.value["messages"], template="none")
        try:
            got = yield from answered(ask)
        except Halt as halt:
            return halted(one, halt)
        if isinstance(got, Failure):
            return Rejected(item=one.item, outcome=got.outcome, detail=got.detail, said=got.got.text, value=one.value,
                            provenance={**one.provenance, "answer": provenance_of(ask, got.got)})  # fmt: skip
        row = {"messages": [*one.value["messages"], {"role": "assistant", "content": got.text.strip()}]}
        return Candidate(item=one.item, value=row, provenance={**one.provenance, "answer": provenance_of(ask, got)})


def _eliminated(before: str, after: str) -> str | None:
    """Why an evolved prompt is none."""
    if _NORMAL(before) == _NORMAL(after):
        return "the evolved prompt says the same as the old one"
    if _TALKS_OF_REWRITING.search(after) and not _TALKS_OF_REWRITING.search(before):
        return "the evolved prompt talks of prompts instead of asking something"
    return None
