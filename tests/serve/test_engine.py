"""Contract: whenever requests join and leave, each gets the greedy answer it would get alone."""

import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.generation.generate import generate
from luthier.runtime.errors import EnvironmentProblem
from luthier.serve.engine.adapters import Adapter
from luthier.serve.engine.prefixes import Kept, PrefixStore
from luthier.serve.engine.request import Sampling
from luthier.serve.engine.scheduler import EngineLimits, QueueFull, Waiting
from luthier.serve.engine.slots import Slots
from tests.serve.asking import TOKENIZER, Running, ask
from tests.support.scripted import chain, scripted_model
from tests.support.tiny import tiny_model


def prompts(n, *, seed=0, low=1, high=60):
    chooser = random.Random(seed)
    return [[chooser.randrange(3, 600) for _ in range(chooser.randint(low, high))] for _ in range(n)]


def alone(model, rows, new, stops=(2,)):
    """Greedy answers of `luthier.generation`, one prompt at a time."""
    return [generate(model, TOKENIZER, [row], max_new_tokens=new, stop_ids=stops, batch_size=1)[0] for row in rows]


def stops_of(model, rows):
    """Stop tokens that end some answers early: taken from the answers themselves."""
    said = alone(model, rows[:2], 30, ())
    return (said[0].ids[3], said[1].ids[9])


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    prefill=st.integers(1, 70),
    cache=st.sampled_from([1 << 40, 200]),
    kept=st.sampled_from([0, 100, 1 << 12]),
    paged=st.booleans(),
)
def test_answers_do_not_depend_on_who_else_is_there(seed, batch, prefill, cache, kept, paged):
    chooser = random.Random(seed)
    rows = prompts(9, seed=seed)
    for index in (4, 5, 6):  # begin as an earlier one does
        rows[index] = rows[index - 3][: chooser.randint(1, 60)] + rows[index]
    stops = stops_of(MODEL, rows)
    budgets = [chooser.randint(1, 30) for _ in rows]
    with Running(
        MODEL, max_batch_size=batch, prefill_tokens=prefill, cache_tokens=cache, prefix_tokens=kept, paged=paged
    ) as engine:
        asked = []
        for row, new in zip(rows, budgets, strict=True):
            asked.append(ask(row, new=new, stop_ids=stops))
            engine.submit(asked[-1].request)
            if chooser.random() < 0.5:
                time.sleep(chooser.random() * 0.01)  # the others get on meanwhile
            if chooser.random() < 0.2:
                engine.cancel(chooser.choice(asked).request)
        for one in asked:
            one.wait()
        assert engine.running == engine.waiting == len(engine.slots) == 0
        if paged:
            engine.prefixes.clear()
            assert engine.slots.paged.free_slots == batch
        assert engine.slots.bytes == 0
    finished = 0
    for row, new, one in zip(rows, budgets, asked, strict=True):
        expected = alone(MODEL, [row], new, stops)[0]
        if one.finish == "cancelled":
            assert one.ids == expected.ids[: len(one.ids)]
            continue
        finished += 1
        assert (one.ids, one.text, one.finish) == (expected.ids, expected.text, expected.finish_reason)
    assert finished >= 3


MODEL = tiny_model(seed=3)


def other_models():
    import transformers as tf

    small = {
        "vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 16, "pad_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    mixed = ["sliding_attention", "full_attention"] * 2
    return {
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**small)),
        "mistral, window 8": lambda: tf.MistralForCausalLM(tf.MistralConfig(**small, sliding_window=8)),
        "gemma3, window 8": lambda: tf.Gemma3ForCausalLM(
            tf.Gemma3TextConfig(**small, sliding_window=8, layer_types=mixed)
        ),
        "gemma2, softcap": lambda: tf.Gemma2ForCausalLM(
            tf.Gemma2Config(**small, sliding_window=8, layer_types=mixed, attn_implementation="eager")
        ),
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=600, n_embd=64, n_layer=2, n_head=4, n_positions=512)
        ),
    }


@pytest.mark.parametrize("name", list(other_models()))
def test_other_architectures_too(name):
    torch.manual_seed(0)
    model = other_models()[name]().float().eval()
    rows = prompts(5, seed=1, low=2, high=40)
    expected = alone(model, rows, 24, ())
    with Running(model, max_batch_size=3, prefill_tokens=16) as engine:
        asked = [ask(row, new=24, stop_ids=()) for row in rows]
        engine.submit(*(one.request for one in asked))
        assert [one.wait().ids for one in asked] == [answer.ids for answer in expected]


def test_a_recurrent_model_is_refused_with_the_way_out():
    import transformers as tf

    model = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=600, hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(EnvironmentProblem, match=r"S601.*\n.*vllm"):
        Slots(model)


def test_a_long_prompt_does_not_stall_an_answer_under_way():
    order = []
    with Running(MODEL, max_batch_size=4, prefill_tokens=16) as engine:
        first = ask([5, 6, 7], new=60, stop_ids=(), on_piece=lambda _: order.append("first"))
        long = ask([8] * 320, new=1, stop_ids=(), on_piece=lambda _: order.append("long"))
        engine.submit(first.request)
        while not order:
            time.sleep(0.001)
        engine.submit(long.request)
        first.wait(), long.wait()
        seen = order.index("long")
    # 320 tokens in parts of 16: twenty passes, each of which gave the first answer a token.
    assert 20 <= seen <= 60


def test_a_cancelled_request_frees_its_slot_at_once():
    with Running(MODEL, max_batch_size=1, max_queue=1) as engine:
        under_way = threading.Event()  # the engine waits at the first piece: else it may be done before all are asked
        first = ask([5, 6], new=400, stop_ids=(), on_piece=lambda _: under_way.wait(60))
        second = ask([7, 8], new=3, stop_ids=())
        engine.submit(first.request)
        engine.submit(second.request)
        with pytest.raises(QueueFull) as full:
            for _ in range(3):
                engine.submit(ask([9], new=3).request)
        assert 1.0 <= full.value.retry_after <= 60.0
        engine.cancel(first.request)
        under_way.set()
        assert second.wait().finish == "length"
        assert first.finish == "cancelled" and len(first.ids) < 400


def test_deadlines_and_shutdown_end_requests_with_a_reason():
    with Running(MODEL, max_batch_size=1) as engine:
        late = ask([5, 6], new=400, stop_ids=(), deadline=time.monotonic() + 0.05)
        queued = ask([5, 6], new=4, stop_ids=(), deadline=time.monotonic() + 0.01)
        engine.submit(late.request, queued.request)
        assert late.wait().finish == queued.wait().finish == "timeout"

        def closing(_):
            while not engine._closing:
                time.sleep(0.001)

        left = ask([5, 6], new=500, stop_ids=(), on_piece=closing)
        engine.submit(left.request)
    assert left.wait().finish == "error" and "shutting down" in left.pieces[-1].problem


def test_a_step_that_fails_ends_its_requests_and_not_the_engine():
    model = tiny_model(seed=1)
    with Running(model) as engine:
        bad = ask([5, 700_000], new=3)  # an id without an embedding
        engine.submit(bad.request)
        assert bad.wait().finish == "error"
        good = ask([5, 6], new=3, stop_ids=())
        engine.submit(good.request)
        assert good.wait().ids == alone(model, [[5, 6]], 3, ())[0].ids


def test_output_that_is_not_finite_ends_only_the_row_it_is_in():
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = float("nan")
    with Running(model) as engine:
        bad, good = ask([5, 77], new=3), ask([5, 6], new=3, stop_ids=())
        engine.submit(bad.request, good.request)
        assert bad.wait().finish == "error" and "finite" in bad.pieces[-1].problem
        assert good.wait().finish == "length"


def test_stop_strings_end_an_answer_at_once_across_tokens():
    words = TOKENIZER("time year people way", add_special_tokens=False)["input_ids"]
    model = scripted_model(chain(50, *words, 50))
    whole = TOKENIZER.decode([*words])
    stop = whole[2:-2]
    with Running(model) as engine:
        asked = ask([50], new=40, stop=("nowhere", stop))
        engine.submit(asked.request)
        assert asked.wait().text == whole[:2] and asked.finish == "stop"
        assert len(asked.ids) <= len(words)


def test_admission_keeps_rows_times_width_within_memory_and_lets_nobody_overtake():
    waiting = Waiting(EngineLimits(max_batch_size=8, cache_tokens=100))
    wide, narrow = ask([1] * 70, new=10).request, ask([1], new=1).request
    waiting.add(wide), waiting.add(narrow)
    assert waiting.admit([]) == [wide]
    assert waiting.admit([wide]) == [], "two rows of 80 columns do not fit into 100"
    assert waiting.admit([]) == [narrow]


def test_same_seed_same_answer_and_other_seeds_other_answers():
    def answers(seeds):
        with Running(MODEL, max_batch_size=8) as engine:
            asked = [
                ask([5, 6, 7], new=12, stop_ids=(), sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed))
                for seed in seeds
            ]
            engine.submit(*(one.request for one in asked))
            return [one.wait().ids for one in asked]

    first = answers([1, 2, 3, 4])
    again = dict(zip([4, 3, 9, 2, 1, 8], answers([4, 3, 9, 2, 1, 8]), strict=True))
    assert [again[seed] for seed in (1, 2, 3, 4)] == first
    assert len(set(first)) == 4
    assert len(set(answers([None, None, None]))) == 3


def test_a_talk_that_goes_on_reads_only_what_is_new():
    talk = prompts(1, seed=4, low=60, high=60)[0]
    with Running(MODEL, prefix_tokens=400) as engine:
        for turn in range(4):
            asked = ask(talk, new=10, stop_ids=())
            engine.submit(asked.request)
            assert asked.wait().ids == alone(MODEL, [talk], 10, ())[0].ids
            assert asked.request.reused == (0 if turn == 0 else len(talk) - 6)
            talk = [*talk, *asked.ids, *prompts(1, seed=turn, low=5, high=5)[0]]
        assert engine.counters.prompt_tokens == 60 + 3 * 6, "the last token of an answer was never read"
        assert engine.prefixes.tokens == len(talk) - 6, "earlier turns are covered by the last"
        again = ask(talk[:50], new=3, stop_ids=())
        engine.submit(again.request)
        assert again.wait().ids == alone(MODEL, [talk[:50]], 3, ())[0].ids and again.request.reused == 49
        long = ask(prompts(1, seed=9, low=350, high=350)[0], new=2, stop_ids=())
        engine.submit(long.request)
        long.wait()
        assert engine.prefixes.tokens == 351, "the oldest went for the newest"


def test_what_an_adapter_computed_is_not_used_for_another():
    store = PrefixStore(1000)
    one, two = Adapter("one", 1, {}), Adapter("two", 1, {})
    store.keep(Kept(tuple(range(100)), one, []))
    assert store.find(list(range(100)), None) is None and store.find(list(range(100)), two) is None
    assert store.find(list(range(100)), one)[1] == 99
    assert store.find([*range(40), 7, 8, 9], one)[1] == 40
    assert store.find([*range(9), 7, 8, 9], one) is None
    assert not store.wants(range(50), one) and store.wants(range(50), two) and not store.wants(range(5), two)


def test_a_beginning_that_is_copied_in_gives_the_logits_of_one_that_is_read():
    (prompt,) = prompts(1, seed=2, low=50, high=50)
    slots = Slots(MODEL)
    with torch.inference_mode():
        slots.open()
        whole = slots.forward(0, [prompt])
        held = slots.copy_out(0, 20)
        slots.close(0)
        for other in (0, 1):  # into an empty cache, and beside another row
            for _ in range(other):
                slots.open()
                slots.forward(0, [[5, 6, 7]])
            slot = slots.open()
            slots.copy_in(slot, held, 20)
            torch.testing.assert_close(slots.forward(slot, [prompt[20:]]), whole, atol=1e-5, rtol=1e-5)
            slots.close(slot)
    with torch.no_grad():
        expected = MODEL(input_ids=torch.tensor([prompt])).logits[:, -1]
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
