"""Hypothesis: any row of each format, with texts that other readers trip over."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

ODD = ["007", "1e5", "null", "true", "2024-01-01", "NaN", "\u2028", "a\u2028b\u2029c", "\x85", "a\r\nb", "'\"",
       "ü\u0301", "👩\u200d🚀", "</script>", "{{ x }}", " lead", "trail ", "\ufeff", "<|im_end|>", "\\n",
       "a\tb", "=1+1"]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(ODD)
"""Any text a file can hold."""
LINES = TEXTS.filter(lambda text: bool(text.strip()))
"""Any text that says something."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
_FUNCTIONS = st.fixed_dictionaries({"name": NAMES, "arguments": st.dictionaries(TEXTS, JSON, max_size=2) | TEXTS})
CALLS = st.lists(
    st.fixed_dictionaries({"id": NAMES, "type": st.just("function"), "function": _FUNCTIONS}), min_size=1, max_size=2
)
TOOLS = st.lists(
    st.fixed_dictionaries({
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": NAMES, "parameters": st.dictionaries(TEXTS, JSON, max_size=3)}),
    }),
    min_size=1, max_size=2,
)  # fmt: skip
WEIGHTS = st.sampled_from([0, 1, 0.5, 2])


def _message(role: str, content: Any, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": content}, optional=optional)


ASKED = _message("user", TEXTS, name=NAMES)
SAID = _message("assistant", LINES, reasoning_content=TEXTS, weight=WEIGHTS)
PARTS = _message("user", st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2))
CALLED = _message("assistant", st.none() | TEXTS).flatmap(
    lambda message: CALLS.map(lambda calls: {**message, "tool_calls": calls})
)
RETURNED = _message("tool", TEXTS, tool_call_id=NAMES)


@st.composite
def messages(draw: Any) -> dict[str, Any]:
    """`messages`: two user turns, an answer first, tool calls, weights, spans, parts, tools."""
    turns = draw(st.lists(st.one_of(ASKED, SAID, PARTS, CALLED, RETURNED), max_size=4))
    if draw(st.booleans()):
        turns.insert(0, {"role": draw(st.sampled_from(["system", "developer"])), "content": draw(TEXTS)})
    last = {"role": "assistant", "content": draw(LINES)}
    if draw(st.booleans()):
        last["spans"] = [{"start": 0, "end": 1, "weight": draw(st.sampled_from([0, 0.5, 1]))}]
    row: dict[str, Any] = {"messages": [*turns, last]}
    if draw(st.booleans()):
        row["tools"] = draw(TOOLS)
    return row


@st.composite
def sharegpt(draw: Any) -> dict[str, Any]:
    """`conversations` of `{from, value}`."""
    who = st.sampled_from(["human", "system", "observation"])
    turns = draw(st.lists(st.builds(lambda who, text: {"from": who, "value": text}, who, TEXTS), max_size=3))
    turns = [turn for place, turn in enumerate(turns) if turn["from"] != "system" or place == 0]
    row: dict[str, Any] = {"conversations": [*turns, {"from": "gpt", "value": draw(LINES)}]}
    if draw(st.booleans()):
        row["tools"] = draw(TOOLS)
    return row


@st.composite
def alpaca(draw: Any) -> dict[str, Any]:
    """`instruction`, `input`, `output`, `history`."""
    row: dict[str, Any] = {"instruction": draw(LINES), "output": draw(LINES)}
    if draw(st.booleans()):
        row["input"] = draw(TEXTS)
    if draw(st.booleans()):
        row["history"] = draw(st.lists(st.lists(LINES, min_size=2, max_size=2), max_size=2))
    return row


PROMPT_COMPLETION = st.fixed_dictionaries({"prompt": TEXTS, "completion": LINES})
TEXT = st.fixed_dictionaries({"text": LINES})
_PIECE = st.fixed_dictionaries({"text": TEXTS, "label": st.booleans()}) | st.fixed_dictionaries(
    {"text": TEXTS, "weight": WEIGHTS}
)
SEGMENTS = st.builds(
    lambda pieces, last: {"segments": [*pieces, {"text": last, "label": True}]}, st.lists(_PIECE, max_size=3), LINES
)


@st.composite
def answer_pairs(draw: Any, raw: bool | None = None) -> dict[str, Any]:
    """`prompt`, `chosen`, `rejected`: texts, or messages."""
    chosen, rejected = draw(LINES), draw(LINES)
    if chosen == rejected:
        rejected += "!"
    if draw(st.booleans()) if raw is None else raw:
        return {"prompt": draw(TEXTS), "chosen": chosen, "rejected": rejected}
    before = draw(st.lists(ASKED | _message("assistant", LINES) | CALLED | RETURNED, max_size=2))
    row: dict[str, Any] = {
        "prompt": [*before, {"role": "user", "content": draw(TEXTS)}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    if draw(st.booleans()):
        row["tools"] = draw(TOOLS)
    return row


def rows_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Rows of a format."""
    return {
        "messages": messages(), "sharegpt": sharegpt(), "alpaca": alpaca(), "prompt_completion": PROMPT_COMPLETION,
        "text": TEXT, "segments": SEGMENTS, "preference": answer_pairs(),
    }[name]  # fmt: skip
