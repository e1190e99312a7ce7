"""Evaluation rows with their rewordings by hand (the fixture of the benchmark), and clean rows around them."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from luthier.curate.contamination.run import Decontaminated, decontaminate
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DecontaminateSection
from tests.curate.support import chat

FIXTURE = Path(__file__).parents[3] / "benchmarks" / "data" / "gsm8k_paraphrases.jsonl"
_THINGS = "apple brick candle drum engine flower garden hammer island jacket kettle ladder mirror needle orange".split()
_PEOPLE = "Alma Bruno Carla Dario Elsa Felix Greta Hugo Ivana Jonas Karin Luis".split()
_DOES = "buys sells paints lifts repairs counts packs cleans draws loses finds lends".split()


@cache
def hand() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in FIXTURE.read_text("utf-8").splitlines())


@cache
def evaluation() -> tuple[Conversation, ...]:
    """The test rows that have a rewording, in order of their lines."""
    rows = {item["test_line"]: item for item in hand()}
    return tuple(chat(rows[line]["original"], rows[line]["answer"], line, file="test.jsonl") for line in sorted(rows))


def place_of(line: int) -> int:
    """Index in `evaluation()` of a test row."""
    return next(place for place, row in enumerate(evaluation()) if row.ref.line == line)


@cache
def clean(n: int = 300, seed: int = 0) -> tuple[Conversation, ...]:
    """Word problems of a small grammar, unlike the evaluation rows."""
    chance = random.Random(seed)
    rows = []
    for line in range(1, n + 1):
        who, what, many, price = (
            chance.choice(_PEOPLE),
            chance.choice(_THINGS),
            chance.randint(2, 97),
            chance.randint(2, 60),
        )
        question = f"{who} {chance.choice(_DOES)} {many} {what}s and {chance.randint(3, 50)} {chance.choice(_THINGS)}s"
        question += f" on a {chance.choice(['sunny', 'rainy', 'windy'])} day. What is {price} times {many}?"
        rows.append(chat(question, f"{price} * {many} = {price * many}\n#### {price * many}", line, file="train.jsonl"))
    return tuple(rows)


def row(question: str, answer: str = "Good question.", line: int = 9_001) -> Conversation:
    return chat(question, answer, line, file="train.jsonl")


def text(words: str, line: int = 9_002) -> Conversation:
    return Conversation(kind="text", ref=RowRef("train.jsonl", line), text=words)


def find(rows: list[Conversation], **keys: Any) -> Decontaminated:
    """Among clean rows, which come after."""
    return decontaminate([*rows, *clean()], evaluation(), DecontaminateSection(**keys))


def verdict(one: Conversation, **keys: Any) -> tuple[str, int] | None:
    """Verdict on a row and index of the evaluation row it holds."""
    matches = [match for match in find([one], **keys).matches if match.row == 0]
    return (matches[0].verdict, matches[0].of) if matches else None
