"""Contract: tickets are reproducible, each answer follows from its text, and no split knows another's words."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import fields

import pytest

from luthier.quickstart.phrases import POOLS, Pool
from luthier.quickstart.tickets import CARD, FIELDS, ISSUES, PRIORITIES, SYSTEM, make_tickets, write_tickets

SPLITS = tuple(POOLS)
ENTITIES = ("first_names", "last_names", "brands", "goods", "order_prefixes", "phone_prefixes", "cities")
ORDER = re.compile(r"\b(?:[A-Z]{2}-?\d{4}|\d{4}-[A-Z]{2})\b")


def answers(rows):
    return [(row["messages"][1]["content"], json.loads(row["messages"][2]["content"])) for row in rows]


def fragments(pool: Pool) -> set[str]:
    """Every sentence fragment of a pool, in lower case, slots included."""
    found: list[str] = []
    for slot in fields(Pool):
        value = getattr(pool, slot.name)
        if slot.name not in ENTITIES:
            found += itertools.chain(*value.values()) if isinstance(value, dict) else value
    return {fragment.lower() for fragment in found}


def owner(fragment_lists, text: str) -> list[str]:
    """Labels whose fragments stand in the text."""
    return [label for label, items in fragment_lists.items() if any(item in text for item in items)]


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", "87c968031d4e1d8f"), ("test", "ae8dba6d69a7b08a")],
)
def test_the_rows_of_a_seed_never_change(split, expected):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_tickets(50, seed=7, split=split))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


def test_the_first_rows_of_a_longer_list_are_the_shorter_list():
    assert make_tickets(30, seed=3, split="train")[:10] == make_tickets(10, seed=3, split="train")


def test_another_seed_gives_other_rows():
    texts = [{text for text, _ in answers(make_tickets(50, seed=seed, split="train"))} for seed in (1, 2)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("pair", list(itertools.combinations(SPLITS, 2)), ids="-".join)
def test_two_splits_share_no_entity_and_no_fragment(pair):
    one, other = (POOLS[name] for name in pair)
    for slot in ENTITIES:
        assert not set(getattr(one, slot)) & set(getattr(other, slot)), slot
    assert not fragments(one) & fragments(other)
    # Not one word of a name, product or place of one split stands in the other's entities either.
    words = [
        {word for slot in ENTITIES for item in getattr(pool, slot) for word in item.split()} for pool in (one, other)
    ]
    assert not words[0] & words[1]


def test_two_splits_share_no_value_in_the_rows_themselves():
    values = {}
    for split in SPLITS:
        found = [answer for _, answer in answers(make_tickets(600, seed=5, split=split))]
        values[split] = {key: {answer[key] for answer in found} - {None} for key in ("name", "product", "order")}
    for one, other in itertools.combinations(SPLITS, 2):
        for key in ("name", "product", "order"):
            assert not values[one][key] & values[other][key]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_follows_from_its_text(split):
    pool = POOLS[split]
    predicates = {issue: pool.predicates[issue] for issue in ISSUES}
    for text, answer in answers(make_tickets(400, seed=9, split=split)):
        assert tuple(answer) == FIELDS
        assert "{" not in text
        assert answer["product"] in text
        assert ORDER.findall(text) == ([] if answer["order"] is None else [answer["order"]])
        assert owner(predicates, text) == [answer["issue"]]
        told = owner(pool.urgency, text)
        assert told == [answer["priority"]] or (told == [] and answer["priority"] == "normal")
        full_names = {
            f"{first} {last}" for first in pool.first_names for last in pool.last_names if f"{first} {last}" in text
        }
        assert full_names == ({answer["name"]} if answer["name"] else set())


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_and_every_missing_field_occurs_often(split):
    found = [answer for _, answer in answers(make_tickets(200, seed=1, split=split))]
    for issue in ISSUES:
        assert sum(answer["issue"] == issue for answer in found) == 40
    for priority in PRIORITIES:
        assert sum(answer["priority"] == priority for answer in found) >= 45
    assert 20 <= sum(answer["order"] is None for answer in found) <= 60
    assert 10 <= sum(answer["name"] is None for answer in found) <= 45


@pytest.mark.parametrize("split", SPLITS)
def test_no_label_is_given_away_by_a_fragment_of_another(split):
    pool = POOLS[split]
    for table in (pool.predicates, pool.urgency):
        for (one, ones), (other, others) in itertools.permutations(table.items(), 2):
            assert not [(a, b) for a in ones for b in others if a in b], (one, other)


def test_all_texts_are_different_and_the_system_prompt_is_one():
    rows = make_tickets(1000, seed=2, split="train")
    assert len({row["messages"][1]["content"] for row in rows}) == 1000
    assert {row["messages"][0]["content"] for row in rows} == {SYSTEM}


def test_rows_are_written_as_json_lines(tmp_path):
    path = write_tickets(tmp_path / "rows.jsonl", 5, seed=4, split="test")
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == make_tickets(5, seed=4, split="test")


def test_the_card_calls_the_data_synthetic():
    assert "synthetic" in CARD.splitlines()[0]
