"""Contract: the stop set holds the tokenizer's eos, what the template ends a turn with, and the base's own."""

from __future__ import annotations

import pytest

from luthier.model.stops import end_of_turn_id, stop_ids
from tests.support.tiny import CHATML, tiny_model, tiny_tokenizer

NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
ENDS = {
    CHATML: "<|im_end|>",
    "{% for m in messages %}{{ m['content'] + '  <|endoftext|>' }}{% endfor %}": "<|endoftext|>",
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + eos_token }}{% endfor %}": "<|im_end|>",
    NO_END: None,
    "{{ raise_exception('only tools') }}": None,
    "{{ messages[0].nothing.at.all }}": None,
    "{{ 'fixed text' }}": None,
    None: None,
}


@pytest.mark.parametrize(("template", "token"), ENDS.items())
def test_the_end_of_a_turn_is_found_by_rendering_one(template, token):
    tokenizer = tiny_tokenizer(chat_template=template)
    expected = None if token is None else tokenizer.convert_tokens_to_ids(token)
    assert end_of_turn_id(tokenizer) == expected


def test_the_longest_matching_control_token_wins():
    tokenizer = tiny_tokenizer(chat_template="{% for m in messages %}{{ m['content'] + '<|im_end|>2' }}{% endfor %}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>2"]})
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>2")


def test_all_three_sources_are_joined_without_repeats():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    model = tiny_model(eos_token_id=[2, 17])
    model.generation_config.eos_token_id = 33
    assert set(stop_ids(tokenizer, model)) == {0, 2, 17, 33}
    assert set(stop_ids(tokenizer, model.config)) == {0, 2, 17}
    assert stop_ids(tokenizer) == [0, 2]
    assert len(stop_ids(tokenizer, model)) == 4


def test_ids_that_the_tokenizer_does_not_have_are_left_out():
    assert stop_ids(tiny_tokenizer(), tiny_model(eos_token_id=[2, 599])) == [2]
