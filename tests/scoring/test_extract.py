"""Contract: the answer a reader would see is found, and no text or pattern can hang the search."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.scoring import extract
from luthier.scoring.extract import PatternTimeoutError, compile_pattern, first_group, last_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("He earns 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", 18),
        ("#### 1,234", 1234),
        ("The answer is 72.", 72),
        ("The answer is $1,234.50.", Fraction("1234.5")),
        ("about 50%", 50),
        ("it fell to -5", -5),
        ("it fell to \N{MINUS SIGN}5 degrees", -5),
        ("a loss of -$5", -5),
        ("a loss of $-5", -5),
        ("10-3", 3),  # a difference, not a negative number
        ("(2+1)-3", 3),
        ("x = -3", -3),
        ("x=-3", -3),
        ("(-4)", -4),
        ("5 - 3", 3),
        ("18 eggs, 2 of them broken", 2),
        ("0.30", Fraction("0.3")),
        (".5", Fraction("0.5")),
        ("so it is ...5", 5),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("1.5/0.5", 3),
        ("48/2=24", 24),
        ("on 1/2/2024", 2024),
        ("5/0", 0),  # not a fraction
        ("1e3", 1000),
        ("2e", 2),
        ("1,2,3", 3),
        ("1,234,56", 56),
        ("version 1.2.3", 3),
        ("\\boxed{42}", 42),
        ("**42**", 42),
        ("#### 42 apples", 42),
        ("1,000,000.00", 1_000_000),
        ("€12 or £7", 7),
    ],
)
def test_last_number(text, value):
    found = last_number(text)
    assert found is not None
    assert found[0] == value


@pytest.mark.parametrize(
    "text", ["", "none", "\N{SUPERSCRIPT TWO}", "....", "-", "$", "9" * 401, "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_no_number(text):
    assert last_number(text) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9), st.booleans())
def test_a_number_is_found_however_it_is_written(number, commas):
    written = f"{number:,.3f}" if commas else f"{number:.3f}"
    for text in (written, f"so it is ${written}.", f"7 and then {written}% of it", f"#### {written}\n"):
        assert last_number(text)[0] == Fraction(number), text


@given(st.text(max_size=200))
def test_any_text_is_searched_without_an_error(text):
    found = last_number(text)
    assert found is None or Fraction(found[1].replace("/", "/")) == found[0] or "/" in found[1]


@pytest.mark.parametrize(
    "text",
    ["1" * 10**6, "1," * 500_000, "-" * 10**6, "1/" * 500_000, "." * 10**6, "1e" * 500_000, "1" + ",111" * 250_000,
     "$" * 10**6, "1." * 500_000, "1e999", "1e-999/1e999"],
)  # fmt: skip
def test_a_million_characters_take_less_than_two_seconds(text):
    started = time.process_time()  # seconds of this process: others may be busy
    last_number(text)
    assert time.process_time() - started < 2


def test_first_group_of_the_first_match():
    pattern = compile_pattern(r"answer: (\w+)")
    assert first_group(pattern, "answer: yes, answer: no") == "yes"
    assert first_group(pattern, "no answer") is None
    assert first_group(compile_pattern(r"(a)?b"), "b") is None


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "not a regular expression"), ("abc", "no group"), ("(?:a)", "no group")]
)
def test_patterns_that_cannot_be_used_are_refused(pattern, words):
    with pytest.raises(ValueError, match=words):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"^((a|aa)+)$", "a" * 60 + "b"), (r"(x+x+)+y", "x" * 10**5), (r"^((\w+\s?)*)$", "word " * 10**5 + "!")],
)
def test_a_pattern_that_backtracks_without_end_is_stopped(monkeypatch, pattern, text):
    monkeypatch.setattr(extract, "PATTERN_SECONDS", 0.2)
    started = time.thread_time()
    with pytest.raises(PatternTimeoutError):
        first_group(compile_pattern(pattern), text)
    assert time.thread_time() - started < 5
