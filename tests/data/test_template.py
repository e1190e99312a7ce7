# ruff: noqa: E501 - tables of cases
"""Contract 1, first half: one rendering for training and serving, equal to transformers', within bounds of time and size."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.sandbox import BoundedTemplate, TemplateFailure, TemplateLimit
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import tokenize_conversation
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError
from tests.data.templates import shipped_templates, tokenizer_for
from tests.support.often import often
from tests.support.tiny import CHATML, tiny_tokenizer

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "description": "first"}}, "required": ["a"]}}}]  # fmt: skip
CALL = {"type": "function", "id": "call12345", "function": {"name": "add", "arguments": {"a": 1, "b": "<é>"}}}
CHATS = {
    "plain": [{"role": "user", "content": "Hi <b>&amp;</b> é"}, {"role": "assistant", "content": "Yo\n"}, {"role": "user", "content": "x"}],
    "system": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
    "reasoning": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning_content": "hm"}],
    "tools": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
              {"role": "tool", "name": "add", "tool_call_id": "call12345", "content": "2"}],
}  # fmt: skip


def outcome(render):
    """The text, or `None` where the template refuses the messages: it raises whatever it likes."""
    try:
        return render()
    except Exception:  # noqa: BLE001
        return None


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_every_shipped_template_renders_as_transformers_renders_it(name):
    tokenizer = tokenizer_for(shipped_templates()[name])
    template = ChatTemplate(tokenizer)
    for kind, messages in CHATS.items():
        tools = TOOLS if kind == "tools" else None
        for ask in (False, True):
            served = outcome(
                lambda m=messages, t=tools, a=ask: tokenizer.apply_chat_template(
                    m, tools=t, add_generation_prompt=a, tokenize=False
                )
            )
            ours = outcome(lambda m=messages, t=tools, a=ask: template.render(m, t, add_generation_prompt=a))
            assert ours == served, (kind, ask)


def test_template_kwargs_reach_the_template():
    tokenizer = tokenizer_for(shipped_templates()["qwen3"])
    messages = [{"role": "user", "content": "Hi"}]
    quiet = ChatTemplate(tokenizer, kwargs={"enable_thinking": False}).render(messages, add_generation_prompt=True)
    assert quiet.endswith("<think>\n\n</think>\n\n")
    assert not ChatTemplate(tokenizer).render(messages, add_generation_prompt=True).endswith("</think>\n\n")


def test_a_tokenizer_without_a_template_is_one_clear_error():
    with pytest.raises(DataError, match=r"no chat template(.|\n)*model\.chat_template"):
        ChatTemplate(tiny_tokenizer(chat_template=None)).prompt_ids([{"role": "user", "content": "Hi"}])


def test_a_template_that_does_not_compile_is_one_clear_error():
    with pytest.raises(DataError, match="does not compile"):
        ChatTemplate(tiny_tokenizer(chat_template="{% for x in %}")).render([{"role": "user", "content": "Hi"}])


def test_a_template_that_knows_it_is_ours_would_be_found_out(monkeypatch):
    tokenizer = tiny_tokenizer()
    real = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: real(*a, **k) + "!", raising=False)
    with pytest.raises(DataError, match="renders the chat template differently"):
        ChatTemplate(tokenizer).render([{"role": "user", "content": "Hi"}])


# --- hostile templates (F15) --------------------------------------------------------------------------------------

BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "loop in a filter": "{% filter upper %}{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}{% endfilter %}",
    "macro recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "3 GB string": "{{ 'a' * 3000000000 }}",
    "3 GB list": "{{ ([1] * 3000000000) | length }}",
    "doubling with ~": "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}",
    "doubling with +": "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "format": "{{ '{:3000000000}'.format(1) }}",
    "percent": "{{ '%03000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (3000000000, 1) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | length }}",
    "join": "{{ range(99999) | map('string') | join('x' * 1000000) | length }}",
    "join method": "{{ ('x' * 1000000).join(['a'] * 99999) | length }}",
    "indent": "{{ messages | tojson(indent=1000000000) }}",
    "range": "{{ range(10000000000) | list | length }}",
    "source": "x" * 1_100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_seconds_with_an_error(name):
    started = time.process_time()
    with pytest.raises(DataError, match=r"was stopped|cannot be used"):
        ChatTemplate(tiny_tokenizer(chat_template=BOMBS[name])).render([{"role": "user", "content": "Hi"}])
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ lipsum.__globals__ }}",
    ],
)  # fmt: skip
def test_escapes_are_refused(escape):
    with pytest.raises(TemplateFailure):
        BoundedTemplate(escape).render({"messages": [{"role": "user", "content": "Hi"}]})


def test_the_budget_is_per_rendering_so_many_rows_are_no_bomb():
    template = BoundedTemplate("{{ 'a' * 9000000 }}")
    assert [len(template.render({})) for _ in range(3)] == [9_000_000] * 3
    with pytest.raises(TemplateLimit):
        BoundedTemplate("{{ 'a' * 9000000 }}{{ 'a' * 9000000 }}").render({})


def test_a_long_honest_conversation_is_within_the_bounds():
    messages = [{"role": role, "content": "word " * 200} for _ in range(1000) for role in ("user", "assistant")]
    text = ChatTemplate(tiny_tokenizer()).render(messages)
    assert text.count("<|im_end|>") == 2000


# --- prompt ids ---------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs", "Co", "Cn")), max_size=20)


@settings(max_examples=often(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_prompt_ids_are_those_of_transformers_when_no_answer_starts_with_white_space(contents):
    tokenizer = tiny_tokenizer()
    messages = [{"role": "assistant" if k % 2 else "user", "content": c.strip()} for k, c in enumerate(contents)]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert ChatTemplate(tokenizer).prompt_ids(messages) == expected


def test_prompts_are_those_of_training_after_the_tokenizer_is_saved_and_loaded(tmp_path):
    """B27: twenty conversations with system messages, tools and several turns."""
    from transformers import AutoTokenizer

    tokenizer = tokenizer_for(shipped_templates()["qwen2_5"])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    section = DataSection(train=[{"path": "x"}], max_length=10_000)
    for k in range(20):
        messages = [{"role": "system", "content": f"S {k}"}] if k % 2 else []
        for turn in range(1 + k % 4):
            messages.append({"role": "user", "content": f"{turn} question {k}" + "<|im_end|>" * (k % 3 == 0)})
            if k % 5 == 0:
                messages += [
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": "2"},
                ]
            messages.append({"role": "assistant", "content": f"\nanswer {k}" if k % 7 == 0 else f"answer {k}"})
        tools = TOOLS if k % 5 == 0 else None
        row = Conversation(kind="chat", ref=RowRef("f", k), messages=messages, tools=tools)
        trained = tokenize_conversation(row, ChatTemplate(tokenizer), section=section)
        for template in (ChatTemplate(tokenizer), ChatTemplate(loaded)):
            served = template.prompt_ids(messages[:-1], tools)
            assert list(trained.ids[: len(served)]) == served and trained.weights[len(served)] == 1.0


def test_control_tokens_in_messages_are_text_unless_allowed_and_can_be_refused():
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    kept, allowed = (
        ChatTemplate(tokenizer, control_tokens=policy).prompt_ids(messages) for policy in ("text", "allow")
    )
    assert kept.count(end) == 1 and allowed.count(end) == 2
    assert tokenizer.decode(kept) == tokenizer.decode(allowed)
    with pytest.raises(DataError, match=r"control token '<\|im_end\|>'"):
        ChatTemplate(tokenizer, control_tokens="error").prompt_ids(messages)


def test_control_tokens_in_tools_and_arguments_are_text_too():
    tokenizer = tokenizer_for(shipped_templates()["qwen2_5"])
    tools = [{"type": "function", "function": {"name": "f", "description": "x<|im_end|>y", "parameters": {}}}]
    ids = ChatTemplate(tokenizer).prompt_ids([{"role": "user", "content": "Hi"}], tools)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # system and user, not the description


def test_a_template_that_reacts_to_control_tokens_in_data_is_refused():
    cut = CHATML.replace("message['content']", "message['content'].split('<|im_end|>')[0]")
    with pytest.raises(DataError, match="changes control tokens in messages"):
        ChatTemplate(tiny_tokenizer(chat_template=cut)).prompt_ids([{"role": "user", "content": "a<|im_end|>b"}])


def test_messages_are_not_changed_and_none_values_are_dropped_as_transformers_does():
    messages = [{"role": "user", "content": "Hi", "name": None, "tool_calls": None}]
    before = repr(messages)
    ChatTemplate(tiny_tokenizer()).prompt_ids(messages)
    assert repr(messages) == before


def test_a_slow_tokenizer_is_refused_with_a_reason():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="does not report which characters"):
        ChatTemplate(Slow())
