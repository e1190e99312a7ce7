"""Near-duplicates never stand on both sides of the validation split, and appended rows move none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.curate import apply
from luthier.curate.apply import curator
from luthier.curate.dedup.across import groups_of_near_duplicates, near_held_out_rows
from luthier.data.content import group_hash
from luthier.data.split import split_validation
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError
from tests.curate.support import THEMES, chat, near, variants
from tests.support.tiny import WORDS

IGNORE = ["unicode", "case", "whitespace"]


def data(**validation: Any) -> DataSection:
    return DataSection.model_validate({"train": [{"path": "a.jsonl"}], "validation": validation})


def sides(rows: Sequence[Conversation], fraction: float = 0.3) -> tuple[list[Conversation], list[Conversation]]:
    section = data(fraction=fraction, near_duplicates=0.6)
    curate = curator(section)
    assert curate is not None
    curated = curate(rows, [])
    assert curated.rows == list(rows) and curated.dropped == []
    return split_validation(curated.rows, section.validation, seed=0, groups=curated.groups)


def sets(n: int, seed: int) -> list[Conversation]:
    """Each of many texts, some with a near-duplicate or two."""
    chance = random.Random(seed)
    rows = []
    while len(rows) < n:
        words = chance.choices(WORDS, k=15)
        for _ in range(chance.choice([1, 1, 2, 3])):
            rows.append(chat(" ".join([*words, chance.choice(WORDS)]), "yes", len(rows) + 1))
    chance.shuffle(rows)
    return rows[:n]


def leaks(train: Sequence[Conversation], validation: Sequence[Conversation]) -> int:
    from luthier.recipe.schema import DedupSection

    section = DedupSection(fuzzy=0.6, numbers="any")
    return sum(any(near(row, other, section) for other in train) for row in validation)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_no_near_duplicate_is_on_the_other_side(seed: int) -> None:
    rows = sets(80, seed)
    train, validation = sides(rows)
    assert train and validation and len(train) + len(validation) == 80
    assert leaks(train, validation) == 0
    plain = split_validation(rows, data(fraction=0.3).validation, seed=0)
    assert seed != 0 or leaks(*plain) > 0


def moved(seed: int, more: int) -> bool:
    """Whether appending rows moves one that was there, though no two groups became one."""
    rows = sets(80 + more, seed)
    before_groups = groups_of_near_duplicates(rows[:80], 0.6, on="conversation", ignore=IGNORE)
    after_groups = groups_of_near_duplicates(rows, 0.6, on="conversation", ignore=IGNORE)
    old_group = {row: place for place, members in enumerate(before_groups) for row in members}
    for members in after_groups:
        if len({old_group.get(row, -row - 1) for row in members if row < 80}) > 1:
            return False
    train, validation = sides(rows[:80])
    longer_train, longer_validation = sides(rows)
    return longer_train[: len(train)] != train or longer_validation[: len(validation)] != validation


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), more=st.integers(1, 40))
def test_appended_rows_move_none_unless_they_join_two_groups(seed: int, more: int) -> None:
    assert not moved(seed, more)


def test_groups_are_the_same_in_any_order() -> None:
    rows = sets(100, 4)
    order = random.Random(1).sample(range(100), 100)
    found = groups_of_near_duplicates(rows, 0.6, on="conversation", ignore=IGNORE)
    again = groups_of_near_duplicates([rows[i] for i in order], 0.6, on="conversation", ignore=IGNORE)
    assert {frozenset(order[i] for i in group) for group in again} == set(map(frozenset, found))
    assert len(found) > 10


def test_numbers_do_not_count_across_the_border() -> None:
    rows = [chat(f"{THEMES[0]} {number}", "yes", number) for number in range(1, 30)]
    assert groups_of_near_duplicates(rows, 0.8, on="conversation", ignore=IGNORE) == [list(range(29))]
    with pytest.raises(DataError, match="holds out"):
        sides(rows)


def test_a_group_of_nearly_everything_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [chat(f"{THEMES[0]} {number}", "yes", number) for number in range(1, 30)]
    with pytest.raises(DataError):
        sides(rows)
    assert "one group of near-duplicates holds 100% of the rows" in capsys.readouterr().err


def test_training_rows_near_given_validation_rows_are_dropped_and_named() -> None:
    held_out = [chat(THEMES[0], "yes", 1, file="v.jsonl"), chat(THEMES[0] + " now", "yes", 2, file="v.jsonl")]
    texts = [
        (THEMES[1], "yes"),
        (THEMES[0] + "  NOW", "yes"),
        (THEMES[0], "no"),
        (THEMES[2], "yes"),
        (THEMES[2], "yes"),
    ]
    train = [chat(*text, line) for line, text in enumerate(texts, 1)]
    found = near_held_out_rows(held_out, train, 0.8, on="conversation", ignore=IGNORE)
    assert found == {1: (1, 1.0)}
    curate = curator(data(path="v.jsonl", near_duplicates=0.8))
    assert curate is not None
    curated = curate(train, held_out)
    assert curated.rows == [train[0], *train[2:]]  # its copies among each other stay: `data.dedup` is for them
    (dropped,), (record,) = curated.dropped, [one for one in curated.records if one["stage"] == "validation"]
    assert str(dropped.ref) == "a.jsonl:2" and dropped.reason == "duplicate"
    assert dropped.detail == "validation: is 1.000 similar to the validation row v.jsonl:2"
    assert (record["stage"], record["duplicate_of"], record["similarity"]) == ("validation", "v.jsonl:2", 1.0)
    assert curated.report["validation"]["dropped"] == 1


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_every_near_training_row_is_found(seed: int) -> None:
    from luthier.recipe.schema import DedupSection

    rows = variants(50, seed=seed)
    held_out, train = rows[:12], rows[12:]
    found = near_held_out_rows(held_out, train, 0.7, on="conversation", ignore=IGNORE)
    section = DedupSection(fuzzy=0.7, numbers="any")
    assert set(found) == {i for i, row in enumerate(train) if any(near(row, other, section) for other in held_out)}


def test_pairs_with_one_prompt_join_groups_of_near_duplicates() -> None:
    """B and C have one prompt, A is near B, D near C: all four are on one side."""

    def pair(prompt: str, good: str, bad: str, line: int) -> Conversation:
        return Conversation(kind="pair", ref=RowRef("a.jsonl", line), answers=(chat(prompt, good), chat(prompt, bad)))

    a, b = (THEMES[0] + " now", THEMES[1], THEMES[2]), (THEMES[0], THEMES[1], THEMES[2])
    c, d = (THEMES[0], THEMES[3], THEMES[4]), (THEMES[0] + " then", THEMES[3], THEMES[4])
    rows = [pair(*texts, line) for line, texts in enumerate((a, b, c, d), 1)]
    near_groups = groups_of_near_duplicates(rows, 0.8, on="conversation", ignore=IGNORE)
    assert near_groups == [[0, 1], [2, 3]]
    curate = curator(data(fraction=0.5, near_duplicates=0.8))
    assert curate is not None
    keys = curate(rows, []).groups
    assert keys is not None and set(keys) == {group_hash(row) for row in rows}
    assert set(keys.values()) == {group_hash(rows[0])}


def test_without_either_key_there_is_no_step() -> None:
    assert curator(data()) is None


def test_planted_the_last_row_decides_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then an appended row can take its whole group along to the other side."""
    assert not any(moved(seed, 20) for seed in range(10))
    original = apply._group_keys

    def last(rows: Sequence[Conversation], near: Sequence[Sequence[int]]) -> dict[str, str]:
        keys = original(rows, near)
        lasts = {keys[group_hash(row)]: group_hash(row) for row in rows if group_hash(row) in keys}
        return {key: lasts[group] for key, group in keys.items()}

    monkeypatch.setattr(apply, "_group_keys", last)
    assert any(moved(seed, 20) for seed in range(10))
