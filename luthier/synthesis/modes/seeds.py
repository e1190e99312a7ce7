"""New prompts in the manner of examples, in rounds; then their answers. After Self-Instruct (arXiv:2212.10560).

    examples + what earlier rounds made --draw by the seed--> request --> new prompts --novel?--> answers

A round's requests depend on the rounds before it alone, in the order of their requests, so the same seed and the same
answers give the same prompts however many requests are in flight.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from luthier.curate.dedup.shingles import jaccard, shingles
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
from luthier.synthesis.modes.base import as_row, candidate, first_prompts, flat, not_kept, rejected
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.structured import PROMPTS
from luthier.synthesis.templates import Templates, marked

__all__ = ["Novelty", "SeedsMode"]

_MADE_SHARE = 4
"""One in four of the examples shown was made, once there are any."""


class Novelty:
    """Prompts so far; says which of them a new one is like.

    Args:
        threshold: Least Jaccard index of shingles (5 characters) of a duplicate; compared with every earlier one.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._normal = normaliser(["unicode", "case", "whitespace"])
        self._known: list[tuple[str, frozenset[str]]] = []

    def like(self, text: str) -> tuple[str, float] | None:
        """The first earlier prompt that similar, and how similar; else None, and the text counts from now on."""
        own = shingles(self._normal(text))
        for other, known in self._known:
            smaller, larger = sorted((len(own), len(known)))
            if smaller < self.threshold * larger:
                continue
            similarity = jaccard(own, known)
            if similarity >= self.threshold:
                return other, similarity
        self._known.append((text, own))
        return None


class SeedsMode:
    """As `Mode`.

    Raises:
        DataError: the examples cannot be read.
    """

    def __init__(self, spec: SynthSpec, templates: Templates) -> None:
        assert spec.seeds is not None
        self.spec, self.section, self.templates = spec, spec.seeds, templates
        self.examples = first_prompts(self.section.examples, section="seeds")
        self.most = self.section.max_requests or -(-4 * self.section.rows // self.section.prompts)
        self.novelty = Novelty(self.section.novelty)
        for example in self.examples:
            self.novelty.like(example.text)
        self.made: list[Candidate] = []
        self.asked = 0

    @property
    def total(self) -> int:
        """Fewest requests for prompts, and an answer each."""
        return self.requests()[0]

    def requests(self) -> tuple[int, int]:
        """For prompts and for answers."""
        answers = self.section.rows if self.section.answer else 0
        return min(self.most, -(-self.section.rows // self.section.prompts)) + answers, self.most + answers

    def first(self) -> Ask:
        """The first request for prompts."""
        return self._ask(0)[0]

    def report(self) -> dict[str, Any]:
        """Examples, and what was asked."""
        return {"examples": len(self.examples), "requests_for_prompts": self.asked, "new_prompts": len(self.made),
                "wanted": self.section.rows}  # fmt: skip

    def produce(self, driver: Driver, on_done: Callable[[list[Made]], None]) -> list[Made]:
        """Rounds until there are enough new prompts, then all answers."""
        lost: list[Made] = []
        while len(self.made) < self.section.rows and self.asked < self.most:
            missing = -(-(self.section.rows - len(self.made)) // self.section.prompts)
            count = min(self.section.round_requests, self.most - self.asked, missing)
            works = [
                Work(f"request {index + 1}", partial(self._prompts, index))
                for index in range(self.asked, self.asked + count)
            ]
            self.asked += count
            found = flat(driver.run(works, on_done))
            lost += self._take(found)
            if any(isinstance(one, Rejected) and one.outcome == "over_budget" for one in found):
                break
        if not self.section.answer:
            return [*self.made, *lost]
        works = [Work(made.item, partial(self._answer, made)) for made in self.made]
        return [*flat(driver.run(works, on_done)), *lost]

    def _take(self, found: list[Made]) -> list[Made]:
        """Keep what is new, in the order of the requests; returns the rest."""
        lost: list[Made] = []
        for made in found:
            if isinstance(made, Rejected):
                lost.append(made)
                continue
            text = made.value["messages"][-1]["content"]
            like = self.novelty.like(text)
            if like is not None:
                detail = f"is {like[1]:.3f} similar to the prompt {like[0][:120]!r}"
                lost.append(Rejected(item=made.item, outcome="duplicate", detail=detail, value=made.value,
                                     provenance=made.provenance))  # fmt: skip
            elif len(self.made) >= self.section.rows:
                lost.append(not_kept(made, "there are enough prompts"))
            else:
                self.made.append(made)
        return lost

    def _ask(self, index: int) -> tuple[Ask, dict[str, Any]]:
        """A request, and which examples it shows."""
        chooser = random.Random(f"{self.spec.seed} examples {index}")
        made = min(self.section.shown // _MADE_SHARE, len(self.made))
        own = chooser.sample(self.examples, min(self.section.shown - made, len(self.examples)))
        grown = chooser.sample(self.made, made)
        shown = [example.text for example in own] + [one.value["messages"][-1]["content"] for one in grown]
        topics = self.section.topics
        topic = topics[index % len(topics)] if topics else ""
        template = self.templates["seeds"]
        messages = template.messages(
            material=marked([(f"example {number}", text) for number, text in enumerate(shown, 1)]),
            prompts=self.section.prompts, topic=topic,
        )  # fmt: skip
        source = {"mode": "seeds", "seeds": [str(example.ref) for example in own] + [one.item for one in grown],
                  **({"topic": topic} if topic else {})}  # fmt: skip
        return Ask(messages=messages, template=template.hash, draw=index, shape=PROMPTS), source

    def _prompts(self, index: int) -> Steps:
        ask, source = self._ask(index)
        item = f"request {index + 1}"
        got = yield from written(ask, repair=self.templates["repair"], repairs=self.spec.repairs)
        if isinstance(got, Failure):
            return [rejected(item, got, ask, source)]
        if not got.value.prompts:
            return [rejected(item, Failure("empty", "no prompt was written", got), ask, source)]
        return [
            candidate(f"prompt {index + 1}.{number}", as_row(self.spec.system, text, None), ask, got, source)
            for number, text in enumerate(got.value.prompts, 1)
        ]

    def _answer(self, made: Candidate) -> Steps:
        ask = Ask(messages=made.value["messages"], template="none")
        source = {**made.provenance, "made": made.item}
        try:
            got = yield from answered(ask)
        except Halt as halt:
            return [halted(made, halt)]
        if isinstance(got, Failure):
            told = {**source, "answer": provenance_of(ask, got.got)}
            return [Rejected(item=made.item, outcome=got.outcome, detail=got.detail, said=got.got.text,
                             value=made.value, provenance=told)]  # fmt: skip
        row = {"messages": [*made.value["messages"], {"role": "assistant", "content": got.text.strip()}]}
        return [Candidate(item=made.item, value=row, provenance={**source, "answer": provenance_of(ask, got)})]
