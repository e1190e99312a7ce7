"""Contract: over pages, each answer is the greedy answer to its prompt alone: any order, batch, memory."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.generation.generate import generate
from luthier.generation.paged.continuous import Counts
from luthier.generation.paged.model import PagedModel, Shape
from luthier.generation.paged.run import answer_all
from luthier.generation.paged.support import shape_of
from luthier.runtime.errors import OutOfMemory, RunFailed
from tests.generation.test_generate import STOP, _config, alone, prompts, reference
from tests.support.tiny import tiny_model, tiny_tokenizer

MODEL = tiny_model(seed=3)
ROWS = prompts(11, low=1, high=150, seed=2)


@cache
def by_hand():
    """Stop tokens and answers; when a test asks, for every worker collects all tests."""
    return alone(MODEL, ROWS, 40)


def paged_answers(model, rows, new, stops, *, batch_size=4, capacity=1 << 20, shared=0, counts=None):
    with torch.no_grad():
        shape = shape_of(model)
        assert isinstance(shape, Shape), shape
        found = dict(
            answer_all(
                model, shape, rows, max_new_tokens=new, stop_ids=frozenset(stops), batch_size=batch_size,
                capacity=capacity, shared=shared, on_tokens=lambda new: None, counts=counts,
            )
        )  # fmt: skip
    return [found[index] for index in range(len(rows))]


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 12), pages=st.integers(4, 20))
def test_answers_do_not_depend_on_order_batch_or_memory(seed, batch_size, pages):
    stops, expected = by_hand()
    order = list(range(len(ROWS)))
    random.Random(seed).shuffle(order)
    counts = Counts()
    found = paged_answers(
        MODEL, [ROWS[i] for i in order], 40, stops, batch_size=batch_size, capacity=pages * 64, counts=counts
    )
    assert found == [expected[i] for i in order]
    assert len({len(answer) for answer in expected}) > 2, "some answers must stop early"
    assert counts.tokens == sum(map(len, expected))


def test_rows_that_are_sent_back_say_the_same_again():
    # Answers cross a page, and the pool has no page for every row that does.
    rows = [row[:60] for row in ROWS if len(row) >= 60][:4]
    expected = [reference(MODEL, row, 80, ()) for row in rows]
    counts = Counts()
    assert paged_answers(MODEL, rows, 80, (), batch_size=4, capacity=7 * 64, counts=counts) == expected
    assert counts.preempted > 0


def test_rows_enter_while_others_go_on():
    rows = [ROWS[0][:9]] * 8
    said = reference(MODEL, rows[0], 40, ())
    counts = Counts()
    found = paged_answers(MODEL, rows, 40, (said[3],), batch_size=4, counts=counts)
    assert all(answer == said[: said.index(said[3]) + 1] for answer in found)
    assert counts.steps < 2 * 40, "nobody waits for the longest answer there could be"
    assert counts.waits <= counts.steps + counts.reads, "the host waits once a forward"


def test_what_all_prompts_begin_with_is_read_once():
    rows = prompts(6, shared=140, seed=4)
    expected = [reference(MODEL, row, 20) for row in rows]
    read = []
    original = PagedModel.read

    class Watched(PagedModel):
        def read(self, parts, seen=None):
            read.append(sum(len(tokens) for _, tokens in parts))
            return original(self, parts, seen)

    with torch.no_grad():
        from luthier.generation.paged import continuous

        shape = shape_of(MODEL)
        paged = Watched(MODEL, shape, slots=7, tokens=4096, context=512)
        with paged.ready():
            found = dict(continuous.answers(paged, rows, max_new_tokens=20, stop_ids=frozenset([STOP]), shared=140))
    assert [found[i] for i in range(6)] == expected
    assert sum(read) == 128 + sum(len(row) - 128 for row in rows)
    assert paged.pool.used == 0 and paged.free_slots == 7


@pytest.mark.parametrize("kind", ["mistral, window of 6", "qwen3, mixed", "gemma3, mixed", "gpt2, learned positions"])
def test_other_architectures(kind):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(kind)).float().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    rows = prompts(5, seed=5, low=2, high=90)
    expected = [reference(model, row, 30, ()) for row in rows]
    before = model.config._attn_implementation
    assert paged_answers(model, rows, 30, (), batch_size=3) == expected
    assert model.config._attn_implementation == before


def test_softcaps_and_windows():
    import transformers as tf

    torch.manual_seed(0)
    mixed = ["sliding_attention", "full_attention"]
    model = tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=8, layer_types=mixed, attn_logit_softcapping=0.05,
            attn_implementation="eager",
        )
    ).float().eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = prompts(4, seed=6, low=2, high=90)
    assert paged_answers(model, rows, 20, (), batch_size=3) == [reference(model, row, 20, ()) for row in rows]


@pytest.mark.parametrize("kind", ["bloom, alibi", "mamba, no such cache", "lfm2, states beside the cache"])
def test_models_that_pages_do_not_suit_are_named(kind):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(kind)).float().eval()
    with torch.no_grad():
        assert isinstance(shape_of(model), str)
    with pytest.raises(RunFailed, match="cannot be answered over pages"):
        generate(model, tiny_tokenizer(), [[3, 4]], max_new_tokens=2, stop_ids=[2], batch_size=1, paged=True)


def test_an_attention_with_more_than_pages_have_is_found_by_asking(monkeypatch):
    # A planted bug: pages forget the first token.
    from luthier.generation.paged import kernels

    original = kernels.attend_reference

    def forgetful(q, keys, values, look, **settings):
        return original(q, keys, values, look, **{**settings, "window": 8})

    monkeypatch.setattr(kernels, "attend_reference", forgetful)
    with torch.no_grad():
        assert "of their spread" in shape_of(tiny_model(seed=4))


def test_through_generate_with_an_adapter():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny_model(seed=5), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    rows = prompts(5, seed=7)
    plain = generate(model, tiny_tokenizer(), rows, max_new_tokens=20, stop_ids=[STOP], batch_size=3, paged=False)
    base = generate(model.get_base_model(), tiny_tokenizer(), rows, max_new_tokens=1, stop_ids=[], batch_size=3)
    model.train()
    found = generate(model, tiny_tokenizer(), rows, max_new_tokens=20, stop_ids=[STOP], batch_size=3, paged=True)
    assert [a.ids for a in found] == [a.ids for a in plain] and found == plain
    assert model.training and len(base) == 5


def test_a_row_that_does_not_fit_is_refused_with_numbers():
    with pytest.raises(OutOfMemory, match="need 190 tokens of cache, 128 fit"):
        paged_answers(MODEL, [[3] * 150], 40, (), capacity=128)


def test_logits_that_are_not_finite_are_an_error():
    model = tiny_model(seed=6)
    with torch.no_grad():
        shape = shape_of(model)
        model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(RunFailed, match="not finite"):
            list(answer_all(model, shape, [[3, 4]], max_new_tokens=4, stop_ids=frozenset(), batch_size=1,
                            capacity=640, shared=0, on_tokens=lambda new: None))  # fmt: skip
