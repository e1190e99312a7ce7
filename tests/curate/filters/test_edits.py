"""Edits keep what points into a text right: loss ranges, JSON inside strings."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luthier.curate.filters.edits import Edit, apply, difference, edit_json_text, move_spans
from luthier.curate.filters.parts import edit_row, edit_value
from luthier.data.types import Conversation, RowRef

TEXT = st.text(st.sampled_from("ab1 \u00e9\n\U0001f600"), max_size=30)


@st.composite
def texts_with_edits(draw: st.DrawFn) -> tuple[str, list[Edit]]:
    text = draw(st.text(st.sampled_from("abcdef"), min_size=1, max_size=30))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    pairs = list(zip(places[::2], places[1::2], strict=False))
    return text, [Edit(start, end, draw(st.sampled_from(["", "X", "[EMAIL_1]"]))) for start, end in pairs]


@given(texts_with_edits(), st.data())
def test_a_range_covers_the_same_untouched_characters_before_and_after(given_: Any, data: st.DataObject) -> None:
    """Each kept character has the weight it had; a replacement that of the first character it stands for."""
    text, edits = given_
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=4, unique=True)))
    spans = [(start, end, float(n)) for n, (start, end) in enumerate(itertools.pairwise(cuts), 1)]
    weights = [next((w for start, end, w in spans if start <= i < end), 0.0) for i in range(len(text))]
    expected: list[float] = []
    place = 0
    for edit in edits:
        expected += weights[place : edit.start] + [weights[edit.start]] * len(edit.new)
        place = edit.end
    expected += weights[place:]
    moved = move_spans(spans, edits)
    new = apply(text, edits)
    assert all(0 <= start < end <= len(new) for start, end, _ in moved)
    got = [next((w for start, end, w in moved if start <= i < end), 0.0) for i in range(len(new))]
    assert got == expected


@given(TEXT, TEXT)
def test_the_difference_of_two_texts_leads_from_one_to_the_other(old: str, new: str) -> None:
    edits = difference(old, new)
    assert apply(old, edits) == new
    assert (edits == []) == (old == new)
    assert all(left.end <= right.start for left, right in itertools.pairwise(edits))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=8,
)


def to_x(text: str) -> list[Edit]:
    """Every `1` becomes `X`."""
    return [Edit(i, i + 1, "X") for i, letter in enumerate(text) if letter == "1"]


def plainly(value: Any) -> Any:
    """The same, written again: over the parsed value, and over numbers as they are written."""
    if isinstance(value, str):
        return value.replace("1", "X")
    if isinstance(value, dict):
        return {plainly(key): plainly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plainly(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = json.dumps(value)
        return text.replace("1", "X") if "1" in text else value
    return value


@given(JSON, st.sampled_from([None, 2]), st.booleans())
def test_json_stays_json_and_only_what_is_found_changes(value: Any, indent: int | None, ascii_: bool) -> None:
    text = json.dumps({"a": value}, indent=indent, ensure_ascii=ascii_)
    edited = edit_json_text(text, to_x)
    assert edited is not None
    assert json.loads(edited) == plainly({"a": value})
    assert edit_json_text(text, lambda _: []) == text


def test_what_is_no_json_object_is_left_to_others() -> None:
    assert edit_json_text("mail a@b.com", to_x) is None
    assert edit_json_text('"a string"', to_x) is None


def test_roles_ids_and_names_of_keys_stay_and_arguments_stay_json() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 41, "t": "a1b"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    as_object = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"k1": [1, True]}}}]}
    tool = {"role": "tool", "tool_call_id": "c1", "content": "x1"}
    edited = [edit_value(item, to_x) for item in (message, as_object, tool)]
    assert edited[0]["tool_calls"][0]["id"] == "c1"
    assert json.loads(edited[0]["tool_calls"][0]["function"]["arguments"]) == {"n": "4X", "t": "aXb"}
    assert edited[1]["tool_calls"][0]["function"]["arguments"] == {"kX": ["X", True]}
    assert edited[2] == {"role": "tool", "tool_call_id": "c1", "content": "xX"}
    assert message["tool_calls"] == [call]  # nothing is changed in place


def test_all_kinds_of_rows_are_edited_and_untouched_rows_are_the_same_object() -> None:
    ref = RowRef("a", 1)
    text = Conversation(kind="text", ref=ref, text="a1")
    raw = Conversation(kind="prompt_completion", ref=ref, prompt="p1", completion="c")
    pair = Conversation(kind="pair", ref=ref, answers=(raw, raw))
    assert edit_row(text, to_x).text == "aX"
    assert edit_row(pair, to_x).answers[1].prompt == "pX"
    clean = Conversation(kind="chat", ref=ref, messages=({"role": "user", "content": "no"},), message_weights=(None,))
    assert edit_row(clean, to_x) is clean
    assert edit_row(Conversation(kind="pair", ref=ref, answers=(clean, clean)), to_x).answers[0] is clean
