"""Rows, and a slow second opinion on what is a duplicate: written again from the definition, no hash, no signature."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from luthier.curate.dedup.run import Deduplicated
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DedupSection
from tests.support.tiny import WORDS

THEMES = [
    "the ship left the harbour before the storm and came back with all its cargo",
    "a baker needs flour and butter and sugar for every cake that is sold in the shop",
    "each student reads a book about the stars and writes what was learned from it",
    "the river runs through the valley and past the old mill until it meets the sea",
    "my neighbour grows tomatoes on the balcony and gives them away at the end of summer",
]


def chat(
    question: str, answer: str, line: int = 1, *, file: str = "a.jsonl", source: int = 0, **keys: Any
) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if "system" in keys:
        messages.insert(0, {"role": "system", "content": keys.pop("system")})
    return Conversation(
        kind="chat", ref=RowRef(file, line, source), messages=tuple(messages),
        message_weights=(None,) * len(messages), **keys,
    )  # fmt: skip


def variants(n: int, *, seed: int = 0) -> list[Conversation]:
    """Rows of a few themes with words replaced, numbers changed, case and white space altered, and whole copies."""
    chance = random.Random(seed)
    rows = []
    for line in range(1, n + 1):
        words = chance.choice(THEMES).split()
        for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        if chance.random() < 0.5:
            words.insert(chance.randrange(len(words)), str(chance.randint(1, 3)))
        question = chance.choice([" ", "  "]).join(words)
        question = question.upper() if chance.random() < 0.2 else question
        rows.append(chat(question, chance.choice(["yes it does", "no it does not"]), line))
    return rows


# -- the second opinion


def plain(text: str) -> str:
    """The default normalisation, for plain ASCII."""
    return " ".join(text.lower().split())


def sides(row: Conversation) -> tuple[str, str]:
    return plain(row.messages[-2]["content"]), plain(row.messages[-1]["content"])


@cache
def pieces(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 5] for i in range(max(1, len(text) - 4))) if text else frozenset()


def similarity(first: Conversation, second: Conversation) -> float:
    def one(a: str, b: str) -> float:
        both = pieces(a) | pieces(b)
        return len(pieces(a) & pieces(b)) / len(both) if both else 1.0

    return min(one(a, b) for a, b in zip(sides(first), sides(second), strict=True))


def same_numbers(first: Conversation, second: Conversation) -> bool:
    one, other = (Counter(re.findall(r"\d+", " ".join(sides(row)))) for row in (first, second))
    return not (one - other and other - one)


def near(first: Conversation, second: Conversation, section: DedupSection) -> bool:
    assert section.fuzzy is not None
    return similarity(first, second) >= section.fuzzy and (section.numbers == "any" or same_numbers(first, second))


def true_clusters(rows: Sequence[Conversation], section: DedupSection) -> set[frozenset[int]]:
    """Connected parts of the graph of all pairs, by comparing all pairs."""
    groups = [{index} for index in range(len(rows))]
    for i in range(len(rows)):
        for j in range(i):
            one, other = (next(group for group in groups if k in group) for k in (i, j))
            if one is not other and near(rows[i], rows[j], section):
                groups.remove(other)
                one |= other
    return {frozenset(group) for group in groups if len(group) > 1}


def wrongs(rows: Sequence[Conversation], section: DedupSection, result: Deduplicated) -> list[str]:
    """Every promise that a result breaks."""
    found = []
    gone = {item.row for item in result.dropped}
    if sorted([*result.kept, *gone]) != list(range(len(rows))) or len(gone) != len(result.dropped):
        found.append("kept and dropped are not all rows, each once")
    for item in result.dropped:
        if item.kept in gone:
            found.append(f"{item.row} is dropped for {item.kept}, which is dropped, too")
        if item.stage == "exact" and sides(rows[item.row]) != sides(rows[item.of]):
            found.append(f"{item.row} and {item.of} are not equal")
        if item.stage == "fuzzy":
            true = similarity(rows[item.row], rows[item.of])
            if abs(true - item.similarity) > 1e-9 or true < section.fuzzy:
                found.append(f"{item.row} and {item.of} are {true:.3f} similar, not {item.similarity:.3f}")
            if section.numbers == "same" and not same_numbers(rows[item.row], rows[item.of]):
                found.append(f"{item.row} and {item.of} have different numbers")
            closer = [
                kept
                for kept in result.kept
                if kept < item.row and near(rows[kept], rows[item.row], section)
                and similarity(rows[kept], rows[item.row]) > item.similarity
            ]  # fmt: skip
            if section.keep == "first" and closer:
                found.append(f"{item.row} is more similar to {closer} than to {item.of}")
    for place, i in enumerate(result.kept):
        for j in result.kept[:place]:
            if sides(rows[i]) == sides(rows[j]):
                found.append(f"{i} and {j} are equal, and both stay")
            elif section.fuzzy is not None and near(rows[i], rows[j], section):
                found.append(f"{i} and {j} are near-duplicates, and both stay")
    return found
