"""Contract: tickets are reproducible, each answer follows from its text, and no split knows another's words."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import fields

import pytest

from luthier.quickstart.phrases import POOLS, Pool
from luthier.quickstart.tickets import CARD, FIELDS, ISSUES, SYSTEM, make_tickets, write_tickets

SPLITS = tuple(POOLS)
ENTITIES = ("first_names", "last_names", "brands", "goods", "order_letters", "phone_prefixes", "cities")
ORDER = re.compile(r"\b\d{4}-?[A-Z]{2}\b")


def answers(rows):
    return [(row["messages"][1]["content"], json.loads(row["messages"][2]["content"])) for row in rows]


def expanded(fragment: str) -> list[str]:
    """A fragment with every choice of its alternatives."""
    parts = re.split(r"\[([^\[\]/]+(?:/[^\[\]/]+)+)\]", fragment)
    choices = [part.split("/") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def fragments(pool: Pool) -> set[str]:
    """Every sentence fragment of a pool, expanded, in lower case, slots included."""
    found: list[str] = []
    for slot in fields(Pool):
        value = getattr(pool, slot.name)
        if slot.name not in ENTITIES and slot.name != "invented":
            found += itertools.chain(*value.values()) if isinstance(value, dict) else value
    return {text.lower() for fragment in found for text in expanded(fragment)}


def owners(table, text: str) -> list[str]:
    """Labels whose fragments stand in the text."""
    return [label for label, items in table.items() if any(text_ in text for item in items for text_ in expanded(item))]


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", "ce2f689e9d6e257c"), ("test", "1b5b3eca3f08afb5")],
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
    introductions = [item for form in (*pool.introductions, *pool.signatures) for item in expanded(form)]
    for text, answer in answers(make_tickets(300, seed=9, split=split)):
        assert tuple(answer) == FIELDS
        assert "{" not in text
        assert answer["product"] in text
        assert ORDER.findall(text) == ([] if answer["order"] is None else [answer["order"]])
        assert owners(pool.predicates, text) == [answer["issue"]]
        assert any(
            form.format(name=answer["name"], city=city) in text for form in introductions for city in pool.cities
        )


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_and_every_missing_field_occurs_often(split):
    found = [answer for _, answer in answers(make_tickets(200, seed=1, split=split))]
    for issue in ISSUES:
        assert sum(answer["issue"] == issue for answer in found) == 40
    assert 30 <= sum(answer["order"] is None for answer in found) <= 70


def test_most_people_and_brands_of_the_training_rows_occur_once_or_twice():
    """Names that come back often would be memorised instead of copied."""
    found = [answer["product"].split()[0] for _, answer in answers(make_tickets(300, seed=11, split="train"))]
    assert sum(found.count(brand) <= 2 for brand in found) > 100
    names = [answer["name"] for _, answer in answers(make_tickets(300, seed=11, split="train"))]
    assert len(set(names)) > 0.97 * len(names)


@pytest.mark.parametrize("split", SPLITS)
def test_no_label_is_given_away_by_a_fragment_of_another(split):
    pool = POOLS[split]
    texts = {label: [text for item in items for text in expanded(item)] for label, items in pool.predicates.items()}
    for (one, ones), (other, others) in itertools.permutations(texts.items(), 2):
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
