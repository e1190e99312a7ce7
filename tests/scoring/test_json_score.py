"""Contract: JSON values are equal when a strict reader would say so, and F1 counts their fields."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.scoring.json_score import MAX_DEPTH, FieldCounts, count_fields, parse_json, same_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_a_value_equals_itself_in_any_order_and_spacing(value):
    def turned(node):
        if isinstance(node, dict):
            return {key: turned(node[key]) for key in reversed(node)}
        return [turned(item) for item in node] if isinstance(node, list) else node

    other = parse_json(json.dumps(turned(value), indent=3))
    assert same_json(parse_json(json.dumps(value)), other)
    assert count_fields(other, value).f1 == 1.0


@given(VALUES, VALUES)
def test_equality_is_that_of_canonical_text(one, other):
    # Canonical text tells 1, 1.0, "1" and true apart, and 0.0 from -0.0.
    assert same_json(one, other) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@given(VALUES, VALUES)
def test_counts_swap_with_the_sides(one, other):
    counts, back = count_fields(one, other), count_fields(other, one)
    assert (counts.right, counts.extra, counts.missing) == (back.right, back.missing, back.extra)
    assert 0.0 <= counts.f1 <= 1.0
    assert (counts.f1 == 1.0) == same_json(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, "1"), (1, True), (0, False), (None, "null"), ({}, []), ({}, None), ({"0": 1}, [1]), ({"a": {}}, {}),
     ([], [[]]), ({"a": 1}, {"A": 1}), ([1, 2], [2, 1])],
)  # fmt: skip
def test_types_and_places_count(one, other):
    assert not same_json(one, other)


def test_fields_by_hand():
    reference = {"id": 7, "name": "Ann", "tags": ["a", "b"], "extra": {}}  # 5 leaves
    answer = {"id": 7, "name": "Bob", "tags": ["a"], "other": 1}  # 4 leaves: id and tags[0] are right
    assert count_fields(answer, reference) == FieldCounts(right=2, extra=2, missing=3)
    assert count_fields(answer, reference).f1 == pytest.approx(2 * 2 / (4 + 2 + 3))
    assert count_fields(..., reference) == FieldCounts(right=0, extra=0, missing=5)
    assert count_fields([], reference) == FieldCounts(right=0, extra=1, missing=5)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", "[1,]", "NaN", "[Infinity]", "-Infinity", '{"a": 1, "a": 2}',
     '{"a": 1} {"b": 2}', "```json\n{}\n```",
     "// x\n1", "[" * 10**5, "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5, "1" * 10**6, "01"],
)  # fmt: skip
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_depth_is_bounded():
    parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nested deeper than 200"):
        parse_json("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2))


def test_large_values_are_compared_in_seconds():
    wide = "[" + ",".join(["1"] * 50_000) + "]"
    deep = "[" * 150 + ",".join(["[1]"] * 10_000) + "]" * 150
    started = time.process_time()
    for text in (wide, deep):
        value = parse_json(text)
        assert same_json(value, parse_json(text))
    assert time.process_time() - started < 10
