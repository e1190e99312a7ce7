"""F09: a row's side depends on its content and the seed alone; copies stay together; weights are stable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.content import row_hash
from luthier.data.split import count_duplicates, expand_by_weight, overlapping, split_validation
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import ValidationSection
from luthier.runtime.errors import DataError
from tests.support.often import often


def row(text: str, line: int = 1) -> Conversation:
    return Conversation(kind="text", ref=RowRef("a.jsonl", line), text=text)


def rows(count: int, start: int = 0) -> list[Conversation]:
    return [row(f"row {index}", index + 1) for index in range(start, start + count)]


def texts(found: list[Conversation]) -> list[str]:
    return [conversation.text for conversation in found]


@settings(max_examples=often(100), deadline=None)
@given(
    numbers=st.lists(st.integers(0, 300), min_size=100, max_size=200),
    more=st.lists(st.integers(0, 400), max_size=100),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 10),
)
def test_appending_moves_no_row_and_copies_stay_together(
    numbers: list[int], more: list[int], fraction: float, seed: int
) -> None:
    section = ValidationSection(fraction=fraction)
    before = [row(str(number)) for number in numbers]
    after = before + [row(str(number)) for number in more]
    try:
        train, validation = split_validation(before, section, seed=seed)
    except DataError:
        return
    longer_train, longer_validation = split_validation(after, section, seed=seed)
    assert texts(longer_train)[: len(train)] == texts(train)
    assert texts(longer_validation)[: len(validation)] == texts(validation)
    assert not set(texts(longer_train)) & set(texts(longer_validation))
    assert sorted(texts(longer_train) + texts(longer_validation)) == sorted(texts(after))
    assert overlapping(longer_train, longer_validation) == []


@settings(max_examples=often(60), deadline=None)
@given(count=st.integers(200, 400), more=st.integers(0, 200), limit=st.integers(1, 60), seed=st.integers(0, 5))
def test_max_rows_keeps_the_smallest_and_turns_no_training_row_into_validation(
    count: int, more: int, limit: int, seed: int
) -> None:
    free = ValidationSection(fraction=0.3)
    bound = ValidationSection(fraction=0.3, max_rows=limit)
    train, validation = split_validation(rows(count), bound, seed=seed)
    _, unbound = split_validation(rows(count), free, seed=seed)
    assert len(validation) == min(limit, len(unbound))
    assert set(texts(validation)) <= set(texts(unbound))
    assert sorted(texts(train) + texts(validation)) == sorted(texts(rows(count)))
    _, longer = split_validation(rows(count + more), bound, seed=seed)
    assert not set(texts(longer)) & set(texts(train))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_share_held_out_is_about_the_fraction(fraction: float) -> None:
    _, validation = split_validation(rows(20_000), ValidationSection(fraction=fraction), seed=0)
    # Four standard deviations of a binomial.
    assert abs(len(validation) - 20_000 * fraction) < 4 * (20_000 * fraction * (1 - fraction)) ** 0.5


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    section = ValidationSection(fraction=0.5)
    first, again, other = (split_validation(rows(100), section, seed=seed)[1] for seed in (0, 0, 1))
    assert texts(first) == texts(again)
    assert texts(first) != texts(other)


def test_the_split_is_the_same_on_every_machine_and_version() -> None:
    """Golden: a change here moves everybody's validation rows."""
    _, validation = split_validation(rows(40), ValidationSection(fraction=0.2), seed=7)
    assert texts(validation) == GOLDEN


GOLDEN = [f"row {number}" for number in (12, 14, 17, 18, 21, 22, 27, 29, 32, 34, 35, 37)]


def test_fraction_0_holds_out_nothing() -> None:
    assert split_validation(rows(3), ValidationSection(), seed=0) == (rows(3), [])


@pytest.mark.parametrize(("count", "fraction", "side"), [(3, 0.0001, "no"), (3, 0.9999, "every")])
def test_a_split_that_leaves_one_side_empty_is_an_error(count: int, fraction: float, side: str) -> None:
    with pytest.raises(DataError, match=f"holds out {side} row of 3") as caught:
        split_validation(rows(count), ValidationSection(fraction=fraction), seed=0)
    assert caught.value.problems[0].code == "D215"


def test_max_rows_never_divides_copies_and_counts_them() -> None:
    copies = [row("same", line) for line in range(1, 6)] + rows(200)
    held_out = 0
    for seed in range(6):
        for limit in (5, 20, 40, 80):
            train, validation = split_validation(copies, ValidationSection(fraction=0.5, max_rows=limit), seed=seed)
            assert len(validation) <= limit
            assert ("same" in texts(train)) != ("same" in texts(validation))
            held_out += "same" in texts(validation)
    assert held_out > 0


def test_duplicates_and_overlap_are_counted() -> None:
    found = [row("a"), row("b"), row("a", 9), row("a", 10)]
    assert count_duplicates(found) == 2
    assert overlapping(found, [row("c"), row("b", 3), row("a")]) == [1, 2]


def test_the_hash_of_a_row_tells_apart_what_trains_differently() -> None:
    def chat(**keys: object) -> Conversation:
        messages = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y", **keys})
        return Conversation(kind="chat", ref=RowRef("a", 1), messages=messages, message_weights=(None, None))

    variants = [
        row("x"),
        Conversation(kind="prompt_completion", ref=RowRef("a", 1), prompt="x", completion="y"),
        Conversation(kind="prompt_completion", ref=RowRef("a", 1), prompt="xy"),
        chat(),
        chat(n=1),
        chat(n=1.0),
        chat(n=True),
        chat(n={"a": 1, "b": 2}),
        chat(n={"b": 2, "a": 1}),
    ]
    assert len({row_hash(variant) for variant in variants}) == len(variants)
    assert row_hash(row("x", 1)) == row_hash(row("x", 2))


@given(n=st.integers(0, 50), whole=st.integers(1, 4), seed=st.integers(0, 9))
def test_whole_weights_repeat_every_row(n: int, whole: int, seed: int) -> None:
    assert expand_by_weight(n, float(whole), seed) == list(range(n)) * whole


@given(n=st.integers(0, 200), more=st.integers(0, 50), weight=st.floats(0.01, 3.0), seed=st.integers(0, 9))
def test_fractional_weights_are_stable_under_appending(n: int, more: int, weight: float, seed: int) -> None:
    short, long = expand_by_weight(n, weight, seed), expand_by_weight(n + more, weight, seed)
    assert short == [index for index in long if index < n]
    counts = [short.count(index) for index in range(n)]
    assert all(count in {int(weight), int(weight) + 1} for count in counts)


def test_a_half_is_about_half_seeded_and_by_content() -> None:
    half = expand_by_weight(10_000, 0.5, 0)
    assert 4_800 < len(half) < 5_200
    assert half != expand_by_weight(10_000, 0.5, 1)
    assert len(expand_by_weight(10_000, 1.5, 0)) == 10_000 + len(half)
    hashes = [f"{index}" for index in range(100)]
    chosen = {hashes[index] for index in expand_by_weight(100, 0.5, 0, hashes=hashes)}
    backwards = list(reversed(hashes))
    assert {backwards[index] for index in expand_by_weight(100, 0.5, 0, hashes=backwards)} == chosen
