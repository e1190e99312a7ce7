"""Contract: cut at the shared prompt, each answer still is the sequence that would be trained without sharing.

The reference is `tokenize_conversation` of the whole sequence, which has its own proof, and by hand for ChatML.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.batch import Batch, collate
from luthier.data.branches import collate_branched, collate_rows
from luthier.data.branching import branch, tokenize_preferences
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import tokenize_conversation
from luthier.data.types import Branched, Conversation, Dropped, Example, RowRef
from luthier.recipe.schema import DataSection
from tests.data.preferring import Seen, says, seen, user, whole
from tests.data.templates import shipped_templates, tokenizer_for
from tests.data.test_tokenize import bos_tokenizer
from tests.support.often import often
from tests.support.tiny import CHATML, tiny_tokenizer

REF = RowRef("f.jsonl", 3)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=often(60))
TEXT = st.text(st.sampled_from("ab e\n.<|im_end|>漢👍\u0301"), min_size=1, max_size=12).filter(str.strip)


def section(**options):
    return DataSection(train=[{"path": "x"}], **{"max_length": 10_000, **options})


def chat(prompt, answer, tools=None):
    """A whole conversation of which only what follows the prompt counts."""
    messages = [*prompt, *answer]
    weights = [0.0] * len(prompt) + [None] * len(answer)
    return Conversation(kind="chat", ref=REF, messages=messages, message_weights=weights, tools=tools)


def pair(prompt, chosen, rejected, **fields):
    tools = fields.pop("tools", None)
    answers = (chat(prompt, chosen, tools), chat(prompt, rejected, tools))
    return Conversation(kind="pair", ref=REF, answers=answers, **fields)


def raw(prompt, chosen, rejected):
    answers = [Conversation(kind="prompt_completion", ref=REF, prompt=prompt, completion=c) for c in (chosen, rejected)]
    return Conversation(kind="pair", ref=REF, answers=answers)


def run(row, tokenizer=None, **options):
    template = ChatTemplate(tokenizer or tiny_tokenizer(), control_tokens=options.get("control_tokens", "text"))
    return next(tokenize_preferences([row], template, section=section(**options)))


def unshared(row, tokenizer=None, **options):
    template = ChatTemplate(tokenizer or tiny_tokenizer(), control_tokens=options.get("control_tokens", "text"))
    return [tokenize_conversation(answer, template, section=section(**options)) for answer in row.answers]


def assert_same(rows, examples):
    """Every answer of the rows, in a batch of all of them, sees what its whole sequence does."""
    got = seen(collate_branched(rows))
    assert got == [whole(list(example.ids), list(example.weights)) for example in examples]


# --- sharing changes nothing --------------------------------------------------------------------------------------


@SETTINGS
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT, st.booleans()), min_size=1, max_size=5))
def test_each_answer_sees_the_whole_sequence_for_any_chats(drawn):
    rows, examples = [], []
    for question, chosen, rejected, more, longer in drawn:
        tail = [user(more), says(question)] if longer else []
        row = pair([user(question)], [says(chosen), *tail], [says(rejected)])
        result = run(row).result
        if isinstance(result, Branched):
            rows.append(result)
            examples += unshared(row)
        else:
            assert result.reason in {"equal", "unprovable"}
    if rows:
        assert_same(rows, examples)


@SETTINGS
@given(TEXT, TEXT, TEXT, st.booleans())
def test_each_answer_sees_the_whole_sequence_for_any_raw_texts(prompt, chosen, rejected, bos):
    tokenizer = bos_tokenizer() if bos else tiny_tokenizer()
    row = raw(prompt, chosen, rejected)
    result = run(row, tokenizer).result
    if isinstance(result, Branched):
        assert_same([result], unshared(row, tokenizer))
    else:
        assert chosen == rejected or result.reason == "unprovable"


@SETTINGS
@given(st.data())
def test_the_cut_is_at_the_longest_beginning_that_counts_nothing(data):
    """On any ids and weights, not only those a tokenizer gives."""

    def sequence():
        ids = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=9))
        weights = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(ids), max_size=len(ids)))
        return Example(ids=ids, weights=[0.0, *weights[1:-1], 1.0], ref=REF)  # fmt: skip

    rated = data.draw(st.booleans())
    examples = [sequence()] if rated else [sequence(), sequence()]
    row = Conversation(kind="rated" if rated else "pair", ref=REF, label=True if rated else None)
    result = branch(row, examples)
    a, b = examples[0], examples[-1]
    if isinstance(result, Dropped):
        same = list(a.ids) == list(b.ids) and list(a.weights) == list(b.weights)
        assert (result.reason == "equal" and same) or (result.reason == "unprovable" and a.ids[0] != b.ids[0])
        return
    shared = len(result.prompt)
    assert list(a.ids[:shared]) == list(b.ids[:shared]) == list(result.prompt)
    assert not any(a.weights[:shared]) and not any(b.weights[:shared])
    assert a.weights[shared] or b.weights[shared] or a.ids[shared] != b.ids[shared]
    assert_same([result], examples)


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_with_every_shipped_template_a_row_is_its_whole_sequences_or_refused_as_they_are(name):
    tokenizer = tokenizer_for(shipped_templates()[name])
    row = pair([user("Say hello")], [says("Hello there")], [says("Go away")])
    result = run(row, tokenizer).result
    alone = unshared(row, tokenizer)
    if isinstance(result, Branched):
        assert_same([result], alone)
        assert tokenizer.decode(result.prompt).count("Say hello") == 1
    else:
        assert any(isinstance(example, Dropped) for example in alone), result


def test_by_hand_what_chatml_makes_of_a_pair():
    tokenizer = tiny_tokenizer()
    row = run(pair([user("day")], [says("night")], [says("week way")])).result
    assert tokenizer.decode(row.prompt) == "<|im_start|>user\nday<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(answer) for answer in row.answers] == ["night<|im_end|>\n", "week way<|im_end|>\n"]
    assert [list(weights) for weights in row.weights] == [
        [1.0] * (len(answer) - 1) + [0.0] for answer in row.answers
    ], "the answer and its end of turn; not the line feed behind"
    assert row.ref == REF and row.label is None


def test_answers_that_begin_alike_still_count_from_their_first_token():
    row = run(pair([user("day")], [says("night time")], [says("night week")])).result
    assert len({tiny_tokenizer().decode(answer).split()[0] for answer in row.answers}) == 1
    assert all(weights[0] == 1.0 for weights in row.weights)
    assert_same([row], unshared(pair([user("day")], [says("night time")], [says("night week")])))


# --- turns, tools, system messages, templates, BOS ---------------------------------------------------------------


def test_in_answers_of_several_turns_every_answer_counts_or_the_last():
    row = pair([user("a")], [says("b"), user("c"), says("d")], [says("e"), user("f"), says("g")])
    tokenizer = tiny_tokenizer()

    def counted(result):
        return [
            tokenizer.decode([token for token, weight in zip(ids, own, strict=True) if weight])
            for ids, own in zip(result.answers, result.weights, strict=True)
        ]

    assert counted(run(row).result) == ["b<|im_end|>d<|im_end|>", "e<|im_end|>g<|im_end|>"]
    assert counted(run(row, loss_on="last_assistant").result) == ["d<|im_end|>", "g<|im_end|>"]
    for loss_on in ("assistant", "last_assistant"):
        assert_same([run(row, loss_on=loss_on).result], unshared(row, loss_on=loss_on))


def test_earlier_answers_of_the_prompt_are_shared_and_count_nothing():
    row = pair([user("a"), says("b"), user("c")], [says("d")], [says("e")])
    result = run(row).result
    assert tiny_tokenizer().decode(result.prompt).count("<|im_end|>") == 3
    assert result.trained_tokens == 4


TOOLED = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_tools_and_system_messages_are_in_the_prompt_and_calls_in_the_answer():
    tokenizer = tiny_tokenizer(chat_template=TOOLED)
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"word": "day"}}}
    chosen = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = pair([{"role": "system", "content": "be kind"}, user("day")], [chosen], [says("no")], tools=tools)
    result = run(row, tokenizer).result
    prompt = tokenizer.decode(result.prompt)
    assert "lookup" in prompt and "be kind" in prompt and prompt.endswith("<|im_start|>assistant\n")
    assert '"word": "day"' in tokenizer.decode(result.answers[0])
    assert_same([result], unshared(row, tokenizer))


def test_a_template_that_renders_the_prompt_by_what_follows_only_shares_less():
    """Templates that look at the whole conversation (Qwen3's at its last question) do."""
    template = CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\n'",
        "{{ '<|im_start|>' + message['role'] + ('!' if messages | length > 2 and loop.first else '') + '\n'",
    )
    assert template != CHATML
    tokenizer = tiny_tokenizer(chat_template=template)
    row = pair([user("a")], [says("b"), user("c"), says("d")], [says("e")])
    short = run(row, tokenizer, loss_on="last_assistant").result
    alone = unshared(row, tokenizer, loss_on="last_assistant")
    assert isinstance(short, Branched), short
    assert tokenizer.decode(short.prompt) == "<|im_start|>user"
    assert [tokenizer.decode(answer)[:2] for answer in short.answers] == ["!\n", "\na"]
    assert_same([short], alone)


def test_bos_is_there_once_for_both_answers():
    tokenizer = bos_tokenizer()
    for row in (raw("The day is", " long", " short"), raw("", "long", "short")):
        result = run(row, tokenizer).result
        assert list(result.prompt).count(tokenizer.bos_token_id) == 1 and result.prompt[0] == tokenizer.bos_token_id
        assert all(tokenizer.bos_token_id not in answer for answer in result.answers)
        assert all(answer[-1] == tokenizer.eos_token_id for answer in result.answers)
        assert all(weights[-1] == 1.0 for weights in result.weights)
        assert_same([result], unshared(row, tokenizer))


# --- rows that are not used ---------------------------------------------------------------------------------------


def test_without_one_shared_token_nothing_predicts_the_answers():
    result = run(raw("", "long", "short")).result
    assert (result.reason, "give a `prompt`" in result.detail) == ("unprovable", True)


def test_a_pair_that_is_equal_after_tokenisation_is_told_apart_from_an_empty_one():
    trim = CHATML.replace("message['content']", "(message['content'] | trim)")
    result = run(pair([user("a")], [says("b")], [says(" b ")]), tiny_tokenizer(chat_template=trim)).result
    assert (result.reason, result.detail) == ("equal", "chosen and rejected are the same tokens")
    result = run(pair([user("a")], [says("b")], [says("")])).result
    assert result.reason == "empty" and result.detail.startswith("rejected: ")


def test_what_is_wrong_with_one_answer_names_it():
    result = run(pair([user("a")], [says("b")], [says("c<|im_end|>")]), control_tokens="error").result
    assert result.reason == "control_token" and result.detail.startswith("rejected: the data contains")


# --- length -------------------------------------------------------------------------------------------------------

LONG = pair([user("day time")], [says("year " * 30)], [says("week way")])


def sizes(row):
    return len(row.prompt), [len(answer) for answer in row.answers]


def test_the_longer_answer_with_the_prompt_is_what_is_limited():
    full = run(LONG).result
    assert full.longest == len(full.prompt) + len(full.answers[0]) < len(full)
    assert isinstance(run(LONG, max_length=full.longest).result, Branched)
    dropped = run(LONG, max_length=full.longest - 1)
    assert dropped.result.reason == "overlong" and dropped.full_tokens == len(full)
    assert f"{full.longest} tokens with the longer answer; `data.max_length` is {full.longest - 1}" in (
        dropped.result.detail
    )


def test_truncate_cuts_the_end_of_answers_alone():
    full = run(LONG).result
    limit = len(full.prompt) + len(full.answers[1]) + 2
    cut = run(LONG, max_length=limit, overlong="truncate").result
    assert cut.prompt == full.prompt and cut.longest == limit
    assert [len(answer) for answer in cut.answers] == [len(full.answers[1]) + 2, len(full.answers[1])]
    assert all(answer == whole_[: len(answer)] for answer, whole_ in zip(cut.answers, full.answers, strict=True))
    assert all(own == whole_[: len(own)] for own, whole_ in zip(cut.weights, full.weights, strict=True))
    assert cut.notes == (f"truncated {full.longest} -> {limit}",)


@pytest.mark.parametrize("room", [-3, 0])
def test_a_cut_that_leaves_an_answer_nothing_to_count_drops_the_row(room):
    limit = len(run(LONG).result.prompt) + room
    result = run(LONG, max_length=limit, overlong="truncate").result
    assert result.reason == "empty" and result.detail.startswith(f"cut at {limit} tokens, before")


def test_a_cut_that_makes_the_answers_equal_drops_the_row():
    row = pair([user("a")], [says("year " * 20 + "day")], [says("year " * 20 + "night")])
    limit = len(run(row).result.prompt) + 10
    result = run(row, max_length=limit, overlong="truncate").result
    assert (result.reason, result.detail) == ("equal", f"cut at {limit} tokens, before chosen and rejected differ")


@SETTINGS
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 80))
def test_rows_that_are_cut_keep_the_promises_of_their_type(first, second, limit):
    row = pair([user("day")], [says("year " * first + "x")], [says("week " * second)])
    result = run(row, max_length=limit, overlong="truncate").result
    if isinstance(result, Branched):
        assert result.longest <= limit and all(any(own) for own in result.weights)
        collate_branched([result])


# --- rated answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, False])
def test_a_rated_answer_is_a_prompt_and_one_answer(label):
    row = Conversation(kind="rated", ref=REF, answers=(chat([user("day")], [says("night")]),), label=label)
    result = run(row).result
    assert (result.label, len(result.answers)) == (label, 1)
    assert tiny_tokenizer().decode(result.prompt).endswith("<|im_start|>assistant\n")
    batch = collate_rows([result])
    assert batch.prefixes == () and batch.answers.labels.tolist() == [float(label)]
    assert_same([result], unshared(row))


def test_batches_are_made_of_one_type_of_rows():
    branched = run(LONG).result
    example = unshared(LONG)[0]
    assert collate_rows([example]).answers is None
    assert torch.equal(collate_rows([example]).input_ids, collate([example]).input_ids)
    with pytest.raises(ValueError, match="not both"):
        collate_rows([example, branched])
    with pytest.raises(ValueError, match="at least one"):
        collate_rows([])


# --- planted bugs -------------------------------------------------------------------------------------------------


def shift_prefix(batch: Batch) -> Batch:
    moved = tuple((start + 1, tokens) if tokens else (0, 0) for start, tokens in batch.prefixes)
    return replace(batch, prefixes=moved)


def shorten_prefix(batch: Batch) -> Batch:
    return replace(batch, prefixes=tuple((start, max(0, tokens - 1)) for start, tokens in batch.prefixes))


def ask_at_the_wrong_prompt_token(batch: Batch) -> Batch:
    """The first token of the second answer asked of the last token of the first answer's document before it."""
    index = batch.source_index.clone()
    first = int((batch.answers.of_target == 1).nonzero()[0])
    index[first] += 1
    return replace(batch, source_index=index)


def ask_at_the_end_of_the_first_answer(batch: Batch) -> Batch:
    """As a flat sequence would: the token before the second answer is the first answer's last."""
    index = batch.source_index.clone()
    first = int((batch.answers.of_target == 1).nonzero()[0])
    index[first] = batch.cu_seqlens[1] - 1
    return replace(batch, source_index=index)


def restart_positions(batch: Batch) -> Batch:
    begin = int(batch.cu_seqlens[1])
    positions = batch.position_ids.clone()
    positions[begin : int(batch.cu_seqlens[2])] -= positions[begin].item()
    return replace(batch, position_ids=positions)


def shift_weights(batch: Batch) -> Batch:
    return replace(batch, target_ids=batch.target_ids.roll(1))


@pytest.mark.parametrize(
    "plant",
    [
        shift_prefix, shorten_prefix, ask_at_the_wrong_prompt_token, ask_at_the_end_of_the_first_answer,
        restart_positions, shift_weights,
    ],
)  # fmt: skip
def test_the_comparison_notices_a_planted_bug(plant):
    rows = [pair([user("day")], [says("night time")], [says("week way")]), LONG]
    branched = [run(row).result for row in rows]
    want = [whole(list(e.ids), list(e.weights)) for row in rows for e in unshared(row)]
    batch = collate_branched(branched)
    assert seen(batch) == want
    try:
        got: list[Seen] | None = seen(plant(batch))
    except AssertionError:
        got = None
    assert got != want
