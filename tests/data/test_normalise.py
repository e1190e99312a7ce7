"""F07, F08: rows of each format become conversations; wrong ones are named by path, nothing is coerced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.types import Segment
from tests.data.reading import ANSWER, CHAT, USER, faults, messages, problems, read, write

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "007"}'}}


def row_of(*turns: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(turns), **keys}


def one(tmp_path: Path, row: dict[str, Any], **keys: Any) -> Any:
    return read(write(tmp_path / "a.jsonl", [row]), **keys).conversations[0]


def fault(tmp_path: Path, row: dict[str, Any], **keys: Any) -> str:
    """The only fault of a row that stands after a good one."""
    (found,) = problems(write(tmp_path / "a.jsonl", [row]), **keys)
    return f"{found.code} {found.message}"


BAD = [
    (row_of({"role": "user", "content": 3}, ANSWER), "D207 messages[0].content: expected string, got 3"),
    (row_of({"role": "user", "content": None}, ANSWER), "messages[0].content: expected string, got null (null is for"),
    (row_of({"role": "user", "content": True}, ANSWER), "messages[0].content: expected string, got true"),
    (row_of({"role": "user", "content": {"a": 1}}, ANSWER), "messages[0].content: expected string, got an object of 1"),
    (row_of({"role": "user"}, ANSWER), "messages[0]: no `content`; its keys are: role"),
    (row_of({"content": "x"}, ANSWER), "messages[0]: no `role`; its keys are: content"),
    (
        row_of({"role": "bot", "content": "x"}, ANSWER),
        "D208 messages[0].role: unknown role 'bot'; roles are: system, developer",
    ),
    (row_of({"role": 1, "content": "x"}, ANSWER), "messages[0].role: expected string, got 1"),
    (row_of("hi", ANSWER), "messages[0]: expected an object with role and content, got 'hi'"),
    (row_of(None, ANSWER), "messages[0]: expected an object with role and content, got null"),
    ({"messages": {"role": "user"}}, "messages: expected a list of messages, got an object of 1"),
    (row_of(USER, {"role": "assistant", "content": None}), "messages[1].content: expected string, got null"),
    (row_of(USER, {"role": "assistant", "tool_calls": []}), "messages[1]: no `content`"),
    (row_of(USER, {**ANSWER, "tool_calls": {}}), "messages[1].tool_calls: expected a list of tool calls"),
    (row_of({**USER, "tool_calls": [CALL]}, ANSWER), "messages[0].tool_calls: only assistant messages call tools"),
    (
        row_of(USER, {**ANSWER, "tool_calls": [{**CALL, "type": "x"}]}),
        'messages[1].tool_calls[0].type: expected "function"',
    ),
    (
        row_of(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}),
        "arguments: expected a JSON string or",
    ),
    (
        row_of(USER, {**ANSWER, "tool_calls": [{"function": {"arguments": ""}}]}),
        "function.name: expected the name of a function",
    ),
    (row_of(USER, {**ANSWER, "weight": "1"}), "messages[1].weight: expected a number >= 0, got '1'"),
    (row_of(USER, {**ANSWER, "weight": True}), "messages[1].weight: expected a number >= 0, got true"),
    (row_of(USER, {**ANSWER, "weight": -1}), "messages[1].weight: expected a number >= 0, got -1"),
    (row_of(USER, {**ANSWER, "train": 1}), "messages[1].train: expected true or false, got 1"),
    (row_of(USER, {**ANSWER, "train": True, "weight": 1}), "messages[1]: `weight` and `train` say the same thing"),
    (row_of({**USER, "name": 3}, ANSWER), "messages[0].name: expected string, got 3"),
    (
        row_of(USER, {**ANSWER, "reasoning_content": ["x"]}),
        "messages[1].reasoning_content: expected string, got a list of 1",
    ),
    (
        row_of({"role": "user", "content": [{"type": "image_url"}]}, ANSWER),
        'messages[0].content[0].type: expected "text"',
    ),
    (row_of({"role": "user", "content": ["x"]}, ANSWER), "messages[0].content[0]: expected an object {type: text"),
    (
        row_of({"role": "user", "content": [{"type": "text", "text": 1}]}, ANSWER),
        "messages[0].content[0].text: expected string, got 1",
    ),
    (row_of(USER, ANSWER, tools={"a": 1}), "tools: expected a list of tool definitions"),
    (row_of(USER, ANSWER, tools="no json"), "tools: a string that is no JSON list"),
    (row_of(USER, ANSWER, tools=["f"]), "tools[0]: expected an object, got 'f'"),
]


@pytest.mark.parametrize(("row", "says"), BAD, ids=[says for _, says in BAD])
def test_a_bad_message_is_rejected_with_its_path(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    assert says in fault(tmp_path, row)


def test_all_faults_of_all_rows_are_told_at_once_with_their_columns(tmp_path: Path) -> None:
    bad = row_of({"role": "user", "content": 3}, {"role": "bot", "content": "x", "name": 1})
    found = faults(write(tmp_path / "a.jsonl", [CHAT, bad, CHAT, bad]))
    text = json.dumps(bad)
    columns = [text.index("3}") + 1, text.index('"bot"') + 1, text.index("1}") + 1]
    assert [entry.split()[0] for entry in found] == [f"{line}:{column}" for line in (2, 4) for column in columns]


NOTHING = [
    (row_of(), "messages: no messages"),
    (row_of(USER), "messages: no assistant message"),
    (row_of({"role": "system", "content": "x"}, USER), "messages: no assistant message"),
    (row_of(USER, {"role": "assistant", "content": ""}), "messages[1].content: empty answer"),
    (row_of(USER, {"role": "assistant", "content": " \n\u3000"}), "messages[1].content: empty answer"),
    (row_of(USER, ANSWER, USER, {"role": "assistant", "content": ""}), "messages[3].content: empty answer"),
    (
        row_of(USER, {"role": "assistant", "content": [{"type": "text", "text": " "}]}),
        "messages[1].content: empty answer",
    ),
    (row_of(USER, {"role": "assistant", "content": "", "tool_calls": []}), "messages[1].content: empty answer"),
    (row_of(USER, {**ANSWER, "weight": 0}), "messages: every message has weight 0"),
    (row_of(USER, {**ANSWER, "train": False}), "messages: every message has weight 0"),
    ({"conversations": [{"from": "human", "value": "x"}]}, "conversations: no assistant message"),
    ({"instruction": "x", "output": " "}, "output: empty answer"),
    ({"prompt": "x", "completion": ""}, "completion: empty completion"),
    ({"prompt": [USER, ANSWER], "completion": []}, "completion: no messages"),
    ({"text": "\n"}, "text: empty text"),
    ({"segments": []}, "segments: no segment with text is trained"),
    (
        {"segments": [{"label": True, "text": ""}, {"label": False, "text": "x"}]},
        "segments: no segment with text is trained",
    ),
]


@pytest.mark.parametrize(("row", "says"), NOTHING, ids=[f"{i} {says}" for i, (_, says) in enumerate(NOTHING)])
def test_a_row_with_nothing_to_train_on_is_an_error_or_dropped_and_listed(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    """F08."""
    path = write(tmp_path / "a.jsonl", [row])
    (problem,) = problems(path)
    assert (problem.code, problem.message, problem.line) == ("D201", says, 1)
    assert "on_empty: drop" in (problem.hint or "")
    result = read(path, on_empty="drop")
    assert (result.conversations, result.rows) == ([], 1)
    assert [(str(d.ref), d.reason, d.detail) for d in result.dropped] == [(f"{path}:1", "empty", says)]


def test_dropping_empty_rows_never_drops_wrong_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT, row_of(USER), row_of(USER, {"role": "bot", "content": ""})])
    assert [entry.split()[1] for entry in faults(path, on_empty="drop")] == ["D208"]


def test_an_empty_answer_that_is_not_trained_is_context(tmp_path: Path) -> None:
    row = row_of(USER, {"role": "assistant", "content": "", "weight": 0}, USER, ANSWER)
    assert one(tmp_path, row).message_weights == (None, 0.0, None, None)
    plain = row_of(USER, {"role": "assistant", "content": ""}, USER, ANSWER)
    assert one(tmp_path, plain, loss_on="last_assistant").message_weights == (None,) * 4
    assert one(tmp_path, row_of(USER), loss_on="all").message_weights == (None,)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_an_answer_of_reasoning_alone_is_no_empty_answer(tmp_path: Path, key: str) -> None:
    answer = {"role": "assistant", "content": "", key: "hm"}
    assert messages(read(write(tmp_path / "a.jsonl", [row_of(USER, answer)]))) == [USER, answer]


def test_tool_calls_tools_and_unknown_keys_stay_as_given(tmp_path: Path) -> None:
    """Arguments stay a string or an object, null stays null, a missing key stays missing."""
    as_object = {"function": {"name": "g", "arguments": {"b": [1, 1.0, None], "a": "2024-01-01"}}}
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL, as_object], "refusal": None}
    reply = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "x"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = row_of(
        USER, calls, reply, {"role": "assistant", "content": [{"type": "text", "text": "y"}], "own": 1}, tools=tools
    )
    found = one(tmp_path, row)
    assert json.dumps(list(found.messages)) == json.dumps(row["messages"])
    assert found.tools == tools


def test_tools_in_a_string_and_functions_are_read(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert one(tmp_path, {**CHAT, "tools": json.dumps(tools)}).tools == tools
    assert one(tmp_path, {**CHAT, "functions": [{"name": "f"}]}).tools == tools
    assert one(tmp_path, {**CHAT, "tools": ""}).tools is None
    assert "keep one" in fault(tmp_path, {**CHAT, "tools": tools, "functions": tools})


def test_loss_control_is_taken_out_of_the_messages(tmp_path: Path) -> None:
    row = row_of(
        {**USER, "train": True},
        {**ANSWER, "weight": 0.25},
        {**USER, "weight": None},
        {
            **ANSWER,
            "training": False,
            "spans": [{"start": 3, "end": 5, "weight": 2}, {"start": 0, "end": 3, "weight": 0}],
        },
    )
    found = one(tmp_path, row)
    assert list(found.messages) == [USER, ANSWER, USER, ANSWER]
    assert found.message_weights == (1.0, 0.25, None, 0.0)
    assert found.span_weights == {3: ((0, 3, 0.0), (3, 5, 2.0))}


def test_the_end_of_axolotl_ranges_is_the_last_character(tmp_path: Path) -> None:
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}, {"begin_offset": 2, "end_offset": 4, "train": True}]
    found = one(tmp_path, row_of(USER, {**ANSWER, "train_detail": detail}))
    assert found.span_weights == {1: ((0, 2, 0.0), (2, 5, 1.0))}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"spans": [{"start": 0, "end": 6, "weight": 1}]},
            "messages[1].spans[0]: range ends at 6, but `content` has 5",
        ),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 5, "train": True}]}, "range ends at 6"),
        (
            {"spans": [{"start": 0, "end": 3, "weight": 1}, {"start": 2, "end": 4, "weight": 1}]},
            "0..3 and 2..4 overlap",
        ),
        ({"spans": [{"start": 2, "end": 2, "weight": 1}]}, "range 2..2 is empty"),
        ({"spans": [{"start": -1, "end": 2, "weight": 1}]}, "messages[1].spans[0].start: expected a whole number >= 0"),
        ({"spans": [{"start": 0.5, "end": 2, "weight": 1}]}, "expected a whole number >= 0, got 0.5"),
        ({"spans": [{"start": 0, "end": 2, "weight": "x"}]}, "spans[0].weight: expected a number >= 0"),
        ({"spans": [{"start": 0, "end": 2}]}, "expected an object with start, end, weight"),
        ({"spans": {}}, "messages[1].spans: expected a list of ranges"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": 1}]}, "train: expected true or false, got 1"),
        ({"spans": [], "train_detail": []}, "`spans` and `train_detail` say the same thing"),
    ],
)
def test_wrong_ranges_are_named(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    assert says in fault(tmp_path, row_of(USER, {**ANSWER, **keys}))


def test_ranges_over_a_list_of_parts_are_refused(tmp_path: Path) -> None:
    answer = {
        "role": "assistant",
        "content": [{"type": "text", "text": "y"}],
        "spans": [{"start": 0, "end": 1, "weight": 1}],
    }
    assert "ranges need `content` to be one string" in fault(tmp_path, row_of(USER, answer))


def test_sharegpt_names_are_translated_and_other_keys_kept(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"a": "007"}}
    row = {
        "system": "be kind",
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "three", "weight": 0.5, "mood": "calm"},
            {"role": "user", "content": "and"},
            {"role": "assistant", "content": "so"},
        ],
    }
    found = one(tmp_path, row)
    assert list(found.messages) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "three", "mood": "calm"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "so"},
    ]
    assert found.message_weights == (None, None, None, None, 0.5, None, None)
    assert found.tools == [{"name": "f"}]


def test_the_arguments_of_a_sharegpt_call_stay_a_string_when_they_are_one(tmp_path: Path) -> None:
    value = json.dumps({"name": "f", "arguments": '{"a":  1}'})
    row = {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": value}]}
    assert one(tmp_path, row).messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a":  1}'


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        (
            {"from": "bing", "value": "x"},
            "D208 conversations[1].from: unknown role 'bing'; roles are: human, user, gpt",
        ),
        ({"from": 1, "value": "x"}, "conversations[1].from: expected string, got 1"),
        ({"value": "x"}, "conversations[1]: no `from`; its keys are: value"),
        ({"from": "gpt", "value": None}, "conversations[1].value: expected string, got null"),
        ({"from": "gpt"}, "conversations[1].content: expected string"),
        ({"from": "gpt", "value": "x", "content": "y"}, "not both"),
        ({"from": "function_call", "value": "f(1)"}, "conversations[1].value: a function call is JSON"),
        ({"from": "function_call", "value": '{"name": "f"}'}, "conversations[1].value: a function call is JSON"),
        (3, "conversations[1]: expected an object"),
    ],
)
def test_bad_sharegpt_turns_are_named(tmp_path: Path, turn: Any, says: str) -> None:
    good = {"from": "gpt", "value": "y"}
    row = {"conversations": [{"from": "human", "value": "x"}, turn, good]}
    assert says in fault(tmp_path, row, format="sharegpt")


def test_alpaca_joins_instruction_and_input_and_puts_history_first(tmp_path: Path) -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "s", "history": [["a", "b"]]}
    assert list(one(tmp_path, row).messages) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "Add\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert one(tmp_path, {"instruction": "Add", "input": "", "output": "3"}).messages[0]["content"] == "Add"
    assert one(tmp_path, {"instruction": "Add", "output": "3"}).messages[0]["content"] == "Add"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"instruction": 3}, "instruction: expected string, got 3"),
        ({"output": None}, "output: expected string, got null"),
        ({"input": 1}, "input: expected string, got 1"),
        ({"instruction": " "}, "instruction: empty instruction and no input"),
        ({"history": "x"}, "history: expected a list of [question, answer] pairs"),
        ({"history": [["a"]]}, "history[0]: expected two strings"),
    ],
)
def test_bad_alpaca_rows_are_named(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    assert says in fault(tmp_path, {"instruction": "x", "output": "y", **keys}, format="alpaca")


def test_prompt_and_completion_strings_stay_raw(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "Q: hi ", "completion": " 2024-01-01\n"})
    assert (found.kind, found.prompt, found.completion, found.messages) == (
        "prompt_completion",
        "Q: hi ",
        " 2024-01-01\n",
        (),
    )


def test_prompt_and_completion_messages_are_a_chat_whose_prompt_is_context(tmp_path: Path) -> None:
    row = {
        "prompt": [USER, ANSWER, {**ANSWER, "weight": 1}, USER],
        "completion": [{**ANSWER, "spans": [{"start": 0, "end": 1, "weight": 1}]}],
    }
    found = one(tmp_path, row)
    assert (found.kind, len(found.messages)) == ("chat", 5)
    assert found.message_weights == (0.0, 0.0, 1.0, 0.0, None)
    assert found.span_weights == {4: ((0, 1, 1.0),)}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x", "completion": 3}, "completion: expected string, got 3"),
        ({"prompt": None, "completion": "x"}, "prompt: expected string, got null"),
        ({"prompt": "x", "completion": [ANSWER]}, "must be both strings or both lists"),
        (
            {"prompt": [USER], "completion": [{"role": "assistant", "content": 3}]},
            "completion[0].content: expected string, got 3",
        ),
    ],
)
def test_bad_prompt_completion_rows_are_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    assert says in fault(tmp_path, row, format="prompt_completion")


def test_text_and_segments_are_read(tmp_path: Path) -> None:
    assert one(tmp_path, {"text": " a\n"}).text == " a\n"
    pieces = [{"label": False, "text": "Q "}, {"label": True, "text": "A"}, {"weight": 0.5, "text": " B"}]
    assert one(tmp_path, {"segments": pieces}).segments == (Segment("Q ", 0.0), Segment("A", 1.0), Segment(" B", 0.5))


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        ({"text": "x"}, "segments[1]: a segment has either `label`"),
        ({"text": "x", "label": True, "weight": 1}, "segments[1]: a segment has either `label`"),
        ({"text": "x", "label": "yes"}, "segments[1].label: expected true or false, got 'yes'"),
        ({"text": "x", "weight": -1}, "segments[1].weight: expected a number >= 0"),
        ({"text": 3, "label": True}, "segments[1]: expected an object with label and text"),
    ],
)
def test_bad_segments_are_named(tmp_path: Path, segment: dict[str, Any], says: str) -> None:
    assert says in fault(tmp_path, {"segments": [{"label": True, "text": "x"}, segment]}, format="segments")


def test_a_row_with_two_system_messages_is_refused(tmp_path: Path) -> None:
    row = {
        "system": "a",
        "conversations": [
            {"from": "system", "value": "b"},
            {"from": "human", "value": "x"},
            {"from": "gpt", "value": "y"},
        ],
    }
    assert "system: the row has a system message already" in fault(tmp_path, row)
