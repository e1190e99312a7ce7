"""Contract: each answer is the greedy answer to its prompt alone, whatever else is in the batch."""

from functools import cache

import pytest
import torch

from luthier.generation.batch import GROUP_PADDING, grouped
from luthier.generation.generate import _batches, _shared_prefix, default_batch_size, generate, token_capacity
from luthier.runtime.errors import OutOfMemory, RecipeError
from tests.support.scripted import chain, scripted_model
from tests.support.tiny import tiny_model, tiny_tokenizer

STOP = 2  # <|im_end|>, which is the padding token, too


def prompts(n=9, *, shared=0, seed=0, low=1, high=40):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randint(3, 600, (shared,), generator=generator).tolist()
    lengths = torch.randint(low, high, (n,), generator=generator).tolist()
    rows = [head + torch.randint(3, 600, (length,), generator=generator).tolist() for length in lengths]
    rows[0] = [*rows[0], STOP, *rows[0][:3]]  # the padding token as a real token, not at the end
    return rows


def reference(model, prompt, new, stops=(STOP,)):
    """Greedy by hand: no cache, no padding, one full forward a token."""
    ids = list(prompt)
    model.eval()
    with torch.no_grad():
        while len(ids) < len(prompt) + new:
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in stops:
                break
    return tuple(ids[len(prompt) :])


def alone(model, rows, new):
    """Stop tokens that end some answers early and others not, and the answer to each prompt by hand.

    The tokens are taken from the answers themselves; what comes after one of them is cut off.
    """
    said = [reference(model, row, new, stops=()) for row in rows]
    stops = [said[0][2], said[-1][7]]
    ends = [next((place + 1 for place, token in enumerate(ids) if token in stops), new) for ids in said]
    return stops, [ids[:end] for ids, end in zip(said, ends, strict=True)]


@cache
def alone_under(attention, shared):
    """The same for a batch of any size."""
    return alone(tiny_model(seed=3, attn_implementation=attention), prompts(shared=shared), 40)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_batch_answers_each_prompt_as_if_it_were_alone(shared, attention, batch_size):
    model, rows = tiny_model(seed=3, attn_implementation=attention), prompts(shared=shared)
    stops, expected = alone_under(attention, shared)
    assert len({len(answer) for answer in expected}) > 2, "some answers must stop early"
    answers = generate(
        model, tiny_tokenizer(), rows, max_new_tokens=40, stop_ids=stops, batch_size=batch_size, label="t"
    )
    assert [answer.ids for answer in answers] == expected
    assert [answer.finish_reason for answer in answers] == [
        "stop" if ids[-1] in stops else "length" for ids in expected
    ]


def test_many_prompts_of_one_batch_are_read_in_groups_and_still_answered_alone(monkeypatch):
    # 300 own tokens in groups of about 64: several groups are joined into one batch.
    monkeypatch.setattr("luthier.generation.batch.GROUP_TOKENS", {"cpu": 64})
    model, rows = tiny_model(seed=5), prompts(24, shared=9, low=1, high=60)
    expected = [reference(model, row, 20) for row in rows]
    answers = generate(model, tiny_tokenizer(), rows, max_new_tokens=20, stop_ids=[STOP], batch_size=64)
    assert [answer.ids for answer in answers] == expected


def test_answers_longer_than_the_room_of_the_cache():
    model, rows = tiny_model(seed=3), prompts(3)
    stops = [reference(model, rows[1], 100, ())[80]]
    expected = [reference(model, row, 150, stops) for row in rows]
    answers = generate(model, tiny_tokenizer(), rows, max_new_tokens=150, stop_ids=stops, batch_size=3)
    assert [answer.ids for answer in answers] == expected
    assert max(map(len, expected)) == 150


def _config(kind):
    import transformers as t

    common = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    wide = {**common, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    window = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return {
        "mistral, window of 6": lambda: t.MistralConfig(**wide, sliding_window=6),
        "qwen3, mixed": lambda: t.Qwen3Config(**wide, use_sliding_window=True, max_window_layers=1, **window),
        "gemma3, mixed": lambda: t.Gemma3TextConfig(**wide, **window, query_pre_attn_scalar=8),
        "gpt2, learned positions": lambda: t.GPT2Config(
            vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
        ),
        "bloom, alibi": lambda: t.BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=4),
        "mamba, no such cache": lambda: t.MambaConfig(
            vocab_size=600, hidden_size=32, num_hidden_layers=2, state_size=8
        ),
        "lfm2, states beside the cache": lambda: t.Lfm2Config(
            **{key: value for key, value in wide.items() if key != "head_dim"}, full_attn_idxs=[1]
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "mistral, window of 6",
        "qwen3, mixed",
        "gemma3, mixed",
        "gpt2, learned positions",
        "bloom, alibi",
        "mamba, no such cache",
        "lfm2, states beside the cache",
    ],
)
def test_other_architectures_answer_a_batch_as_each_prompt_alone(kind):
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(kind)).float()
        for parameter in model.parameters():  # fresh weights say the same token for ever
            parameter.data += 0.2 * torch.randn_like(parameter)
    rows = prompts(7, shared=10)
    stops, expected = alone(model, rows, 40)
    assert len(set(expected)) > 3
    assert min(map(len, expected)) < 10 < max(map(len, expected))
    answers = generate(model, tiny_tokenizer(), rows, max_new_tokens=40, stop_ids=stops, batch_size=8)
    assert [answer.ids for answer in answers] == expected


def test_a_prefix_is_shared_only_where_the_model_allows_it():
    from transformers import AutoModelForCausalLM

    rows = prompts(4, shared=10)
    assert len(_shared_prefix(tiny_model().eval(), rows).ids) == 10
    assert _shared_prefix(tiny_model().eval(), rows[:1]) is None
    assert _shared_prefix(tiny_model().eval(), prompts(4, shared=3)) is None
    windowed = AutoModelForCausalLM.from_config(_config("mistral, window of 6"))
    assert _shared_prefix(windowed.eval(), rows) is None


def test_equal_prompts_share_all_but_their_last_token():
    model, row = tiny_model(seed=3), prompts(2)[1][:20] * 2
    assert len(_shared_prefix(model.eval(), [row, row]).ids) == len(row) - 1
    answers = generate(model, tiny_tokenizer(), [row, row], max_new_tokens=9, stop_ids=[STOP], batch_size=2)
    assert [answer.ids for answer in answers] == [reference(model, row, 9)] * 2


def test_what_a_scripted_model_says_and_why_it_stops():
    model = scripted_model({**chain(10, 11, 12, STOP), **chain(20, STOP), **chain(30, 31, 30), **chain(40, 41, 7)})
    tokenizer = tiny_tokenizer()
    answers = generate(
        model, tokenizer, [[5, 10], [9, 9, 9, 20], [30], [40]], max_new_tokens=5, stop_ids=[STOP, 7], batch_size=3
    )
    assert [answer.ids for answer in answers] == [(11, 12, STOP), (STOP,), (31, 30, 31, 30, 31), (41, 7)]
    assert [answer.finish_reason for answer in answers] == ["stop", "stop", "length", "stop"]
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids) for ids in ([11, 12], [], [31, 30, 31, 30, 31], [41])
    ]
    assert answers[1].text == ""


def test_special_tokens_are_not_part_of_the_text():
    model = scripted_model(chain(10, 11, 1, 12, STOP))  # 1 is <|im_start|>
    (answer,) = generate(model, tiny_tokenizer(), [[10]], max_new_tokens=9, stop_ids=[STOP], batch_size=1)
    assert answer.ids == (11, 1, 12, STOP)
    assert answer.text == tiny_tokenizer().decode([11, 12])


def test_the_stop_token_as_last_allowed_token_counts_as_stop():
    model = scripted_model(chain(10, 11, STOP))
    (answer,) = generate(model, tiny_tokenizer(), [[10]], max_new_tokens=2, stop_ids=[STOP], batch_size=1)
    assert (answer.ids, answer.finish_reason) == ((11, STOP), "stop")


def test_without_stop_tokens_every_answer_has_full_length():
    model = scripted_model(chain(10, 11, STOP, 12), otherwise=13)
    (answer,) = generate(model, tiny_tokenizer(), [[10]], max_new_tokens=6, stop_ids=[], batch_size=1)
    assert (answer.ids, answer.finish_reason) == ((11, STOP, 12, 13, 13, 13), "length")


def test_no_prompts_no_answers():
    assert generate(tiny_model(), tiny_tokenizer(), [], max_new_tokens=2, stop_ids=[STOP], batch_size=2) == []


@pytest.mark.parametrize(
    "leak",
    [
        {"repetition_penalty": 5.0},
        {"do_sample": True, "temperature": 30.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 8},
        {"suppress_tokens": list(range(300))},
        {"forced_eos_token_id": 5, "max_length": 3},
        {"num_beams": 3},
        {"eos_token_id": 31},
        {"bad_words_ids": [[31]]},
    ],
)
def test_nothing_of_the_models_own_generation_config_leaks_in(leak):
    from transformers import GenerationConfig

    model = scripted_model({**chain(30, 31, 32, 30), **chain(10, 11, STOP)})
    own = GenerationConfig(**leak)
    model.generation_config = own
    answers = generate(model, tiny_tokenizer(), [[30], [10]], max_new_tokens=7, stop_ids=[STOP], batch_size=2)
    assert [answer.ids for answer in answers] == [(31, 32, 30, 31, 32, 30, 31), (11, STOP)]
    assert model.generation_config is own


def test_training_state_is_put_back_module_by_module():
    model = tiny_model(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    one, two = (
        generate(model, tiny_tokenizer(), prompts(3), max_new_tokens=5, stop_ids=[STOP], batch_size=2) for _ in "ab"
    )
    assert one == two, "dropout was active"
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_answers_as_its_merged_model():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model(seed=3), LoraConfig(r=4, target_modules="all-linear"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    rows = prompts(6, shared=9)
    arguments = {"max_new_tokens": 16, "stop_ids": [STOP], "batch_size": 4}
    adapter = generate(adapted, tiny_tokenizer(), rows, **arguments)
    assert adapter != generate(tiny_model(seed=3), tiny_tokenizer(), rows, **arguments)
    assert adapter == generate(adapted.merge_and_unload(), tiny_tokenizer(), rows, **arguments)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_setting_and_leaves_the_model_as_it_was(error):
    model = tiny_model().train()

    def fail(*_):
        raise error

    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory, match=r"lower `evaluate.batch_size` \(now 7\)") as caught:
        generate(model, tiny_tokenizer(), prompts(2), max_new_tokens=3, stop_ids=[STOP], batch_size=7)
    assert caught.value.exit_code == 5
    assert model.training


def test_other_errors_of_the_model_are_not_called_out_of_memory():
    model = tiny_model()

    def fail(*_):
        raise RuntimeError("size mismatch")

    model.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        generate(model, tiny_tokenizer(), prompts(2), max_new_tokens=3, stop_ids=[STOP], batch_size=7)


def test_all_prompts_that_cannot_be_answered_are_named_at_once():
    rows = [[5], [], [5] * 505, [5] * 504]
    with pytest.raises(RecipeError) as caught:
        generate(tiny_model(), tiny_tokenizer(), rows, max_new_tokens=8, stop_ids=[STOP], batch_size=2)
    assert [problem.code for problem in caught.value.problems] == ["E502", "E503"]
    assert "505 tokens, 8 are to follow: the model holds 512" in str(caught.value)


def test_batches_are_bounded_by_rows_and_by_tokens():
    rows = [[1] * length for length in (3, 50, 20, 21, 8, 49)]
    assert list(_batches(rows, 2, 10, None)) == [[1, 5], [3, 2], [4, 0]]
    # 120 tokens hold two rows of 50 + 10, then three of up to 21 + 10 (a fourth would need 124)
    assert list(_batches(rows, 9, 10, 120)) == [[1, 5], [3, 2, 4], [0]]
    assert list(_batches(rows, 9, 10, 1)) == [[1], [5], [3], [2], [4], [0]]


@pytest.mark.parametrize("floor", [1, 64, 256])
def test_groups_cover_all_rows_and_pad_little(floor):
    generator = torch.Generator().manual_seed(1)
    for n in (1, 2, 17, 64):
        lengths = sorted(torch.randint(1, 200, (n,), generator=generator).tolist(), reverse=True)
        spans = grouped(lengths, floor=floor)
        assert [index for start, end in spans for index in range(start, end)] == list(range(n))
        for start, end in spans:
            padded = (end - start) * lengths[start]
            assert padded <= floor or padded - sum(lengths[start:end]) <= GROUP_PADDING * padded


def test_sizes_chosen_without_being_told():
    assert default_batch_size("cuda") > default_batch_size("cpu") > 1
    # tiny model in fp32: 2 (keys, values) x 2 layers x 2 heads x 16 x 4 bytes = 512 bytes a token
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert token_capacity(tiny_model()) == int(memory * 0.15) // 512
