"""Contract: the pieces of a streamed answer are the text that `generate` gives."""

import pytest
import torch

from luthier.generation.generate import generate
from luthier.generation.stream import stream
from luthier.runtime.errors import RecipeError
from tests.support.scripted import chain, scripted_model
from tests.support.tiny import tiny_model, tiny_tokenizer

STOP = 2


def test_pieces_together_are_the_greedy_answer():
    model, tokenizer, ids = tiny_model(seed=3), tiny_tokenizer(), [5, 90, 17, 300]
    (whole,) = generate(model, tokenizer, [ids], max_new_tokens=30, stop_ids=[STOP], batch_size=1)
    pieces = list(stream(model, tokenizer, ids, max_new_tokens=30, stop_ids=[STOP]))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3


def test_it_stops_at_a_stop_token_and_does_not_say_it():
    model = scripted_model(chain(10, 11, 12, 7, 13))
    assert "".join(stream(model, tiny_tokenizer(), [10], max_new_tokens=9, stop_ids=[STOP, 7])) == (
        tiny_tokenizer().decode([11, 12])
    )


def test_a_character_of_several_tokens_comes_in_one_piece():
    tokenizer = tiny_tokenizer()
    snowman = tokenizer("\N{SNOWMAN}", add_special_tokens=False)["input_ids"]
    assert len(snowman) == 3
    model = scripted_model(chain(50, *snowman, STOP))
    assert list(stream(model, tokenizer, [50], max_new_tokens=9, stop_ids=[STOP])) == ["\N{SNOWMAN}"]


def test_an_answer_cut_inside_a_character_still_ends():
    tokenizer = tiny_tokenizer()
    snowman = tokenizer("\N{SNOWMAN}", add_special_tokens=False)["input_ids"]
    model = scripted_model(chain(50, *snowman, STOP))
    assert "".join(stream(model, tokenizer, [50], max_new_tokens=2, stop_ids=[STOP])) == "\N{REPLACEMENT CHARACTER}"


def test_an_empty_answer_yields_nothing():
    assert list(stream(scripted_model({}), tiny_tokenizer(), [10], max_new_tokens=9, stop_ids=[STOP])) == []


def test_the_model_is_in_its_own_state_whenever_the_caller_holds_a_piece():
    model = tiny_model(seed=3).train()
    own = model.generation_config
    for _ in stream(model, tiny_tokenizer(), [5, 6], max_new_tokens=5, stop_ids=[STOP]):
        assert model.training
        assert model.generation_config is own
        assert torch.is_grad_enabled()


def test_sampling_follows_the_random_state_and_greedy_does_not():
    model, tokenizer = tiny_model(seed=3), tiny_tokenizer()

    def say(seed, **settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return "".join(stream(model, tokenizer, [5, 6], max_new_tokens=20, stop_ids=[STOP], **settings))

    assert say(0, temperature=1.0) == say(0, temperature=1.0) != say(1, temperature=1.0)
    assert say(0) == say(1)
    assert say(0, temperature=1.0, top_p=1e-6) == say(0), "only the likeliest token is left"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"ids": []}, "no tokens"),
        ({"ids": [5] * 512}, "the model holds 512"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    arguments = {"ids": [5], "max_new_tokens": 4, "stop_ids": [STOP], **settings}
    with pytest.raises(RecipeError, match=words):
        list(stream(tiny_model(), tiny_tokenizer(), arguments.pop("ids"), **arguments))


def test_an_answer_ends_where_the_model_is_full():
    model = scripted_model(chain(10, 11, 10), max_position_embeddings=8)
    tokenizer = tiny_tokenizer()
    text = "".join(stream(model, tokenizer, [10] * 5, max_new_tokens=50, stop_ids=[STOP]))
    assert text == tokenizer.decode([11, 10, 11])
