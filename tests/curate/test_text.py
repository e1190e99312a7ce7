"""What is compared of a row, and which differences do not count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.curate.dedup.run import deduplicate
from luthier.curate.normal import DIFFERENCES, normaliser, numbers_of
from luthier.curate.text import text_of
from luthier.data.types import Conversation, RowRef, Segment
from luthier.recipe.schema import DedupSection
from luthier.runtime.errors import DataError
from tests.curate.support import chat
from tests.support.often import often

DEFAULT = normaliser(DedupSection().ignore)
REF = RowRef("a.jsonl", 7)


def kept(*rows: Conversation, **keys: Any) -> list[int]:
    return deduplicate(rows, DedupSection(**keys)).kept


# -- normal forms


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A  b\n\tc ", "a b c"),
        ("stra\u00dfe", "strasse"),
        ("\uff21\uff42\uff43", "abc"),
        ("o\ufb03ce", "office"),
        ("a\u00a0b\u200bc\ufeff", "a bc"),
        ("e\u0301", "\u00e9"),
        # What NFKC alone would make 103, x2 and 1/2 of.
        ("10\u00b3", "10\u00b3"),
        ("x\u00b2 H\u2082O", "x\u00b2 h\u2082o"),
        ("\u00bd", "\u00bd"),
    ],
)
def test_the_default_normal_form(text: str, normal: str) -> None:
    assert DEFAULT(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello, world!", "Hello world"),
        ("\u201cQuoted,\u201d she said: so?", "Quoted she said so"),
        ("don't, 3.5, .5 and 1,000.", "don't 3.5 .5 and 1,000"),
        ("5! is 120!", "5! is 120!"),
        ("f(x) = a * (b - c) / 2;", "f(x) = a * (b - c) / 2"),
        ("\u4f60\u597d\u3002", "\u4f60\u597d"),
    ],
)
def test_punctuation_goes_where_it_means_nothing(text: str, normal: str) -> None:
    assert " ".join(normaliser(["punctuation"])(text).split()) == normal


def test_every_difference_can_be_made_to_count() -> None:
    pairs = {"case": ("Ship", "ship"), "whitespace": ("a b", "a\nb"), "unicode": ("\uff41", "a"),
             "punctuation": ("Yes.", "Yes")}  # fmt: skip
    assert set(pairs) == set(DIFFERENCES)
    for name, (one, other) in pairs.items():
        rows = chat("what is it", one, 1), chat("what is it", other, 2)
        assert kept(*rows, fuzzy=None, ignore=[name]) == [0]
        assert kept(*rows, fuzzy=None, ignore=[some for some in DIFFERENCES if some != name]) == [0, 1]


@settings(max_examples=often(40))
@given(text=st.text("a1\u0663. -!,\n\u00b2B", max_size=30), ignore=st.lists(st.sampled_from(DIFFERENCES), unique=True))
def test_no_digit_is_lost_or_made(text: str, ignore: list[str]) -> None:
    assert [c for c in normaliser(ignore)(text) if c.isdecimal()] == [c for c in text if c.isdecimal()]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("he has 3 of 1,000 and 2.5", {"3": 1, "1000": 1, "2.5": 1}),
        ("x = -1 and 10-20", {"-1": 1, "10": 1, "20": 1}),
        ("(5)-3, a-3", {"5": 1, "3": 2}),
        ("10\u00b3 and x\u00b2 twice x\u00b2", {"10": 1, "\u00b3": 1, "\u00b2": 2}),
        ("no number at all\u1d43", {}),
        ("1,2,3", {"1,2,3": 1}),
    ],
)
def test_numbers_of_a_text(text: str, numbers: dict[str, int]) -> None:
    assert numbers_of([text]) == numbers


def test_other_numbers_are_other_rows_and_a_cut_row_is_not() -> None:
    whole = "the baker sells 12 cakes in the morning and 30 in the evening, how many cakes is that in one day"
    answer = "there are 12 cakes in the morning and 30 in the evening so it is 42"
    rows = [chat(whole, answer, 1), chat(whole.replace("12", "17"), answer.replace("12", "17"), 2),
            chat(whole, answer[:-9], 3)]  # fmt: skip
    assert kept(*rows, fuzzy=0.7) == [0, 1]
    assert kept(*rows, fuzzy=0.7, numbers="any") == [0]
    assert kept(*rows, fuzzy=0.7, keep="longest") == [0, 1]


# -- parts and context


def test_a_short_answer_counts_as_much_as_a_long_question() -> None:
    page = "is this mail friendly: " + "dear all, thank you for the lovely evening at your place " * 5
    assert kept(chat(page, "yes", 1), chat(page, "no", 2)) == [0, 1]
    assert kept(chat(page, "yes", 1), chat(page + "!", "Yes", 2)) == [0]
    assert kept(chat(page, "yes", 1), chat(page, "no", 2), on="prompt") == [0]
    assert kept(chat("a question of its own", page, 1), chat("something else entirely", page, 2), on="answer") == [0]


def test_both_directions_of_a_translation_stay() -> None:
    one, other = "the ship left the harbour in the morning", "das schiff verliess am morgen den hafen"
    assert kept(chat(one, other, 1), chat(other, one, 2), fuzzy=0.5) == [0, 1]


def test_context_must_be_equal_and_adds_no_likeness() -> None:
    rules = "you are a helpful assistant of a large company and answer in one sentence. " * 10
    assert kept(chat("where is my parcel", "on its way", 1, system=rules),
                chat("how do I pay", "by card", 2, system=rules), fuzzy=0.3) == [0, 1]  # fmt: skip
    same = "where does the river go to", "to the sea"
    assert kept(chat(*same, 1, system="in English"), chat(*same, 2, system="in German")) == [0, 1]
    assert kept(chat(*same, 1, system="In  English"), chat(*same, 2, system="in English")) == [0]
    tools = [{"type": "function", "function": {"name": "map"}}]
    assert kept(chat(*same, 1, tools=tools), chat(*same, 2)) == [0, 1]


def test_turns_and_calls_and_thoughts_are_text() -> None:
    def row(line: int, *messages: dict[str, Any]) -> Conversation:
        return Conversation(
            kind="chat", ref=RowRef("a", line), messages=messages, message_weights=(None,) * len(messages)
        )

    user, ask = {"role": "user", "content": "go"}, {"role": "user", "content": [{"type": "text", "text": "go"}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    other = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]}
    thought = {"role": "assistant", "content": "done", "reasoning_content": "hm"}
    assert kept(row(1, user, call), row(2, ask, call)) == [0]
    assert kept(row(1, user, call), row(2, user, other), fuzzy=None) == [0, 1]
    assert text_of(row(1, user, thought)).parts == (("go",), ("hm\ndone",))
    first, second = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
    assert kept(row(1, user, first, user, second), row(2, user, user, first, second), fuzzy=None) == [0, 1]
    assert text_of(row(1, user, first, user, second), "prompt").parts == (("go", "go"), ("a",))
    assert text_of(row(1, user, first, user, second), "answer").parts == (("b",),)


def test_raw_rows() -> None:
    def raw(prompt: str, completion: str) -> Conversation:
        return Conversation(kind="prompt_completion", ref=REF, prompt=prompt, completion=completion)

    assert text_of(raw("a", "b")).parts == (("a",), ("b",))
    assert text_of(raw("a", "b"), "answer").parts == (("b",),)
    assert kept(raw("what", "x"), raw("What", "x")) == [0]
    pieces = Conversation(kind="segments", ref=REF, segments=(Segment("q", 0.0), Segment("a", 1.0), Segment("z", 0.0)))
    assert text_of(pieces).parts == (("q", "z"), ("a",))
    plain = Conversation(kind="text", ref=REF, text="it was a dark night")
    assert kept(plain, plain) == [0]
    assert kept(raw("what", "x"), chat("what", "x", 2)) == [0, 1]  # one goes through a template, the other does not


def test_plain_text_has_no_prompt() -> None:
    rows = [chat("a", "b"), Conversation(kind="text", ref=REF, text="x"), Conversation(kind="text", ref=REF, text="y")]
    with pytest.raises(DataError) as caught:
        deduplicate(rows, DedupSection(on="prompt"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.file, problem.line) == (
        "D230",
        "a.jsonl",
        7,
    ) and "2 rows are plain text" in problem.message


def pair(question: str, chosen: str, rejected: str) -> Conversation:
    return Conversation(kind="pair", ref=REF, answers=(chat(question, chosen), chat(question, rejected)))


def test_a_pair_is_its_prompt_and_both_answers_in_order() -> None:
    question, good, bad = "where does the river go to", "to the sea, past the mill", "I do not know that at all"
    assert text_of(pair(question, good, bad)).parts == ((question,), (), (good,), (bad,))
    assert text_of(pair(question, good, bad), "answer").parts == ((good,), (bad,))
    assert kept(pair(question, good, bad), pair(question.upper(), good, bad)) == [0]
    assert kept(pair(question, good, bad), pair(question, bad, good), fuzzy=0.3) == [0, 1]  # a contradiction, no copy
    assert kept(pair(question, good, bad), pair(question, good, "ask somebody else"), fuzzy=0.3) == [0, 1]


def test_a_rated_answer_with_the_other_label_is_no_duplicate() -> None:
    def rated(label: bool) -> Conversation:
        return Conversation(kind="rated", ref=REF, answers=(chat("where to", "to the sea"),), label=label)

    assert kept(rated(True), rated(True)) == [0]
    assert kept(rated(True), rated(False)) == [0, 1]
    assert kept(rated(True), rated(False), on="answer") == [0, 1]
