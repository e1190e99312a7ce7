"""Words keep their place; numbers are named by their value."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.curate.contamination.words import located, name_of, words_of


@pytest.mark.parametrize(
    "same",
    [
        ("1,000", "1000", "1000.00", "thousand"),
        ("2", "two", "TWO", "twice", "half", "2.0"),
        (".5", "0.5", "0.50"),
        ("12", "dozen", "twelve"),
        ("box", "boxes", "Boxes"),
        ("penny", "pennies"),
        ("walk", "walks", "walked", "walking"),
        ("bake", "bakes", "baked", "baking"),
        ("stop", "stopped", "stopping"),
        ("Janet's", "Janet’s", "janet"),
        ("soft\u00adhyphen", "softhyphen"),
        ("ﬁnd", "find"),
    ],
)
def test_one_name(same: tuple[str, ...]) -> None:
    assert len({name_of(word) for word in same}) == 1, {word: name_of(word) for word in same}


@pytest.mark.parametrize(
    ("one", "other"),
    [("18", "81"), ("1.5", "15"), ("glass", "gla"), ("bus", "b"), ("ten", "tens"), ("3", "13"), ("0", "00.1")],
)
def test_different_names(one: str, other: str) -> None:
    assert name_of(one) != name_of(other)


def test_pieces() -> None:
    assert words_of("She paid $1,250.50 (3/4 of it) in 2 days.") == [
        "She", "paid", "1,250.50", "3", "4", "of", "it", "in", "2", "days",
    ]  # fmt: skip
    assert words_of("小树96名 ก") == ["小", "树", "96", "名", "ก"]
    assert words_of("$.20 a gallon") == [".20", "a", "gallon"]


@given(st.text())
def test_places_are_those_of_the_text(text: str) -> None:
    words, places = located(text)
    assert words == words_of(text) == [text[start:end] for start, end in places]
    assert all(end <= after for (_, end), (after, _) in itertools.pairwise(places))
    assert all(name_of(word) for word in words if word.isascii())
