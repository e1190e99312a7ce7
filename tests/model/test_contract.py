"""Contract: what training froze is compared to the token; what differs is said, what only looks different is not."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from luthier.data.template import ChatTemplate
from luthier.model.contract import freeze_prompts, other_template, prompt_problems, require_same
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import RunFailed
from tests.support.tiny import CHATML, save_tiny, tiny_tokenizer

LLAMA_LIKE = (
    "{% for m in messages %}{{ bos_token if loop.first }}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
)


def template(source=CHATML, *, adds_bos=False, **kwargs):
    tokenizer = tiny_tokenizer(chat_template=source)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    return ChatTemplate(tokenizer, kwargs=kwargs)


def codes(contract, found):
    return [problem.code for problem in prompt_problems(contract, found, where="here")]


def test_the_same_tokenizer_loaded_again_is_the_same(tmp_path):
    frozen = freeze_prompts(template(), [2])
    assert codes(frozen, template()) == []
    tiny_tokenizer().save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert codes(frozen, ChatTemplate(AutoTokenizer.from_pretrained(tmp_path))) == []
    assert frozen["stops"] == [{"id": 2, "token": "<|im_end|>"}]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            CHATML.replace("'\n' + message['content']", "': ' + message['content']"),
            "token 3 is ':' (id 28), in training it was '\\n' (id 201); after '<|im_start|>user' it has ': What is",
        ),
        (CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant"), "nothing, in training it was '\\n'"),
        (CHATML.replace("'<|im_end|>' + '\n'", "'\n'"), "in training it was '<|im_end|>' (id 2)"),
        ("{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}" + CHATML, "another prompt"),
        ("{{ raise_exception('no') }}", "the template refuses it (no)"),
        (None, "there is no chat template"),
    ],
)
def test_the_first_token_that_differs_is_said(source, said):
    frozen = freeze_prompts(template(), [2])
    with pytest.raises(RunFailed) as caught:
        require_same(frozen, template(source), stops=None, where="merged")
    assert [problem.code for problem in caught.value.problems] == ["E580"]
    assert said in caught.value.problems[0].message and caught.value.problems[0].message.startswith("merged: ")


def test_only_what_follows_an_answer_differs():
    """The prompts of first turns are the same: a check of prompts alone would not see it."""
    source = CHATML.replace("'<|im_end|>' + '\n'", "('<|im_end|>' if message['role'] != 'assistant' else '') + '\n'")
    (problem,) = prompt_problems(freeze_prompts(template(), [2]), template(source), where="x")
    assert "in training it was '<|im_end|>'" in problem.message


def test_variables_of_the_template_count():
    source = CHATML + "{% if thinking %}{{ '<think>' }}{% endif %}"
    frozen = freeze_prompts(template(source, thinking=True), [2])
    assert codes(frozen, template(source, thinking=True)) == []
    assert codes(frozen, template(source)) == ["E580"]


def test_a_template_that_writes_the_date_is_the_same_template(capfd):
    source = "{{ '<|im_start|>' + strftime_now('%Y-%m-%d') }}" + CHATML
    frozen = freeze_prompts(template(source), [2])
    for talk in frozen["talks"].values():  # as if it had been trained in another year
        talk["text"] = talk["text"][:13] + "1999" + talk["text"][17:]
        talk["ids"] = [*talk["ids"][:1], 5, *talk["ids"][2:]]
    assert codes(frozen, template(source)) == []
    assert "the same chat template writes another text" in capfd.readouterr().err
    other = template(source.replace("assistant", "helper"))
    assert codes(frozen, other) == ["E580"], "but another template is another one"


def test_other_special_tokens_under_the_same_template_are_no_date():
    source = "{{ bos_token }}" + CHATML
    frozen = freeze_prompts(template(source), [2])
    other = template(source)
    other.tokenizer.bos_token = "<|endoftext|>"
    assert codes(frozen, ChatTemplate(other.tokenizer)) == ["E580"]


def test_the_tokenizer_adds_what_the_template_writes_and_the_prompt_has_one():
    found = template(LLAMA_LIKE, adds_bos=True)
    frozen = freeze_prompts(found, [2])
    assert frozen["plain"] == [1]
    for name, talk in frozen["talks"].items():
        assert talk["ids"][0] == 1 and talk["ids"][1] != 1, name
    assert codes(None, found) == []


def test_a_tokenizer_that_no_longer_adds_it_to_plain_text():
    frozen = freeze_prompts(template(adds_bos=True), [2])
    (problem,) = prompt_problems(frozen, template(), where="x")
    assert problem.code == "E580" and "begins with nothing, in training with '<|im_start|>' (id 1)" in problem.message


@pytest.mark.parametrize("known", [True, False])
def test_two_bos_are_found_with_and_without_a_contract(known):
    frozen = freeze_prompts(template(LLAMA_LIKE), [2]) if known else None
    found = template("{{ bos_token }}" + LLAMA_LIKE)
    (problem,) = prompt_problems(frozen, found, where="x")
    assert problem.code == "E582" and "two '<|im_start|>' tokens (id 1)" in problem.message


def test_a_stop_token_that_is_none_any_more():
    frozen = freeze_prompts(template(), [2, 0])
    require_same(frozen, template(), stops=[0, 2, 7], where="x")
    with pytest.raises(RunFailed, match=r"'<\|im_end\|>' \(id 2\) ended answers in training"):
        require_same(frozen, template(), stops=[0], where="x")


def test_a_template_where_training_had_none():
    assert codes(freeze_prompts(template(None), [2]), template()) == ["E580"]
    assert codes(freeze_prompts(template(None), [2]), template(None)) == []


def test_a_recipe_that_asks_in_other_words_than_the_base(tmp_path):
    save_tiny(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    assert other_template(template(), section) is None
    words = other_template(template(LLAMA_LIKE), section)
    assert words is not None and "the base's own is" in words and "training" not in words
    assert other_template(template(None), section) is None
