"""Synthetic support tickets and the JSON a help desk wants from them.

A small grammar composes each ticket: greeting, who writes (first or last), the product and what is
wrong with it, the order number (or none), and sentences that change nothing: how pressing it is, other
people, other products, phone numbers. The answer follows from the text alone:

    name      who writes (not somebody who is only mentioned)
    product   the product it is about (not one that is only mentioned)
    order     the order number, or null (a phone number is none)
    issue     damaged | late | wrong_item | billing | return

The splits share no name, product, order number, city or sentence fragment (`phrases.py`), so a
model that memorises the training tickets answers none of the test tickets.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from luthier.quickstart.phrases import POOLS, Pool
from luthier.runtime.atomic import write_text

__all__ = ["CARD", "FIELDS", "ISSUES", "SYSTEM", "Split", "make_tickets", "write_tickets"]

Split = Literal["train", "development", "test"]
T = TypeVar("T")

FIELDS = ("name", "product", "order", "issue")
ISSUES = ("damaged", "late", "wrong_item", "billing", "return")
SYSTEM = "Extract name, product, order and issue as JSON."

CARD = """# Support tickets to JSON (synthetic)

Written by a program, `luthier/quickstart/tickets.py`, from word lists made for it. No real person,
company, product or order. Licence: Apache-2.0, as Luthier.

Train and test share no name, product, order number, city or sentence fragment. They share the
five fields, the five issues, the three priorities and the order of thought of a ticket: a good
score shows that the model learned the format, the fields and the labels, for wordings it has not
seen. It does not show how the model would do on the mail of real customers.
"""

_ALTERNATIVES = re.compile(r"\[([^\[\]/]+(?:/[^\[\]/]+)+)\]")

_STARTS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "st", "tr", "sh")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("l", "m", "n", "r", "s", "v", "d", "k", "nd", "rt", "ll", "st", "lm")
_ENDS = ("", "", "n", "r", "s", "l", "th", "x")
_LISTED = frozenset(
    word
    for pool in POOLS.values()
    for words in (pool.first_names, pool.last_names, pool.brands, pool.goods, pool.cities)
    for name in words
    for word in name.split()
)

# Shares of tickets; chosen so that every branch occurs often in 100 rows.
_NO_ORDER = 0.25
_INTRODUCTION = 0.4
_GREETING = 0.6
_DISTRACTOR = 0.4
_CLOSING = 0.4


class _Chooser:
    """Seeded choices from `random()` alone: the one method whose sequence Python promises to keep."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        return self._random() < share

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def digits(self, count: int) -> str:
        return "".join(self.pick("0123456789") for _ in range(count))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        keyed = [(self._random(), index, item) for index, item in enumerate(items)]
        return [item for _, _, item in sorted(keyed, key=lambda entry: entry[:2])]


def make_tickets(n: int, *, seed: int, split: Split) -> list[dict[str, Any]]:
    """Return `n` different tickets as rows of OpenAI `messages` (system, user, assistant).

    The rows depend on `seed` and `split` alone, on every Python version; the first rows of a
    longer list are the shorter list. Issues take turns, so that they are balanced.
    """
    chooser = _Chooser(f"luthier-tickets-8/{split}/{seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < n:
        text, answer = _ticket(POOLS[split], chooser, issue=ISSUES[len(rows) % len(ISSUES)])
        if text in seen:
            continue
        seen.add(text)
        rows.append(
            {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False, separators=(",", ":"))},
                ]
            }
        )
    return rows


def write_tickets(path: Path, n: int, *, seed: int, split: Split) -> Path:
    """Write `make_tickets` as JSON lines; returns `path`."""
    rows = make_tickets(n, seed=seed, split=split)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _ticket(pool: Pool, chooser: _Chooser, *, issue: str) -> tuple[str, dict[str, str | None]]:
    """One ticket's text and its answer."""
    entities = _entities(pool, chooser)
    ordered = not chooser.chance(_NO_ORDER)

    matter = f"{chooser.pick(pool.subjects)} {chooser.pick(pool.predicates[issue])}"
    matter += "?" if any(f" {word} " in matter for word in ("how", "where", "can", "may")) else "."
    middle = [matter]
    if ordered:
        middle.append(chooser.pick(pool.order_mentions))
    if chooser.chance(_DISTRACTOR):
        middle.append(chooser.pick(pool.distractors))
    if chooser.chance(_CLOSING):
        middle.append(chooser.pick(pool.closings))

    parts = [chooser.pick(pool.greetings)] if chooser.chance(_GREETING) else []
    introduced = chooser.chance(_INTRODUCTION)
    if introduced:
        parts.append(chooser.pick(pool.introductions))
    parts += chooser.shuffled(middle)
    if not introduced:
        parts.append(chooser.pick(pool.signatures))
    text = _one_of_each(" ".join(parts), chooser).format_map(entities)
    answer: dict[str, str | None] = {
        "name": entities["name"],
        "product": entities["product"],
        "order": entities["order"] if ordered else None,
        "issue": issue,
    }
    return text, answer


def _one_of_each(text: str, chooser: _Chooser) -> str:
    """Replace every `[one/two]` by one of its alternatives."""
    return _ALTERNATIVES.sub(lambda match: chooser.pick(match[1].split("/")), text)


def _entities(pool: Pool, chooser: _Chooser) -> dict[str, str]:
    """Values for the slots; the bystander and the extra product differ from the ticket's own in every word."""
    first, other = _two(pool, pool.first_names, chooser)
    brand, extra_brand = _two(pool, pool.brands, chooser)
    good, extra_good = chooser.shuffled(pool.goods)[:2]
    last, _ = _two(pool, pool.last_names, chooser)
    letters, digits = chooser.pick(pool.order_letters), chooser.digits(4)
    return {
        "name": f"{first} {last}",
        "other": other,
        "product": f"{brand} {good}",
        "extra": f"{extra_brand} {extra_good}",
        "order": chooser.pick((f"{digits}-{letters}", f"{digits}{letters}")),
        "phone": f"{chooser.pick(pool.phone_prefixes)} {chooser.digits(4)}",
        "city": chooser.pick(pool.cities),
    }


def _two(pool: Pool, words: Sequence[str], chooser: _Chooser) -> tuple[str, str]:
    """Two different names from the list; in a pool that invents, either may be a new one instead."""
    one, other = chooser.shuffled(words)[:2]
    if chooser.chance(pool.invented):
        one = _invented(chooser)
    if chooser.chance(pool.invented):
        other = _invented(chooser)
    return one, other


def _invented(chooser: _Chooser) -> str:
    """A pronounceable name of two syllables that stands in no list: nothing to memorise, only to copy."""
    while True:
        word = "".join(chooser.pick(part) for part in (_STARTS, _VOWELS, _MIDDLES, _VOWELS, _ENDS)).capitalize()
        if word not in _LISTED:
            return word
