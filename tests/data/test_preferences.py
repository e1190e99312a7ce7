# ruff: noqa: E501 - tables of cases
"""Contract: every shape of preferences is read for what it says, and what is wrong with one is told, never mended.

Mutations tried by hand (each makes tests here fail): the shared beginning of two conversations taken one message too
long; weights of the prompt left to `loss_on`; a string label taken by its truth; hh-rlhf cut at its first `Assistant:`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.beginnings import shared_text
from luthier.data.formats import choose_layout
from luthier.data.sniff import sniff
from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError
from tests.data.preferring import says, user
from tests.data.reading import write

TOOL = {"type": "function", "function": {"name": "lookup"}}
OPENAI = {
    "input": {"messages": [user("Hi")], "tools": [TOOL], "parallel_tool_calls": True},
    "preferred_output": [says("Hello")],
    "non_preferred_output": [says("Go away")],
}
SHAREGPT = {
    "conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello"},
    "rejected": {"from": "gpt", "value": "Go away"},
}
TEXTS = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
TRL = {"prompt": [user("Hi")], "chosen": [says("Hello")], "rejected": [says("Go away")]}
IMPLICIT = {"chosen": [user("Hi"), says("Hello")], "rejected": [user("Hi"), says("Go away")]}
ULTRA = {"prompt": "Hi", "prompt_id": "1", "messages": IMPLICIT["chosen"], **IMPLICIT, "score_chosen": 9.0}
RATED = {"prompt": "Hi", "completion": "Hello", "label": True}
RATED_CHAT = {"prompt": [user("Hi")], "completion": [says("Hello")], "label": False}


def read(tmp_path, rows, *, kind="pairs", on_empty="error", loss_on="assistant", **keys):
    path = write(tmp_path / "a.jsonl", rows)
    return read_conversations(Source(path=str(path), **keys), 0, on_empty=on_empty, loss_on=loss_on, kind=kind)


def problems(tmp_path, rows, **keys):
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, **keys)
    return caught.value.problems


def faults(tmp_path, row, **keys):
    return [f"{problem.code} {problem.message}" for problem in problems(tmp_path, [row], **keys)]


def said(row) -> list[Any]:
    """Of each answer: messages that are context, and those that count; of raw texts prompt and completion."""
    found = []
    for answer in row.answers:
        if answer.kind == "chat":
            parts: tuple[list[str], list[str]] = ([], [])
            for message, weight in zip(answer.messages, answer.message_weights, strict=True):
                parts[message["role"] == "assistant" and weight is None].append(
                    f"{message['role']}: {message['content']}"
                )
            found.append(parts)
        else:
            found.append((answer.prompt, answer.completion))
    return found


HELLO = (["user: Hi"], ["assistant: Hello"])
AWAY = (["user: Hi"], ["assistant: Go away"])
KIND = (["system: be kind", "user: Hi"], ["assistant: Hello"])
UNKIND = (["system: be kind", "user: Hi"], ["assistant: Go away"])


# --- every shape --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "keys", "format_", "answers"),
    [
        (TEXTS, {}, "preference", [("Hi", "Hello"), ("Hi", "Go away")]),
        (TEXTS, {"map": {"user": "prompt"}}, "preference", [HELLO, AWAY]),
        (TEXTS, {"format": "preference", "map": {"user": "prompt"}}, "preference", [HELLO, AWAY]),
        (TEXTS, {"map": {"user": "prompt"}, "system": "be kind"}, "preference", [KIND, UNKIND]),
        ({**TEXTS, "instructions": "be kind"}, {"map": {"user": "prompt", "system": "instructions"}}, "preference", [KIND, UNKIND]),
        ({"q": "Hi", "good": "Hello", "bad": "Go away"}, {"map": {"user": "q", "chosen": "good", "rejected": "bad"}}, "preference", [HELLO, AWAY]),
        ({"q": "Hi", "good": "Hello", "bad": "Go away"}, {"map": {"prompt": "q", "chosen": "good", "rejected": "bad"}}, "preference", [("Hi", "Hello"), ("Hi", "Go away")]),
        (TRL, {}, "preference", [HELLO, AWAY]),
        (IMPLICIT, {}, "preference", [HELLO, AWAY]),
        (ULTRA, {}, "preference", [HELLO, AWAY]),
        ({**TRL, "prompt": "Hi"}, {}, "preference", [HELLO, AWAY]),
        ({**TEXTS, "prompt": [user("Hi")]}, {}, "preference", [HELLO, AWAY]),
        ({**TRL, **IMPLICIT}, {}, "preference", [HELLO, AWAY]),
        ({**TRL, "chosen": says("Hello"), "rejected": says("Go away")}, {}, "preference", [HELLO, AWAY]),
        (OPENAI, {}, "openai_preference", [HELLO, AWAY]),
        (SHAREGPT, {}, "sharegpt_preference", [KIND, UNKIND]),
        ({**SHAREGPT, "conversations": SHAREGPT["conversations"][1:], "system": "be kind"}, {}, "sharegpt_preference", [KIND, UNKIND]),
    ],
)  # fmt: skip
def test_pairs_of_every_shape_say_the_same(tmp_path, row, keys, format_, answers):
    result = read(tmp_path, [row] * 3, **keys)
    assert result.format == format_ and result.rows == 3
    assert [said(conversation) for conversation in result.conversations] == [answers] * 3
    assert {conversation.kind for conversation in result.conversations} == {"pair"}


@pytest.mark.parametrize(
    ("row", "keys", "answer", "label"),
    [
        (RATED, {}, ("Hi", "Hello"), True),
        ({**RATED, "label": False}, {}, ("Hi", "Hello"), False),
        (RATED, {"map": {"user": "prompt"}}, HELLO, True),
        ({"q": "Hi", "a": "Hello", "good": True}, {"map": {"user": "q", "completion": "a", "label": "good"}}, HELLO, True),
        (RATED_CHAT, {}, HELLO, False),
        ({**RATED_CHAT, "prompt": "Hi"}, {}, HELLO, False),
        ({"completion": [user("Hi"), says("Hello")], "label": True}, {}, HELLO, True),
        ({"messages": [user("Hi"), says("Hello")], "kto_tag": True}, {"map": {"completion": "messages", "label": "kto_tag"}}, HELLO, True),
        ({"conversations": SHAREGPT["conversations"] + [SHAREGPT["chosen"]], "kto_tag": True}, {"map": {"completion": "conversations", "label": "kto_tag"}}, KIND, True),
    ],
)  # fmt: skip
def test_rated_answers_of_every_shape_say_the_same(tmp_path, row, keys, answer, label):
    result = read(tmp_path, [row] * 3, kind="rated", **keys)
    assert result.format == "unpaired_preference"
    assert [(said(c), c.label, c.kind) for c in result.conversations] == [([answer], label, "rated")] * 3


def test_pairs_become_two_rated_answers_where_those_are_wanted_and_it_is_said(tmp_path):
    result = read(tmp_path, [TRL, TRL], kind="rated")
    assert [(said(c), c.label) for c in result.conversations] == [([HELLO], True), ([AWAY], False)] * 2
    assert result.rows == 2
    assert result.notes == ("2 pairs read as two rated answers each: chosen is desired, rejected is not",)


def test_tools_and_margin_are_taken_along(tmp_path):
    (row,) = read(tmp_path, [{**OPENAI, "margin": 0.5}]).conversations
    assert [answer.tools for answer in row.answers] == [[TOOL], [TOOL]] and row.margin == 0.5
    (row,) = read(tmp_path, [{**TRL, "tools": json.dumps([TOOL]), "margin": 2}]).conversations
    assert [answer.tools for answer in row.answers] == [[TOOL], [TOOL]] and row.margin == 2.0
    (row,) = read(tmp_path, [{**TRL, "margin": None}]).conversations
    assert row.margin is None


def test_text_cells_of_a_csv_file_are_read_as_label_and_margin(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\nHi,Hello,True\nHi,No,false\n")
    result = read_conversations(Source(path=str(path), map={"user": "prompt"}), 0, kind="rated")
    assert [(said(row), row.label) for row in result.conversations] == [
        ([HELLO], True),
        ([(["user: Hi"], ["assistant: No"])], False),
    ]
    path.write_text("prompt,chosen,rejected,margin\nHi,Hello,Go away,1.5\nHi,Hello,Go away,\n")
    result = read_conversations(Source(path=str(path)), 0, kind="pairs")
    assert [row.margin for row in result.conversations] == [1.5, None]


def test_parquet_columns_of_messages_labels_and_margins_are_read(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for row, kind in (
        (TRL | {"margin": 0.5}, "pairs"),
        (IMPLICIT, "pairs"),
        (OPENAI, "pairs"),
        (SHAREGPT, "pairs"),
        (RATED, "rated"),
        (RATED_CHAT, "rated"),
    ):
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
        result = read_conversations(Source(path=str(path)), 0, kind=kind)
        (want,) = read(tmp_path, [row], kind=kind).conversations
        assert [said(conversation) for conversation in result.conversations] == [said(want)] * 2
        assert [(c.label, c.margin) for c in result.conversations] == [(want.label, want.margin)] * 2


# --- where the answers begin --------------------------------------------------------------------------------------


def test_two_conversations_part_at_their_first_different_answer(tmp_path):
    start = [user("a"), says("b"), user("c")]
    (row,) = read(
        tmp_path, [{"chosen": [*start, says("d"), user("e"), says("f")], "rejected": [*start, says("g")]}]
    ).conversations
    context = ["user: a", "assistant: b", "user: c"]
    assert said(row) == [([*context, "user: e"], ["assistant: d", "assistant: f"]), (context, ["assistant: g"])]


def test_where_one_conversation_goes_on_its_earlier_answer_counts_in_both(tmp_path):
    short = [user("a"), says("b")]
    (row,) = read(tmp_path, [{"chosen": [*short, user("c"), says("d")], "rejected": short}]).conversations
    assert said(row) == [(["user: a", "user: c"], ["assistant: b", "assistant: d"]), (["user: a"], ["assistant: b"])]


def test_an_explicit_prompt_says_where_the_answers_begin(tmp_path):
    same = [says("b"), user("c")]
    (row,) = read(
        tmp_path, [{"prompt": [user("a")], "chosen": [*same, says("d")], "rejected": [*same, says("e")]}]
    ).conversations
    assert [counted for _, counted in said(row)] == [["assistant: b", "assistant: d"], ["assistant: b", "assistant: e"]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: Help", "\n\nHuman: Hi\n\nAssistant:"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("The sky is blue", "The sky is", "The sky"),
        ("The sky is", "The sky is", "The sky"),
        ("Q: a\nA: 12", "Q: a\nA: 13", "Q: a\nA:"),
        ("Q: a\n\nyes", "Q: a\n\nno", "Q: a\n\n"),
        ("blue", "black", ""),
        ("a", "b", ""),
        ("", "b", ""),
    ],
)  # fmt: skip
def test_raw_texts_part_at_a_word_or_at_the_last_assistant(chosen, rejected, prompt):
    assert shared_text(chosen, rejected) == prompt


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=8), st.text("ab \n", max_size=8))
def test_the_shared_text_is_a_beginning_of_both_and_leaves_words(start, one, other):
    chosen, rejected = start + one, start + other
    prompt = shared_text(chosen, rejected)
    assert chosen.startswith(prompt) and rejected.startswith(prompt)
    for text in (chosen, rejected):
        assert text[len(prompt) :].strip() or not text.strip()


def test_raw_texts_without_a_prompt_are_cut(tmp_path):
    (row,) = read(tmp_path, [{"chosen": "The sky is blue.", "rejected": "The sky is black."}]).conversations
    assert said(row) == [("The sky is", " blue."), ("The sky is", " black.")]


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"chosen": [user("a"), says("b")], "rejected": [user("c"), says("d")]}, "D207 chosen and rejected part at message 0 (user), so they answer different prompts; give what they share as `prompt`"),
        ({"chosen": [user("a"), says("b")], "rejected": "d"}, "D207 `chosen` and `rejected` must be both strings or both messages"),
        ({**TRL, "prompt": "Ho", "chosen": IMPLICIT["chosen"], "rejected": IMPLICIT["rejected"]}, "D207 the answers are whole conversations, and `prompt` is not their first user message"),
        ({**TRL, "chosen": IMPLICIT["chosen"]}, "D207 one answer is a whole conversation that begins with `prompt`, the other is not"),
        ({**TEXTS, "prompt": 7}, "D207 prompt: expected string or a list of messages, got 7"),
        ({**TEXTS, "margin": "big"}, "D207 margin: expected a number, got 'big'"),
        ({**TEXTS, "margin": True}, "D207 margin: expected a number, got true"),
        ({**TRL, "chosen": [{"role": "bot", "content": "x"}]}, "D208 chosen[0].role: unknown role 'bot'; roles are: system, developer, user, assistant, tool, function"),
        ({**TRL, "prompt": [{**user("Hi"), "weight": 1}]}, "D207 [0]: a weight above 0 in the prompt: only what follows it can count"),
        ({"chosen": [user("a"), {**says("b"), "weight": 1}, user("c"), says("d")], "rejected": [user("a"), says("b"), user("c"), says("e")]}, "D207 chosen[1]: a weight above 0 in the prompt: only what follows it can count"),
        ({**TRL, "chosen": [{**says("x"), "weight": 0.5}]}, "D207 chosen[0]: a weight of 0.5: in preferences it is 0 or 1"),
        ({**TRL, "chosen": [{**says("xyz"), "spans": [{"start": 0, "end": 1, "weight": 2}]}]}, "D207 chosen[0]: a weight of 2.0: in preferences it is 0 or 1"),
        ({**OPENAI, "input": {**OPENAI["input"], "temperature": 1}}, "D207 input: unknown temperature; it has messages, tools, parallel_tool_calls"),
        ({**OPENAI, "input": {"tools": []}}, "D207 input.messages: expected a list of messages, got null"),
        ({**OPENAI, "preferred_output": [7]}, "D207 preferred_output[0]: expected an object with role and content, got 7"),
        ({**SHAREGPT, "chosen": {"from": "bot", "value": "x"}}, "D208 chosen[0].from: unknown role 'bot'; roles are: human, user, gpt, assistant, model, system, developer, observation, tool, function_response, function_call"),
        ({**SHAREGPT, "system": "twice"}, "D207 system: the row has a system message already"),
    ],
)  # fmt: skip
def test_faults_of_pairs_are_told_with_their_place(tmp_path, row, fault):
    assert faults(tmp_path, row)[0] == fault


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({**RATED, "label": 1}, "D207 label: expected true (desired) or false, got 1"),
        ({**RATED, "label": "yes"}, "D207 label: expected true (desired) or false, got 'yes'"),
        ({**RATED, "label": None}, "D207 label: expected true (desired) or false, got null"),
        ({**RATED, "completion": 7}, "D207 completion: expected a list of messages, got 7"),
    ],
)  # fmt: skip
def test_faults_of_rated_answers_are_told(tmp_path, row, fault):
    assert faults(tmp_path, row, kind="rated", format="unpaired_preference")[0] == fault


def test_a_row_without_its_column_is_told_what_it_has(tmp_path):
    rows = [TRL, TRL, {"prompt": [user("a")], "chosen": [says("b")]}]
    (problem,) = problems(tmp_path, rows)
    assert (problem.code, problem.line, problem.message) == (
        "D209",
        3,
        "no column `rejected`; the row has: prompt, chosen",
    )


@pytest.mark.parametrize(
    ("row", "code", "reason"),
    [
        ({**TEXTS, "rejected": " "}, "D201", "empty"),
        ({**TRL, "chosen": [says("")]}, "D201", "empty"),
        ({**TRL, "chosen": []}, "D201", "empty"),
        ({**TRL, "chosen": [user("x")]}, "D201", "empty"),
        ({**TEXTS, "rejected": "Hello"}, "D219", "equal"),
        ({**TRL, "rejected": TRL["chosen"]}, "D219", "equal"),
        ({"chosen": IMPLICIT["chosen"], "rejected": IMPLICIT["chosen"]}, "D219", "equal"),
        ({"chosen": "The sky is blue", "rejected": "The sky is blue"}, "D219", "equal"),
        ({**OPENAI, "non_preferred_output": OPENAI["preferred_output"]}, "D219", "equal"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pairs", "rated"])
def test_empty_and_equal_answers_are_errors_or_dropped_as_asked(tmp_path, row, code, reason, kind):
    rows = [row, {**row, **TRL} if "prompt" in row and isinstance(row["prompt"], list) else row]
    assert problems(tmp_path, [row] * 2, kind=kind)[0].code == code
    result = read(tmp_path, rows[:1] * 2, on_empty="drop", kind=kind)
    assert [item.reason for item in result.dropped] == [reason] * 2 and result.conversations == []


def test_a_system_message_for_raw_text_is_refused(tmp_path):
    assert faults(tmp_path, TEXTS, system="be kind") == ["D209 `system` is for chat rows; this row is raw text"]


# --- for which objective ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "kind", "message", "hint"),
    [
        ([TEXTS], "tokens", "the rows are pairs (chosen and rejected) (format preference); needed are single answers, as objective sft trains on", "for `objective.name: dpo, orpo, simpo or reward`; to train on one column, `map: {user: prompt, assistant: chosen}`"),
        ([OPENAI], "tokens", "the rows are pairs (chosen and rejected) (format openai_preference)", "`objective.name: dpo"),
        ([SHAREGPT], "tokens", "(format sharegpt_preference)", "`objective.name: dpo"),
        ([RATED], "tokens", "the rows are rated answers (label)", "to train on every completion, good or not, `format: prompt_completion`"),
        ([{"messages": [user("a"), says("b")]}], "pairs", "the rows are single answers (format messages); needed are pairs", "for `objective.name: sft`; objective dpo, orpo, simpo or reward reads preference, openai_preference, sharegpt_preference"),
        ([RATED], "pairs", "the rows are rated answers (label) (format unpaired_preference); needed are pairs", "for `objective.name: kto`"),
        ([{"prompt": "a", "completion": "b"}], "rated", "the rows are single answers", "objective kto reads preference, openai_preference, sharegpt_preference, unpaired_preference"),
    ],
)  # fmt: skip
def test_rows_for_another_objective_are_refused_with_the_ways_out(tmp_path, rows, kind, message, hint):
    (problem,) = problems(tmp_path, rows * 3, kind=kind)
    assert problem.code == "D218"
    assert message in problem.message and hint in problem.hint


def test_an_explicit_format_is_refused_for_another_objective_too(tmp_path):
    (problem,) = problems(tmp_path, [TEXTS], kind="tokens", format="preference")
    assert problem.code == "D218"
    result = read(tmp_path, [RATED], kind="tokens", format="prompt_completion")
    assert result.verdict.endswith("columns not used: label")


def test_messages_beside_a_pair_serve_sft_and_the_pair_serves_dpo(tmp_path):
    assert read(tmp_path, [ULTRA] * 3, kind="tokens").format == "messages"
    result = read(tmp_path, [ULTRA] * 3, kind="pairs")
    assert result.verdict.endswith("`chosen` and `rejected`; columns not used: messages, prompt_id, score_chosen")


@pytest.mark.parametrize(
    ("mapping", "kind", "message"),
    [
        ({"user": "prompt", "chosen": "nope", "rejected": "rejected"}, "pairs", "no column `nope` (format preference)"),
        ({"chosen": "nope", "rejected": "rejected"}, "pairs", "no column `nope` (format preference)"),
        ({"user": "prompt", "better": "chosen"}, "pairs", "`map` has `better`, no field of format `preference`"),
        ({"user": "nope"}, "rated", "no column"),
    ],
)  # fmt: skip
def test_a_map_that_does_not_fit_is_told(tmp_path, mapping, kind, message):
    (problem,) = problems(tmp_path, [TEXTS] * 3, kind=kind, map=mapping)
    assert problem.code == "D209" and message in problem.message


def test_the_verdict_says_that_raw_text_goes_through_no_template(tmp_path):
    assert (
        "raw text without the chat template, as in TRL (`map: {user: prompt}` makes a chat"
        in read(tmp_path, [TEXTS]).verdict
    )
    assert "raw" not in read(tmp_path, [TEXTS], map={"user": "prompt"}).verdict
    assert "raw" not in read(tmp_path, [TRL]).verdict


def test_without_an_objective_the_particular_format_wins():
    assert choose_layout("auto", {}, [ULTRA] * 3, file="x").format == "preference"
    assert choose_layout("auto", {}, [RATED] * 3, file="x").format == "unpaired_preference"
    assert choose_layout("auto", {}, [SHAREGPT] * 3, file="x").format == "sharegpt_preference"


# --- a first look -------------------------------------------------------------------------------------------------


def test_a_first_look_suggests_a_chat_for_plain_texts_but_not_for_transcripts(tmp_path):
    found = sniff(write(tmp_path / "a.jsonl", [TEXTS] * 3))
    assert (found.format, dict(found.map), found.suggested, found.kind) == (
        "preference",
        {"user": "prompt"},
        True,
        "pairs",
    )
    assert "without it they are raw text and go through no chat template" in found.verdict
    assert found.answer_characters["max"] == len("Hello") and found.characters["max"] == len("Hi") + len("Go away")
    found = sniff(write(tmp_path / "a.jsonl", [RATED] * 3))
    assert (found.format, dict(found.map), found.kind) == ("unpaired_preference", {"user": "prompt"}, "rated")
    for row in ({**TEXTS, "prompt": "\n\nHuman: Hi\n\nAssistant:"}, {k: TEXTS[k] for k in ("chosen", "rejected")}):
        found = sniff(write(tmp_path / "a.jsonl", [row] * 3))
        assert (found.format, dict(found.map), found.suggested) == ("preference", {}, False)
        assert "raw text" in found.verdict
    found = sniff(write(tmp_path / "a.jsonl", [OPENAI] * 3))
    assert (found.format, found.suggested, found.bad_rows) == ("openai_preference", False, 0)
