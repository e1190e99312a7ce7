"""Contract: calls in a known format are told as calls, all else stays text, however the text is cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.serve.http.tools import ToolReader, tool_format

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'


def read(text, kind="hermes", cuts=()):
    reader, shown, calls = ToolReader(kind), "", []
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        more, found = reader.push(text[start:end])
        shown, calls = shown + more, calls + found
    more, found = reader.finish()
    return shown + more, [(call.name, json.loads(call.arguments)) for call in [*calls, *found]]


WEATHER = ("weather", {"city": "Zürich", "days": 2})
CASES = [
    ("just text", "just text", []),
    (CALL, "", [WEATHER]),
    (f"Let me look.\n{CALL}", "Let me look.", [WEATHER]),
    (f"{CALL}\n{CALL}", "", [WEATHER, WEATHER]),
    (CALL[: -len("</tool_call>")], "", [WEATHER]),
    ("<tool_call>not json</tool_call> after", "<tool_call>not json</tool_call> after", []),
    ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ("a < b and <tool_ca", "a < b and <tool_ca", []),
    ("ends in space \n", "ends in space \n", []),
    ('<tool_call>{"name": "f"', '<tool_call>{"name": "f"', []),
    ('<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
]


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_hermes_calls_wherever_the_text_is_cut(case, cuts):
    text, shown, calls = case
    assert read(text, cuts=cuts) == (shown, calls)


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_llama3_calls(cuts):
    assert read(' {"name": "f", "parameters": {"a": 1}}', "llama3", cuts) == ("", [("f", {"a": 1})])
    assert read('{"name": "f", "parameters": 3}', "llama3", cuts) == ('{"name": "f", "parameters": 3}', [])
    assert read("Plain {}", "llama3", cuts) == ("Plain {}", [])


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_an_unknown_format_is_left_as_text(cuts):
    assert read(CALL, "unknown", cuts) == (CALL, [])


@pytest.mark.parametrize(
    ("template", "control", "expected"),
    [
        ("... <tool_call></tool_call> ...", frozenset(), "hermes"),
        ("... <tool_call></tool_call> ...", frozenset({"<tool_call>"}), "unknown"),
        ("<tool_call><function=example></tool_call>", frozenset(), "unknown"),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', frozenset(), "llama3"),
        ("[TOOL_CALLS]", frozenset(), "unknown"),
    ],
)
def test_the_format_is_read_from_the_template(template, control, expected):
    assert tool_format(template, control) == expected
