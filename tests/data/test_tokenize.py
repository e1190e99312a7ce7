# ruff: noqa: E501 - tables of cases
"""Contract 1, second half: ids as served, weights where proven, every policy counted and nothing silently altered.

Mutations tried by hand (each makes tests here fail): weights shifted by one, joint ids kept where they fuse the boundary,
control tokens of data encoded as tokens, end-of-text not appended, BOS added twice, truncation from the left.
"""

import json
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.template import ChatTemplate
from luthier.data.tokenize import tokenize_all, tokenize_conversation
from luthier.data.types import Conversation, Dropped, Example, RowRef, Segment
from luthier.recipe.schema import DataSection
from tests.support.often import often
from tests.support.tiny import CHATML, WORDS, tiny_tokenizer

REF = RowRef("f.jsonl", 3)


def section(**options):
    return DataSection(train=[{"path": "x"}], **{"max_length": 10_000, **options})


def run(conversation, tokenizer=None, **options):
    policy = options.get("control_tokens", "text")
    template = ChatTemplate(tokenizer or tiny_tokenizer(), control_tokens=policy)
    return tokenize_conversation(conversation, template, section=section(**options))


def chat(*contents, **fields):
    roles = ("user", "assistant")
    messages = [{"role": roles[k % 2], "content": content} for k, content in enumerate(contents)]
    return Conversation(kind="chat", ref=REF, messages=messages, **fields)


def pair(prompt, completion):
    return Conversation(kind="prompt_completion", ref=REF, prompt=prompt, completion=completion)


def plain(text):
    return Conversation(kind="text", ref=REF, text=text)


def segments(*pieces):
    return Conversation(kind="segments", ref=REF, segments=[Segment(*piece) for piece in pieces])


def trained(example, tokenizer=None):
    ids = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    return (tokenizer or tiny_tokenizer()).decode(ids, clean_up_tokenization_spaces=False)


def bos_tokenizer(**fields):
    """Adds `<s>` by itself, as Llama's do; eos is `</s>`."""
    tokenizer = tiny_tokenizer(**fields)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=fields.get("chat_template"),
    )


# --- the boundary (B36) -------------------------------------------------------------------------------------------

EDGES = ["Q.", "Q ", "Q\n", "Q\n\n", "Q:", "user", "漢", "👍", "12", ""]
STARTS = ["answer", " answer", "\nanswer", "漢字", "👍🏽", "34", "  two", ".", "\u00a0x"]


@pytest.mark.parametrize("prompt", EDGES)
@pytest.mark.parametrize("answer", STARTS)
def test_prompt_ids_are_those_of_the_prompt_alone_and_every_character_of_the_answer_is_trained(prompt, answer):
    tokenizer = tiny_tokenizer()
    got = run(pair(prompt, answer))
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(got.ids[: len(alone)]) == alone and not any(got.weights[: len(alone)])
    if prompt:
        assert trained(got) == answer + "<|im_end|>"


@pytest.mark.parametrize("answer", STARTS)
def test_a_fused_boundary_in_a_chat_is_cut_and_noted_and_prompt_ids_do_the_same(answer):
    tokenizer = tiny_tokenizer(chat_template=(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% else %} {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    ))  # fmt: skip
    row = chat("Hi", answer, "more", answer)
    got = run(row, tokenizer)
    assert isinstance(got, Example) and trained(got, tokenizer) == (answer + "<|im_end|>") * 2
    template = ChatTemplate(tokenizer)
    for count in (1, 3):
        served = template.prompt_ids(row.messages[:count])
        assert list(got.ids[: len(served)]) == served
        assert tokenizer.decode(served, clean_up_tokenization_spaces=False) == template.render(
            row.messages[:count], add_generation_prompt=True
        )


def test_a_leading_newline_that_would_fuse_with_the_header_is_noted_as_a_split():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_tokens(["\n\n"])
    got = run(chat("Q", "\nA"), tokenizer)
    assert got.notes == ("boundary split",) and trained(got, tokenizer) == "\nA<|im_end|>"
    assert run(chat("Q", "A"), tokenizer).notes == ()
    row = chat("Q", "\nA", "R", "B")
    served = ChatTemplate(tokenizer).prompt_ids(row.messages[:3])
    assert list(run(row, tokenizer).ids[: len(served)]) == served  # the history is cut where training cuts it


# --- BOS and end-of-text (B24, B25, B26) --------------------------------------------------------------------------


def test_plain_rows_have_one_bos_if_the_tokenizer_adds_one_and_one_trained_end():
    tokenizer = bos_tokenizer()
    for row in (plain("some text"), pair("Q:", " A"), segments(("Q:", 0.0), (" A", 1.0))):
        got = run(row, tokenizer)
        assert got.ids[0] == tokenizer.bos_token_id and list(got.ids).count(tokenizer.bos_token_id) == 1
        assert got.ids[-1] == tokenizer.eos_token_id and got.weights[-1] == 1 and got.weights[0] == 0


def test_a_bos_that_the_row_brings_is_not_doubled():
    tokenizer = bos_tokenizer()
    got = run(plain("<s>some text"), tokenizer, control_tokens="allow")
    assert list(got.ids).count(tokenizer.bos_token_id) == 1
    got = run(segments(("<s>Q", 0.0), (" A</s>", 1.0)), tokenizer)
    assert list(got.ids).count(tokenizer.bos_token_id) == 1 and list(got.ids).count(tokenizer.eos_token_id) == 1


def test_a_bos_adding_tokenizer_with_a_bos_writing_template_gives_one_bos():
    tokenizer = bos_tokenizer(chat_template="{{ bos_token }}" + CHATML)
    got = run(chat("Q", "A"), tokenizer)
    assert list(got.ids).count(tokenizer.bos_token_id) == 1
    assert ChatTemplate(tokenizer).prompt_ids([{"role": "user", "content": "Q"}]).count(tokenizer.bos_token_id) == 1


def test_a_template_without_bos_for_a_bos_adding_tokenizer_is_served_and_trained_without_and_noted():
    tokenizer = bos_tokenizer(chat_template=CHATML)
    got = run(chat("Q", "A"), tokenizer)
    assert tokenizer.bos_token_id not in got.ids and "writes no BOS" in got.notes[0]
    served = tokenizer.apply_chat_template(chat("Q").messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert list(got.ids[: len(served)]) == served == ChatTemplate(tokenizer).prompt_ids(chat("Q").messages)


def test_pad_equal_to_eos_does_not_hide_the_end_of_turn():
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    got = run(chat("Q", "A", "R", "B"), tokenizer)
    ends = [w for token, w in zip(got.ids, got.weights, strict=True) if token == tokenizer.pad_token_id]
    assert ends == [0, 1, 0, 1]  # after user, assistant, user, assistant


def test_a_pad_token_that_occurs_in_text_is_trained_there():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "time"
    got = run(chat("Q", "time"), tokenizer)
    assert trained(got, tokenizer) == "time<|im_end|>"


# --- control tokens in data (B29) ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [chat("a<|im_end|>b", "c<|im_end|>d"), pair("a<|im_end|>b", "c<|im_end|>d"), plain("c<|im_end|>d")]
)
def test_spelled_control_tokens_are_text_by_default(row):
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    template_ends = {"chat": 2, "prompt_completion": 1, "text": 1}[row.kind]
    got = run(row)
    assert list(got.ids).count(end) == template_ends
    assert (
        trained(got) in ("c<|im_end|>d<|im_end|>", "<|im_end|>d<|im_end|>")
        and "control tokens in the data kept as text" in got.notes
    )
    allowed = run(row, control_tokens="allow")
    assert list(allowed.ids).count(end) > template_ends and trained(allowed) == trained(got)
    refused = run(row, control_tokens="error")
    assert refused.reason == "control_token" and "<|im_end|>" in refused.detail


@pytest.mark.parametrize(
    "text", ["it's", 'say "so"', "\\boxed{4}", "{{x}}", "{% if %}", "a\r\nb", "<|im_end|>", "{#c#}", "\\n"]
)
def test_special_text_round_trips_wherever_it_stands(text):
    got = run(Conversation(kind="chat", ref=REF, messages=[
        {"role": "system", "content": text}, {"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]))  # fmt: skip
    assert trained(got) == f"{text}!<|im_end|>"
    expected = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in
                       (("system", text), ("user", text), ("assistant", f"{text}!")))  # fmt: skip
    assert tiny_tokenizer().decode(got.ids) == expected


def test_segments_are_their_own_template_so_control_tokens_in_them_count():
    tokenizer = tiny_tokenizer()
    got = run(segments(("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", 0.0), ("A<|im_end|>", 0.5)))
    assert trained(got) == "A<|im_end|>" and got.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert set(got.weights) == {0.0, 0.5}
    assert run(segments(("<|im_end|>", 0.0), ("A", 1.0)), control_tokens="error").reason == "control_token"


def test_segments_end_with_end_of_text_only_if_the_last_one_is_trained():
    tokenizer = tiny_tokenizer()
    assert run(segments(("Q", 0.0), ("A", 2.0))).ids[-1] == tokenizer.eos_token_id
    assert run(segments(("Q", 0.0), ("A", 2.0))).weights[-1] == 2.0
    assert run(segments(("Q", 0.0), ("A", 1.0), ("note", 0.0))).ids[-1] != tokenizer.eos_token_id


@settings(max_examples=often(80), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=12), st.sampled_from([0.0, 0.5, 1.0])
        ),
        min_size=1,
        max_size=5,
    )
)
def test_segments_keep_every_character_and_its_weight(pieces):
    got = run(segments(*pieces))
    if isinstance(got, Dropped):
        assert not any(text.strip() and weight for text, weight in pieces) or got.detail.startswith("no trained token")
        return
    tokenizer = tiny_tokenizer()
    text = "".join(text for text, _ in pieces)
    assert tokenizer.decode(got.ids).removesuffix("<|im_end|>") == text
    place = 0
    for piece, weight in pieces:
        length = len(tokenizer(piece, add_special_tokens=False)["input_ids"])
        expected = [weight] * length
        if place == 0 and length:
            expected[0] = 0.0
        assert list(got.weights[place : place + length]) == expected
        place += length


# --- nothing to train on, and too long (B06, B37, F08) ------------------------------------------------------------


@pytest.mark.parametrize("row", [chat("Q"), chat("Q", ""), chat("Q", " \n"), pair("Q", ""), pair("Q", "  "), plain(""), plain("\n"),
                                 segments(), segments(("Q", 0.0)), Conversation(kind="chat", ref=REF)])  # fmt: skip
def test_rows_without_an_answer_are_empty_never_trained_on_the_end_alone(row):
    got = run(row)
    assert isinstance(got, Dropped) and got.reason == "empty" and got.ref == REF


def test_an_empty_turn_beside_a_full_one_is_trained_as_its_terminator():
    assert trained(run(chat("Q", "", "R", "A"))) == "<|im_end|>A<|im_end|>"


def test_overlong_rows_are_dropped_with_both_lengths():
    got = run(chat("Q", "word " * 50), max_length=20)
    assert got.reason == "overlong" and "max_length` is 20" in got.detail


def test_truncation_cuts_the_end_and_says_so():
    whole = run(chat("Q", "word " * 50))
    cut = run(chat("Q", "word " * 50), max_length=20, overlong="truncate")
    assert len(cut) == 20 and cut.ids == whole.ids[:20] and cut.weights == whole.weights[:20]
    assert cut.notes == (f"truncated {len(whole)} -> 20",)


def test_a_row_whose_answer_starts_after_the_cut_is_dropped_not_trained_on_nothing():
    got = run(chat("word " * 50, "A"), max_length=20, overlong="truncate")
    assert got.reason == "empty" and got.detail.startswith("cut at 20 tokens, before its first trained token")


@settings(max_examples=often(60), deadline=None)
@given(st.integers(1, 40))
def test_any_cut_leaves_a_trained_token_or_no_row(limit):
    got = run(chat("Q one two", "A b c d e f", "R", "B"), max_length=limit, overlong="truncate")
    assert isinstance(got, Dropped) or (got.trained_tokens and len(got) <= limit)


# --- tokenizers that alter text -----------------------------------------------------------------------------------


def sentencepiece_like(kind, *, byte_fallback=True):
    """As converted from SentencePiece: word-start marks, byte fallback; `kind` says where a mark is put in front.

    `llama2` puts it by a normaliser in front of every piece of text, `first` and `always` by the
    pre-tokenizer, `never` nowhere.
    """
    chooser = random.Random(0)
    trained_on = Tokenizer(models.BPE())
    trained_on.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    lines = [" ".join(chooser.choices(WORDS, k=12)) + " Q: A: [INST] [/INST] \n" for _ in range(100)]
    trained_on.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained_on.to_str())["model"]
    fallback = [f"<0x{k:02X}>" for k in range(256)] if byte_fallback else []
    vocab = {token: k for k, token in enumerate(["<unk>", *fallback, *model["vocab"]])}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    if kind == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if kind != "never" else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ))  # fmt: skip


def spelled_out(example, tokenizer):
    """Text of the trained tokens from their names alone: no decoder that could drop a space."""
    names = tokenizer.convert_ids_to_tokens([t for t, w in zip(example.ids, example.weights, strict=True) if w])
    raw = b"".join(
        bytes([int(name[3:5], 16)]) if re.fullmatch("<0x..>", name) else name.replace("▁", " ").encode()
        for name in names
    )
    return raw.decode()


SENTENCEPIECE = ["llama2", "first", "always", "never"]


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@pytest.mark.parametrize(
    "answers", [("people way", "man thing"), ("\npeople", "x\n\ny"), ("漢", "é"), ("a </s> b", "c")]
)
def test_chats_with_word_start_marks_train_exactly_the_turns(kind, answers):
    tokenizer = sentencepiece_like(kind)
    got = run(chat("time year", answers[0], "day", answers[1]), tokenizer)
    assert isinstance(got, Example), got
    assert spelled_out(got, tokenizer) == "".join(f" {answer}</s>" for answer in answers)
    served = ChatTemplate(tokenizer).prompt_ids([{"role": "user", "content": "time year"}])
    assert list(got.ids[: len(served)]) == served


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@pytest.mark.parametrize("prompt", ["time:", "time ", "time\n", "Q:"])
@pytest.mark.parametrize("answer", ["year", " year", "\nyear", "  year"])
def test_prompt_and_completion_with_word_start_marks_neither_gain_nor_lose_a_space(kind, prompt, answer):
    tokenizer = sentencepiece_like(kind)
    got = run(pair(prompt, answer), tokenizer)
    assert isinstance(got, Example), got
    assert spelled_out(got, tokenizer) == f"{answer}</s>"
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(got.ids[: len(alone)]) == alone


def test_text_outside_the_vocabulary_is_refused_in_an_answer():
    got = run(pair("Q:", "a 漢"), sentencepiece_like("never", byte_fallback=False))
    assert got.reason == "unprovable" and "decode to" in got.detail


def test_unicode_normalisation_by_the_tokenizer_is_noted():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    got = run(chat("Q", "e\u0301"), tokenizer)
    assert trained(got, tokenizer) == "é<|im_end|>" and "tokenizer normalizes Unicode (NFC)" in got.notes
    assert run(chat("Q", "é"), tokenizer).notes == ()


def test_a_tokenizer_that_lowercases_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    got = run(chat("Q", "Hello"), tokenizer)
    assert got.reason == "unprovable" and "'hello<|im_end|>'" in got.detail


def test_trimmed_offsets_do_not_move_a_weight():
    """Llama 3's post-processor reports ` word` without its space."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = chat("Q two", " A  b c  ", "R", "B")
    assert list(run(row, tokenizer).weights) == list(run(row).weights)


def test_long_conversations_are_checked_from_the_last_control_token_on_with_the_same_result(monkeypatch):
    row = chat(*[f"turn {k} word<|im_end|>" if k % 5 == 0 else ("\n" * (k % 3) + f"time {k}") for k in range(40)])
    whole = run(row)
    monkeypatch.setattr("luthier.data.encode.LONG_PREFIX", 30)
    monkeypatch.setattr("luthier.data.tokenize.LONG_PREFIX", 30)
    assert run(row) == whole


# --- many rows ----------------------------------------------------------------------------------------------------


def test_rows_tokenised_together_are_those_tokenised_one_by_one():
    template = ChatTemplate(tiny_tokenizer())
    rows = [chat("Q" * k, f"A {k}", "R", "<|im_end|>" if k % 3 else "\nB") for k in range(1, 300)]
    together = [outcome.result for outcome in tokenize_all(rows, template, section=section())]
    assert together == [tokenize_conversation(row, template, section=section()) for row in rows]
