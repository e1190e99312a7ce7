"""What each filter takes and what it leaves."""

from __future__ import annotations

import time
from typing import Any

import pytest

from luthier.curate.filters.base import Change, Drop
from luthier.curate.filters.boilerplate import Boilerplate, ending_of
from luthier.curate.filters.echo import Echo
from luthier.curate.filters.encoding import Encoding
from luthier.curate.filters.endings import cut_off
from luthier.curate.filters.language import Language
from luthier.curate.filters.length import Length, counter
from luthier.curate.filters.refusals import Refusals, refusal
from luthier.curate.filters.repetition import Repetition, duplicate_ngrams, duplicate_units, longest_loop, top_ngram
from luthier.curate.filters.run import Tools, build
from luthier.data.types import Conversation, RowRef
from luthier.recipe.filter_schema import (
    BoilerplateFilter,
    FilterSection,
    LanguageFilter,
    LengthFilter,
    RepetitionFilter,
)
from luthier.runtime.errors import RecipeError
from tests.curate.support import THEMES, chat


def pair(chosen: str, rejected: str, prompt: str = "why?") -> Conversation:
    answers = tuple(chat(prompt, text) for text in (chosen, rejected))
    return Conversation(kind="pair", ref=RowRef("a", 1), answers=answers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He said that the", "ends with `the`"),
        ("We buy apples, pears,", "ends with `,`"),
        ("The sum is 3 +", "ends with `+`"),
        ("These are the steps:", "ends with `:`"),
        ("It was sold last May (to a friend, for", "ends with `for`"),
        ("It is warm. The sun shines on the old harbour town", "without an end mark"),
        ('{"name": "Ann", "age"', "JSON that ends too early"),
        ("Here:\n```python\nx = 1\n", "opens a code block"),
        ("\u4ed6\u8d70\u4e86\u3002 he went to the market and bought,", "ends with `,`"),
    ],
)
def test_cut_endings(text: str, words: str) -> None:
    found = cut_off(text)
    assert found is not None and words in found[0]
    assert 0 <= found[1] < found[2] <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "42", "It weighs 12 kg", "Berlin", "- apples\n- pears and bread", "x = 3 * (4 + 5)", "It is 5:30 pm",
        '{"name": "Ann"}', "[1, 2]", "```\nx = 1\n```", "See https://example.org/a/the", 'She said "wait."',
        "Best regards,\nAnn", "First do this. Then that!", "He had 3. The number of them is then 3+4 = 7 apples",
        "some words without a mark anywhere in this text", "| a | the |", "# The", "\u7b54\u6848\u662f\u4e09\u3002",
        "All good \U0001f600", "for i in range(3): print(i,", "We walked\nWe slept. The way back took 4 more hours",
    ],
)  # fmt: skip
def test_whole_endings(text: str) -> None:
    assert cut_off(text) is None


def test_refusals_at_the_start_only_and_own_patterns() -> None:
    for text in (
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I cannot do it",
        "> I won't assist",
    ):
        assert refusal(text), text
    for text in ("I can't believe it!", "Here it is. I can't help with more.", "Sorry for the delay, here it is."):
        assert not refusal(text), text
    own = Refusals.of([r"nope\b"], "either")
    assert isinstance(own.judge(chat("q", "Nope, never")), Drop) and own.judge(chat("q", "No pears")) is None


def test_context_turns_and_rejected_answers_are_judged_as_asked() -> None:
    refuse, fine = "I'm sorry, but I can't help with that.", "The harbour is old."
    messages = [{"role": role, "content": text} for role, text in
                (("user", "a"), ("assistant", refuse), ("user", "b"), ("assistant", fine))]  # fmt: skip
    row = Conversation(kind="chat", ref=RowRef("a", 1), messages=messages, message_weights=(None, 0.0, None, None))
    assert Refusals.of([], "either").judge(row) is None
    assert Refusals.of([], "either").judge(pair(fine, refuse)) is not None
    assert Refusals.of([], "chosen").judge(pair(fine, refuse)) is None
    rated = Conversation(kind="rated", ref=RowRef("a", 1), answers=(chat("q", refuse),), label=False)
    assert Refusals.of([], "either").judge(rated) is not None and Refusals.of([], "chosen").judge(rated) is None


def test_echo_needs_a_question_of_some_length() -> None:
    echo = Echo(10, "either")
    assert isinstance(echo.judge(chat("Tell me about  it", "TELL me about it\n")), Drop)
    assert echo.judge(chat("Hello", "hello")) is None and echo.judge(chat("Tell me about it", "About it")) is None


def test_lengths_in_each_unit() -> None:
    row = chat("one two three", "four")
    words = Length(LengthFilter(unit="words", max_prompt=2), counter("words", None), "either").judge(row)
    assert isinstance(words, Drop) and words.detail == "prompt: 3 words; max_prompt is 2"
    assert Length(LengthFilter(unit="characters", min_answer=4), len, "either").judge(row) is None
    short = Length(LengthFilter(unit="characters", min_answer=5), len, "either").judge(row)
    assert isinstance(short, Drop) and short.facts == {"length": 4}
    total = Length(LengthFilter(unit="characters", max_total=16), len, "either").judge(row)
    assert isinstance(total, Drop) and "prompt and answer: 17" in total.detail
    with pytest.raises(RecipeError, match="no tokenizer"):
        counter("tokens", None)


def test_measures_of_repetition_by_hand() -> None:
    assert duplicate_units(["ab", "c", "ab", "ab"]) == (0.5, 4 / 7, "ab")
    assert top_ngram("a bb a bb cc".split(), 2) == (6 / 8, "a bb")
    assert top_ngram("a b c d".split(), 2) == (0.0, "")
    # words 0-4 stand again as words 5-9; no character counts twice
    assert duplicate_ngrams("a b c d e a b c d e".split(), 5) == (0.5, "a b c d e")
    assert duplicate_ngrams("a a a a a a a".split(), 5)[0] == pytest.approx(6 / 7)
    assert longest_loop("x no no no y".split()) == (3, "no")
    assert longest_loop("a b a b a b a".split()) == (3, "a b")


def test_repetition_spares_short_answers_code_and_tables() -> None:
    judge = Repetition(RepetitionFilter(), "either").judge
    sentence = "the ship left the harbour before the storm and came back with all its cargo\n"
    assert isinstance(judge(chat("q", sentence * 6)), Drop)
    assert judge(chat("q", sentence * 2)) is None  # 30 words
    assert isinstance(judge(chat("q", "well " + "no " * 9)), Drop)  # a loop counts in short answers, too
    told = " ".join(THEMES)
    assert judge(chat("q", f"{told}\n```\n" + "x = 1\n" * 60 + "```")) is None
    assert judge(chat("q", f"{told}\n" + "| a | b |\n" * 60)) is None


def test_language_keeps_what_is_too_short_to_tell() -> None:
    german = "Der Fluss flie\u00dft durch das Tal und an der alten M\u00fchle vorbei, bis er das Meer erreicht."
    english = Language(LanguageFilter(languages=["en"]), "either")
    dropped = english.judge(chat("Tell me about the river, please, and where it ends in this old valley.", german))
    assert isinstance(dropped, Drop) and dropped.facts["language"] == "de"
    assert english.judge(chat("q", "Danke sehr")) is None
    assert english.report() == {"texts": 4, "too_short": 2, "languages": {"de": 1}}
    assert Language(LanguageFilter(languages=["en", "de"]), "either").judge(chat("q", german)) is None
    assert Language(LanguageFilter(languages=["en"], on="prompt"), "either").judge(chat("q", german)) is None
    assert english.judge(chat("q", f"```\n{german}\n```")) is None
    with pytest.raises(RecipeError, match="does not know xq"):
        Language(LanguageFilter(languages=["en", "xq"]), "either")


def test_encoding_mends_drops_and_leaves_typography_alone() -> None:
    fix = Encoding("fix")
    mended = fix.judge(chat("q", "The caf\u00c3\u00a9 is\x07 open"))
    assert isinstance(mended, Change) and mended.row.messages[1]["content"] == "The caf\u00e9 is open"
    assert isinstance(fix.judge(chat("q", "caf\ufffd")), Drop)
    assert isinstance(Encoding("drop").judge(chat("q", "The caf\u00c3\u00a9")), Drop)
    for text in (
        "\u201cna\u00efve caf\u00e9\u201d \u2026 \ufb01ne \uff21 e\u0301",
        "a\r\nb\tc",
        "&lt;b&gt;",
        "\U0001f468\u200d\U0001f469",
    ):
        assert fix.judge(chat("q", text)) is None, text
    assert isinstance(fix.judge(chat("q", "\x07")), Drop)  # nothing would be left


def look(rows: list[Conversation], **keys: Any) -> list[Any]:
    return list(Boilerplate(BoilerplateFilter(**keys), "either").look(rows))


def test_shared_endings_are_cut_dropped_or_kept_and_whole_answers_are_none() -> None:
    shared = "I hope that this helps you!"
    rows = [chat("q", f"Answer number {THEMES[i % 5]} {i}. {shared if i % 2 else shared.upper()}") for i in range(10)]
    rows += [chat("q", shared)] * 3 + [chat("q", "Yes. It is as it always was here.")]
    cut = look(rows)
    assert all(isinstance(verdict, Change) for verdict in cut[:10]) and cut[10:] == [None] * 4
    assert cut[0].row.messages[1]["content"] == f"Answer number {THEMES[0]} 0."
    assert all(isinstance(verdict, Drop) for verdict in look(rows, endings="drop")[:10])
    assert look(rows, endings="keep") == [None] * 14
    assert look(rows, ending_rows=11) == [None] * 14
    assert look(rows, ending_share=0.9) == [None] * 14
    assert ending_of("One sentence only, of many words.") is None and ending_of("A. 1 2 3 4 5") is None


def test_phrases_of_assistants_with_either_apostrophe_and_own_ones() -> None:
    assert isinstance(look([chat("q", "Well, as an AI language model, I")])[0], Drop)
    assert isinstance(look([chat("q", "I don\u2019t have personal opinions on it")])[0], Drop)
    assert look([chat("as an AI language model", "A language model predicts words.")]) == [None]
    assert isinstance(look([chat("q", "Thanks, Brand Inc.")], phrases=["brand INC"])[0], Drop)


@pytest.mark.parametrize(
    "text", ["a", "1", "a.", "1-", "abcd:", "+1 ", "phone ", "{", "as a very-", "DE89 3704 ", "\u00c3\u00a9"]
)
def test_no_text_takes_long(text: str) -> None:
    """Time grows with the length, not with its square: 30,000 characters within seconds on any machine."""
    section = FilterSection.model_validate(
        {name: {} for name in ("encoding", "pii", "echo", "endings", "refusals", "boilerplate", "repetition")}
        | {"language": {"languages": ["en"]}}
    )
    row = chat("q", text * (30_000 // len(text)))
    for name, one in build(section, Tools()):
        started = time.process_time()
        list(one.look([row]))
        assert time.process_time() - started < 2.0, name
