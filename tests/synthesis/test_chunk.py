"""Contract: passages cover the document, their offsets are right, none is too long; a quotation is word for word."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.synthesis.documents.chunk import chunk, estimate_tokens, units_of
from luthier.synthesis.documents.quote import find_quote
from tests.support.often import often

LINES = st.sampled_from([
    "# Title", "## Part one", "### Deep", "A sentence. And another one! A third?", "", "", "word " * 30, "x" * 120,
    "```", "def f():\n    return 1", "- item", "    indented", "猫が好きです。犬も好きです。",
    "ends without a stop", "\t", "#no heading",
])  # fmt: skip
TEXTS = st.one_of(st.lists(LINES, max_size=25).map("\n".join), st.text(max_size=300))


@given(text=TEXTS, tokens=st.integers(4, 60), share=st.floats(0, 0.9), headings=st.booleans())
@settings(max_examples=often(300), deadline=None)
def test_passages_cover_the_document_within_their_size(text, tokens, share, headings):
    overlap = int(tokens * share)
    passages = chunk(text, tokens=tokens, overlap=overlap, headings=headings)
    if not text.strip():
        assert passages == []
        return
    assert passages[0].start == passages[0].new == 0 and passages[-1].end == len(text)
    for before, after in itertools.pairwise(passages):
        assert before.end == after.new, "no gap, and nothing new twice"
        assert before.start < after.new and before.start <= after.start <= after.new
    for one in passages:
        assert one.start <= one.new < one.end
        assert text[one.new : one.end].strip(), "something is new"
        assert one.end - one.start == 1 or estimate_tokens(text[one.start : one.end]) <= max(tokens, 1)
        assert estimate_tokens(text[one.start : one.new]) <= overlap


@given(text=TEXTS, most=st.integers(1, 40), headings=st.booleans())
@settings(max_examples=often(200), deadline=None)
def test_units_follow_each_other_without_a_gap(text, most, headings):
    units = units_of(text, most, headings=headings, count=estimate_tokens)
    assert "".join(text[unit.start : unit.end] for unit in units) == (text if text.strip() else "")
    assert all(unit.tokens <= most or unit.end - unit.start == 1 or unit.level for unit in units)


TEXT = """# Boats

A boat floats. It is made of wood.

## Sails

Sails catch the wind. They are cloth.

## Oars

Oars are long. You pull them. They move the boat. They tire you. They never break. They cost little.
"""


def passages(tokens, overlap=0):
    return [
        (one.titles, TEXT[one.start : one.end]) for one in chunk(TEXT, tokens=tokens, overlap=overlap, headings=True)
    ]


def test_short_sections_stay_together_and_a_long_one_begins_anew():
    found = passages(34)
    assert [titles for titles, _ in found] == [("Boats",), ("Boats", "Oars")]
    assert found[0][1].startswith("# Boats") and "They are cloth." in found[0][1]
    assert found[1][1].startswith("## Oars")


def test_overlap_repeats_whole_sentences_within_a_section_only():
    found = chunk(TEXT, tokens=24, overlap=10, headings=True)
    repeated = [TEXT[one.start : one.new].strip() for one in found]
    assert any(repeated) and all(not text or text.endswith(".") for text in repeated)
    assert not any("##" in text for text in repeated)


def test_code_is_not_taken_for_headings_and_stays_whole():
    text = "Intro here.\n\n```\n# a comment\nx = 1\n\ny = 2\n```\n\nAfter."
    units = units_of(text, 30, headings=True, count=estimate_tokens)
    assert all(unit.level == 0 for unit in units)
    assert any(
        text[unit.start : unit.end].startswith("```") and "y = 2" in text[unit.start : unit.end] for unit in units
    )


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a word", 2), ("internationalization", 5), ("猫です", 3), ("a, b.", 4)]
)
def test_the_estimate(text, tokens):
    assert estimate_tokens(text) == tokens


PASSAGE = "The engine\n  needs oil. It’s changed twice a year – “or more”."


@pytest.mark.parametrize(("quote", "found"), [
    ("The engine needs oil.", True), ("engine needs   oil", True), ("It's changed twice a year", True),
    ('changed twice a year - "or more"', True), ("The engine needs gas.", False), ("the engine needs oil", False),
    ("needs oil", False), ("he engine needs oil", False), ("The engine needs oi", False), ("", False),
])  # fmt: skip
def test_quotations(quote, found):
    span = find_quote(quote, PASSAGE, least_words=3)
    assert (span is not None) is found
    if span:
        assert PASSAGE[slice(*span)].split()[1] in PASSAGE


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=80), data=st.data())
@settings(deadline=None)
def test_a_stretch_of_whole_words_is_found_where_it_stands(text, data):
    words = text.split()
    if not words:
        return
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    quote = " ".join(words[start:end])
    span = find_quote(quote, text, least_words=1)
    stripped = quote.strip('"“”')
    if span is None:
        assert stripped != quote or quote != quote.strip('"')
    else:
        assert span[1] - span[0] >= 1
