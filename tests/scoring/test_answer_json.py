"""Contract: an answer is JSON as a whole, bare or in one fence, or it is none."""

import pytest

from luthier.scoring.answer_json import answer_json


@pytest.mark.parametrize("text", ['{"a": 1}', ' {"a": 1}\n', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```\n'])
def test_whole_answers_are_read(text):
    assert answer_json(text) == {"a": 1}


@pytest.mark.parametrize(
    "text", ["", "none", 'Here: {"a": 1}', '```json\n{"a": 1}\n``` done', '{"a": 1} {"a": 2}', "[" * 100_000]
)
def test_prose_around_it_and_what_cannot_be_read_is_no_json(text):
    with pytest.raises(ValueError):
        answer_json(text)
