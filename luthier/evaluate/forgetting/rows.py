"""The questions of `builtin:forgetting`: (question, reference) by part, always the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from importlib import resources

__all__ = ["PARTS", "ROWS", "SEED"]

ROWS = 60
"""Of each part."""
SEED = 20_250

Pair = tuple[str, str]
_WORDS = (
    "river lamp seven orange window quiet stone paper garden yellow bottle north candle silver market winter bridge "
    "copper forest button mirror ladder"
).split()
_NAMES = "Mara Tom Ines Paul Nora Karim Lena Oscar Ruth Ivan Sofia Hugo".split()
_CITIES = "Oslo Lima Porto Delhi Accra Quito Cork Turin Kyoto Perth Basel Tunis".split()


def _arithmetic(draw: random.Random) -> list[Pair]:
    """Sums, differences and products of small numbers; each question once."""
    found: dict[str, str] = {}
    while len(found) < ROWS:
        kind = "+-*"[len(found) % 3]
        if kind == "*":
            a, b = draw.randint(2, 12), draw.randint(2, 12)
        else:
            a, b = sorted((draw.randint(1, 99), draw.randint(1, 99)), reverse=True)
        value = {"+": a + b, "-": a - b, "*": a * b}[kind]
        words = {"+": "plus", "-": "minus", "*": "times"}[kind]
        found.setdefault(f"What is {a} {words} {b}? Answer with the number only.", str(value))
    return list(found.items())


def _copying(draw: random.Random) -> list[Pair]:
    """A line of three to six words and numbers, to be said again."""
    found: dict[str, str] = {}
    while len(found) < ROWS:
        text = " ".join([*draw.sample(_WORDS, 2 + len(found) % 4), str(draw.randint(10, 999))])
        found.setdefault(f"Repeat the following line exactly, and write nothing else:\n{text}", text)
    return list(found.items())


def _format(draw: random.Random) -> list[Pair]:
    """A sentence as a JSON object with named keys."""
    found: dict[str, str] = {}
    while len(found) < ROWS:
        name, city, number = draw.choice(_NAMES), draw.choice(_CITIES), draw.randint(2, 90)
        sentence, value = (
            (f"{name} is {number} years old.", {"name": name, "age": number}),
            (f"{name} lives in {city}.", {"name": name, "city": city}),
            (f"The train to {city} has {number} seats.", {"city": city, "seats": number}),
        )[len(found) % 3]
        keys = " and ".join(f'"{key}"' for key in value)
        question = f"Write this as a JSON object with the keys {keys}, and nothing else: {sentence}"
        found.setdefault(question, json.dumps(value))
    return list(found.items())


def _facts(draw: random.Random) -> list[Pair]:
    """Common knowledge, written for this file."""
    text = resources.files(__package__).joinpath("facts.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [(f"{row['question']} Answer in one or two words.", row["answer"]) for row in rows]


PARTS: Mapping[str, Callable[[random.Random], list[Pair]]] = {
    "arithmetic": _arithmetic,
    "copying": _copying,
    "format": _format,
    "facts": _facts,
}
