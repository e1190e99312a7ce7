"""Contract: the recipe's template replaces the tokenizer's own, and a broken one is refused with its line."""

from __future__ import annotations

import pytest

from luthier.model.tokenizer import load_tokenizer, read_chat_template
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from tests.model.support import base_folder, section
from tests.support.tiny import CHATML, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base") / "base")


def test_the_models_own_tokenizer_and_template(base):
    tokenizer = load_tokenizer(section(base))
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_template_inline_or_from_a_file(base, tmp_path):
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(text)
    for value in (text, str(file)):
        tokenizer = load_tokenizer(section(base, chat_template=value))
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_generation_marks_and_loop_controls_are_understood():
    inner = "{% if loop.index > 2 %}{% break %}{% endif %}{%- generation -%}x{% endgeneration %}"
    text = "{%- for m in messages %}" + inner + "{% endfor %}"
    assert read_chat_template(text) == text


@pytest.mark.parametrize(
    ("text", "line"), [("{% for m in messages %}\n{{ m.content }", 2), ("a\nb\n{% endfor %}", 3), ("{{ x | }}", 1)]
)
def test_a_template_that_is_not_jinja_is_refused_with_its_line(base, text, line):
    with pytest.raises(RecipeError, match=f"not valid Jinja: line {line}") as caught:
        load_tokenizer(section(base, chat_template=text))
    assert caught.value.problems[0].code == "M316"


def test_a_template_file_that_does_not_exist(base):
    with pytest.raises(RecipeError, match=r"cannot be read: templates/chat\.jinja"):
        load_tokenizer(section(base, chat_template="templates/chat.jinja"))


def test_a_broken_template_in_the_tokenizer_itself_is_refused(tmp_path):
    folder = base_folder(tmp_path / "base")
    tiny_tokenizer(chat_template="{% if %}").save_pretrained(folder)
    with pytest.raises(RecipeError, match="the chat template of the tokenizer"):
        load_tokenizer(section(folder))


def test_another_tokenizer(base, tmp_path):
    tiny_tokenizer(chat_template="{{ 'other' }}").save_pretrained(tmp_path / "other")
    tokenizer = load_tokenizer(section(base, tokenizer=str(tmp_path / "other")))
    assert tokenizer.chat_template == "{{ 'other' }}"


def test_a_folder_without_a_tokenizer(tmp_path):
    folder = base_folder(tmp_path / "base")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(EnvironmentProblem, match="no tokenizer can be loaded") as caught:
        load_tokenizer(section(folder))
    assert (caught.value.exit_code, caught.value.problems[0].code) == (4, "M315")


def test_a_broken_tokenizer_file(tmp_path):
    folder = base_folder(tmp_path / "base")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(EnvironmentProblem, match="no tokenizer can be loaded"):
        load_tokenizer(section(folder))


def test_a_tokenizer_that_is_missing_is_named_by_its_key(base):
    with pytest.raises(RecipeError, match=r"`model\.tokenizer` is '\./none'"):
        load_tokenizer(section(base, tokenizer="./none"))
