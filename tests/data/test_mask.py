# ruff: noqa: E501 - tables of cases
"""Contract 1: the trained tokens decode to the assistant's turns with their end-of-turn token, or the row is refused.

The oracle is transformers itself: `apply_chat_template` and the raw tokenizer, never our own rendering.
Mutations tried by hand (each makes tests here fail): turn start + 1, turn end without the terminator, the white
space behind the terminator trained, terminator searched in data, content check left out, sentinel without its
generation-prompt check, last closing token instead of the kept one (Phi-3).
"""

import re
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.mask import prove
from luthier.data.saying import Unprovable
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import tokenize_conversation
from luthier.data.types import Conversation, Dropped, Example, RowRef
from luthier.recipe.schema import DataSection
from tests.data.templates import shipped_templates, tokenizer_for
from tests.support.often import often
from tests.support.tiny import CHATML, tiny_tokenizer

NASTY = [
    "hi there", "", " ", "\n", " lead", "\nlead", "trail ", "trail\n\n", "it's \"so\" \\boxed{4} \\n", "{{x}} {% if y %}", "{# no #}",
    "a\r\nb\r\n", "漢字かな交じり", "👍🏽 ok 🇩🇪", "e\u0301 é", "assistant\n", "<|im_start|>assistant\n", "bye<|im_end|>", "<|im_end|>",
    "<|eot_id|>x", "<end_of_turn>", "</s>", "<|end|>\n<|assistant|>\n", "[INST] x [/INST]", "tab\there", "\u00a0nbsp\u2003", "x" * 50,
]  # fmt: skip
CONTENT = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=("Cs", "Co", "Cn")), max_size=30))


@st.composite
def chats(draw, max_turns=6):
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, max_turns))):
        messages += [{"role": "user", "content": draw(CONTENT)}, {"role": "assistant", "content": draw(CONTENT)}]
    return messages


def section(**options):
    return DataSection(train=[{"path": "x"}], **{"max_length": 100_000, **options})


def chat(messages, **fields):
    return Conversation(kind="chat", ref=RowRef("f.jsonl", 7), messages=messages, **fields)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


@cache
def template_for(name):
    return ChatTemplate(tokenizer_for(shipped_templates()[name]))


def run(messages, template, **options):
    fields = {key: options.pop(key) for key in ("tools", "message_weights", "span_weights") if key in options}
    return tokenize_conversation(chat(messages, **fields), template, section=section(**options))


def runs(example, tokenizer):
    """Text of each stretch of trained tokens, adjacent turns in one."""
    found, current = [], []
    for token, weight in zip([*example.ids, -1], [*example.weights, 0], strict=True):
        if weight:
            current.append(token)
        elif current:
            found.append(tokenizer.decode(current, clean_up_tokenization_spaces=False))
            current = []
    return found


# --- every template that ships with TRL and transformers ----------------------------------------------------------

END = {  # end-of-turn token
    "cohere": "<|END_OF_TURN_TOKEN|>", "diffusion_gemma": "<turn|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>", "gemma4_v2": "<turn|>", "gemma4_v3": "<turn|>", "gemma4_v4": "<turn|>", "gemma4_v5": "<turn|>",
    "glm4moe_training": "<|user|>", "gptoss": "<|return|>", "gptoss_training": "<|return|>",
    "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>", "muse_glimmer": "<|eot|>",
    "phi3": "<|end|>", "phi3_5": "<|end|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>", "smolvlm": "<end_of_utterance>", "idefics3": "<end_of_utterance>",
}  # fmt: skip
# Written around the answer by the template, inside what the model must emit; %s is the answer.
ADDED = {
    "cohere2": "%s<|END_RESPONSE|>", "muse_glimmer": " to=user<|message|>%s", "qwen3": "<think>\n\n</think>\n\n%s",
    "gptoss": "<|channel|>final<|message|>%s", "gptoss_training": "<|channel|>final<|message|>%s",
    "glm4moe_training": "\n<think></think>\n%s", "qwen3_5_think": "\n</think>\n\n%s", "qwen3_6": "\n</think>\n\n%s",
    "qwen3_8": "\n</think>\n\n%s",
}  # fmt: skip
# Templates that refuse a plain question and answer, and why.
FORCED_THINKING = "prompt a server would send is not the beginning"
PARTS_ONLY = "alters its `content`|has no attribute 'text'"
REFUSES = {
    **dict.fromkeys(["deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3", "deepseekv3_training"], FORCED_THINKING),
    **dict.fromkeys([n for n in shipped_templates() if n.startswith("nemotron_3")], FORCED_THINKING),
    **dict.fromkeys([n for n in shipped_templates() if n.startswith(("idefics3", "llava_next", "smolvlm"))], PARTS_ONLY),
    "glm4moe": "does not close the turn",
}  # fmt: skip
# Templates that prove one question and answer, but not a conversation of two.
REFUSES_HISTORY = {
    "gptoss": "rewrites this turn", "gptoss_training": "rewrites this turn", "qwen3_5_nothink": FORCED_THINKING,
    "qwen3_5_think": FORCED_THINKING, "qwen3_6": FORCED_THINKING,
}  # fmt: skip


def looked_up(table, name, default):
    base = name.removesuffix("_training")
    return table.get(name, table.get(base, default))


def test_all_shipped_templates_are_found():
    assert len(shipped_templates()) >= 70


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_one_question_and_answer_is_proven_or_refused_as_the_table_says(name):
    template = template_for(name)
    got = run([user("Hi you"), assistant("Good day")], template)
    if name in REFUSES:
        assert isinstance(got, Dropped) and got.reason == "unprovable"
        assert re.search(REFUSES[name], got.detail), got.detail
        return
    assert isinstance(got, Example), got
    expected = looked_up(ADDED, name, "%s") % "Good day" + looked_up(END, name, "<|im_end|>")
    assert runs(got, template.tokenizer) == [expected]


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_a_conversation_of_two_is_proven_or_refused_as_the_table_says(name):
    if name in REFUSES:
        pytest.skip("refused in any length")
    template = template_for(name)
    got = run([user("Hi you"), assistant("Good day"), user("So?"), assistant("Bye")], template)
    if name in REFUSES_HISTORY:
        assert isinstance(got, Dropped) and REFUSES_HISTORY[name] in got.detail
        last = run(
            [user("Hi you"), assistant("Good day"), user("So?"), assistant("Bye")], template, loss_on="last_assistant"
        )
        assert isinstance(last, Example), last  # the way out that the message names
        return
    around, end = looked_up(ADDED, name, "%s"), looked_up(END, name, "<|im_end|>")
    first = "%s" if name == "qwen3" else around  # Qwen3 leaves the empty think block out of earlier turns
    assert runs(got, template.tokenizer) == [first % "Good day" + end, around % "Bye" + end]


@pytest.mark.parametrize(
    "name", [n for n in sorted(shipped_templates()) if n.startswith(("idefics3", "llava_next", "smolvlm"))]
)
def test_templates_of_vision_models_prove_contents_given_as_parts(name):
    template = template_for(name)
    parts = lambda text: [{"type": "text", "text": text}]  # noqa: E731
    got = run([user(parts("Hi you")), assistant(parts("Good day"))], template)
    if name.startswith("llava_next"):
        assert isinstance(got, (Example, Dropped))
    assert isinstance(got, Dropped) or "Good day" in runs(got, template.tokenizer)[0]


@pytest.mark.parametrize("name", sorted(set(shipped_templates()) - set(REFUSES)))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats(max_turns=3))
def test_random_conversations_are_proven_exactly_or_refused_with_a_reason(name, messages):
    check_against_transformers(messages, template_for(name))


@settings(max_examples=often(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=chats())
def test_chatml_proves_every_random_conversation(messages):
    got = check_against_transformers(messages, chatml())
    blank = all(not m["content"].strip() for m in messages if m["role"] == "assistant")
    assert isinstance(got, Example) or (blank and got.reason == "empty"), got


@cache
def chatml():
    return ChatTemplate(tiny_tokenizer())


def round_trips(text, tokenizer):
    return (
        tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
        == text
    )


def check_against_transformers(messages, template):
    """The independent statement of contract 1."""
    tokenizer = template.tokenizer
    got = run(messages, template)
    if isinstance(got, Dropped):
        assert got.reason in ("unprovable", "empty") and len(got.detail) > 10
        return got
    assert got.weights[0] == 0
    full = tokenizer.apply_chat_template(messages, tokenize=False)
    exact = round_trips(full, tokenizer)  # some vocabularies lack some bytes: noted in context, refused in answers
    assert (tokenizer.decode(got.ids, clean_up_tokenization_spaces=False) == full) == exact
    assert exact == ("tokenizer changes context text" not in got.notes)
    place = 0  # tokens consumed
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        assert full.startswith(prompt)
        served = template.prompt_ids(messages[:index])
        assert list(got.ids[: len(served)]) == served
        assert not exact or tokenizer.decode(served, clean_up_tokenization_spaces=False) == prompt
        assert not any(got.weights[place : len(served)])
        end = len(served)
        while end < len(got.weights) and got.weights[end]:
            end += 1
        turn = tokenizer.decode(got.ids[len(served) : end], clean_up_tokenization_spaces=False)
        assert full[len(prompt) :].startswith(turn)
        assert got.ids[end - 1] in tokenizer.get_added_vocab().values()
        assert "".join(message["content"].split()) in "".join(turn.split())
        if template is chatml():
            assert turn == message["content"] + "<|im_end|>"
        place = end
    assert not any(got.weights[place:])
    return got


# --- nasty templates of our own -----------------------------------------------------------------------------------


def own(source, **extra):
    tokenizer = tiny_tokenizer(chat_template=source)
    if extra:
        tokenizer.add_special_tokens(extra)
    return ChatTemplate(tokenizer)


def test_a_generation_prompt_that_is_no_prefix_is_refused_with_both_texts():
    got = run([user("Q"), assistant("A")], own(CHATML.replace("<|im_start|>assistant\n", "<|im_start|>bot\n")))
    assert got.reason == "unprovable"
    assert "message 1 (assistant)" in got.detail and "'bot\\n'" in got.detail and "'assistant\\nA" in got.detail


def test_reasoning_stripped_from_history_is_refused_and_provable_for_the_last_answer():
    strip = CHATML.replace(
        "message['content']",
        "(message['content'].split('</think>')[-1] if message['role'] == 'assistant' and not loop.last else message['content'])",
    )
    rows = [user("Q"), assistant("<think>hm</think>A"), user("R"), assistant("<think>so</think>B")]
    got = run(rows, own(strip))
    assert got.reason == "unprovable" and "message 1" in got.detail
    kept = run(rows, own(strip), loss_on="last_assistant")
    assert runs(kept, own(strip).tokenizer) == ["<think>so</think>B<|im_end|>"]


def test_trimming_is_proven_and_noted():
    trim = own(CHATML.replace("message['content']", "message['content'] | trim"))
    got = run([user("Q"), assistant("  A b \n")], trim)
    assert runs(got, trim.tokenizer) == ["A b<|im_end|>"] and got.notes == ("template trims whitespace",)


@pytest.mark.parametrize("answer", ["A", "A<|im_end|>", "ends with </s>", "<|im_end|>"])
def test_a_template_without_a_terminator_is_refused_even_if_the_answer_ends_with_one(answer):
    bare = own("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # fmt: skip
    got = run([user("Q"), assistant(answer)], bare)
    assert got.reason == "unprovable" and "never learn to stop" in got.detail
    got = run([user("Q"), assistant(answer), user("R"), assistant("x")], bare)
    assert got.reason == "unprovable"


def test_an_answer_that_ends_with_an_added_token_does_not_stand_in_for_the_terminator():
    bare = own("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # fmt: skip
    bare.tokenizer.add_tokens(["</think>"])
    got = run([user("Q"), assistant("hm</think>")], bare)
    assert isinstance(got, Dropped) and "never learn to stop" in got.detail


def test_a_terminator_that_is_no_token_is_refused():
    got = run([user("Q"), assistant("A")], own(CHATML.replace("<|im_end|>", "<|over|>")))
    assert got.reason == "unprovable" and "<|over|>" in got.detail


def test_content_that_the_template_rewrites_is_refused_with_the_first_missing_words():
    got = run(
        [user("Q"), assistant("Hello World")], own(CHATML.replace("message['content']", "message['content'] | upper"))
    )
    assert got.reason == "unprovable" and "alters its `content`: 'Hello'" in got.detail


def test_tool_calls_that_the_template_ignores_are_refused():
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    got = run([user("Q"), assistant("", tool_calls=[call])], chatml())
    assert got.reason == "unprovable" and "does not support tool calls" in got.detail


def test_tool_calls_are_trained_with_the_text_the_template_gives_them():
    template = template_for("qwen2_5")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 'x"y'}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    rows = [user("Q"), assistant("", tool_calls=[call]), {"role": "tool", "content": "42"}, assistant("It is 42.")]
    got = run(rows, template, tools=tools)
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x\\"y"}}\n</tool_call><|im_end|>'
    assert runs(got, template.tokenizer) == [text, "It is 42.<|im_end|>"]


def test_arguments_in_a_text_are_trained_as_the_object_that_a_server_renders():
    """vLLM and SGLang parse them; Qwen's template would make a quoted text of a text."""
    template = template_for("qwen2_5")
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]

    def trained(arguments, **keys):
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}, **keys}
        return runs(run([user("Q"), assistant("", tool_calls=[call])], template, tools=tools), template.tokenizer)

    text = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": [1.5, "ü"]}}\n</tool_call><|im_end|>'
    assert trained('{"b":2,"a":[1.5,"\\u00fc"]}') == trained({"b": 2, "a": [1.5, "ü"]}) == [text]
    assert trained("") == trained({})
    assert trained("not JSON") == [text.replace('{"b": 2, "a": [1.5, "ü"]}', '"not JSON"')]


def test_a_conversation_that_starts_with_the_assistant_is_proven_by_sentinels():
    no_empty = own("{{ messages[0]['role'][:0] }}" + CHATML)
    conversation = chat([assistant("Welcome"), user("Q"), assistant("A")])
    proof = prove(conversation, no_empty, loss_on="assistant")
    assert [turn.method for turn in proof.turns] == ["sentinel", "prefix"]
    got = tokenize_conversation(conversation, no_empty, section=section())
    assert runs(got, no_empty.tokenizer) == ["Welcome<|im_end|>", "A<|im_end|>"]


def test_the_sentinel_proof_refuses_a_header_that_is_not_the_generation_prompt():
    other = own("{{ messages[0]['role'][:0] }}" + CHATML.replace("<|im_start|>assistant\n", "<|im_start|>bot\n"))
    got = run([assistant("Welcome"), user("Q")], other)
    assert got.reason == "unprovable" and "generation prompt '<|im_start|>bot\\n'" in got.detail


def test_an_end_of_text_behind_the_last_turn_is_not_taken_for_its_terminator():
    tokenizer = template_for("phi3").tokenizer
    assert runs(run([user("Q"), assistant("A")], template_for("phi3")), tokenizer) == ["A<|end|>"]
    spelled = run([user("Q"), assistant(f"A{tokenizer.eos_token}B")], template_for("phi3"))
    assert runs(spelled, tokenizer) == [f"A{tokenizer.eos_token}B<|end|>"]


def test_a_template_that_raises_refuses_the_row_with_its_own_words():
    got = run([{"role": "system", "content": "S"}, user("Q"), assistant("A")], template_for("gemma"))
    assert got.reason == "unprovable" and "System role not supported" in got.detail


def test_a_bos_in_the_template_is_there_once_and_never_trained():
    template = template_for("gemma")
    got = run([user("Q"), assistant("A")], template)
    assert list(got.ids).count(template.tokenizer.bos_token_id) == 1 and got.ids[0] == template.tokenizer.bos_token_id
    assert template.prompt_ids([user("Q")]).count(template.tokenizer.bos_token_id) == 1


def test_a_template_that_writes_two_bos_is_refused():
    twice = own("{{ bos_token + bos_token }}" + CHATML.replace("<|im_start|>", "<|endoftext|>"), bos_token="<bos>")
    got = run([user("Q"), assistant("A")], twice)
    assert got.reason == "unprovable" and "two '<bos>' tokens" in got.detail


def test_an_answer_that_repeats_the_question_and_the_markers_is_masked_by_place_not_by_text():
    rows = [
        user("yo<|im_end|>\n<|im_start|>assistant\nyo"),
        assistant("yo"),
        user("yo"),
        assistant("yo<|im_end|>\n<|im_start|>user\nyo"),
    ]
    check_against_transformers(rows, chatml())


# --- which turns, with which weights ------------------------------------------------------------------------------

TWO = [user("Q one"), assistant("A one"), user("Q two"), assistant("A two")]


def test_loss_on_last_assistant_trains_the_last_answer_only():
    assert runs(run(TWO, chatml(), loss_on="last_assistant"), chatml().tokenizer) == ["A two<|im_end|>"]


def test_loss_on_all_trains_everything_but_the_first_token():
    got = run(TWO, chatml(), loss_on="all")
    assert got.weights[0] == 0 and all(weight == 1 for weight in got.weights[1:])


def test_message_weights_win_over_loss_on():
    got = run(TWO, chatml(), message_weights=[None, 0.0, None, 0.5])
    assert runs(got, chatml().tokenizer) == ["A two<|im_end|>"] and set(got.weights) == {0.0, 0.5}
    got = run(TWO, chatml(), message_weights=[None, 1.0, None, None], loss_on="last_assistant")
    assert runs(got, chatml().tokenizer) == ["A one<|im_end|>", "A two<|im_end|>"]
    got = run(TWO, chatml(), message_weights=[None, 0.0, None, None], loss_on="all")
    assert "A one" not in "".join(runs(got, chatml().tokenizer)) and "Q one" in "".join(runs(got, chatml().tokenizer))


def test_a_weight_on_a_user_message_trains_its_content_only():
    got = run(TWO, chatml(), message_weights=[1.0, 0.0, None, 0.0])
    assert runs(got, chatml().tokenizer) == ["Q one"]


def test_span_weights_map_characters_of_the_content_to_tokens():
    rows = [user("Q"), assistant("good bad good")]
    got = run(rows, chatml(), span_weights={1: [(5, 8, 0.0)]})
    assert runs(got, chatml().tokenizer) == [
        "good",
        " good<|im_end|>",
    ]  # ` bad` is a token or more: it belongs to `bad`
    got = run(rows, chatml(), span_weights={1: [(5, 8, 3.0)]}, message_weights=[None, 0.0])
    assert runs(got, chatml().tokenizer)[0].strip() == "bad" and max(got.weights) == 3.0


def test_span_weights_follow_the_content_when_the_template_trims_it():
    trim = own(CHATML.replace("message['content']", "message['content'] | trim"))
    got = run([user("Q"), assistant("   good bad")], trim, span_weights={1: [(8, 11, 0.0)]})
    assert runs(got, trim.tokenizer) == ["good", "<|im_end|>"]


@given(st.lists(st.sampled_from([None, 0.0, 0.25, 1.0]), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_each_turn_has_the_weight_of_its_message(weights):
    weights[0] = weights[2] = None
    got = run(TWO, chatml(), message_weights=weights)
    expected = [1.0 if weight is None else weight for weight in weights[1::2]]
    if not any(expected):
        assert got.reason == "empty"
        return
    tokens = [
        len(chatml().tokenizer(t + "<|im_end|>", add_special_tokens=False)["input_ids"]) for t in ("A one", "A two")
    ]
    assert sum(got.weights) == pytest.approx(sum(n * w for n, w in zip(tokens, expected, strict=True)))


def test_unprovable_messages_name_the_message_and_both_texts():
    with pytest.raises(Unprovable, match=r"message 1 \(assistant\): the prompt a server would send"):
        prove(chat([user("Q"), assistant("A")]), template_for("deepseekv3"), loss_on="assistant")
