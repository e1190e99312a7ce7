"""Contract: no `auto` is left, each derived value has a reason, and the split of a step never changes the step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.facts import FoundRate
from luthier.recipe.load import load_recipe, recipe_from_dict
from luthier.recipe.rates import found_line, rule_rate
from luthier.recipe.resolve import Decision, Facts, Resolved, recipe_to_dict, resolve, resolved_yaml, total_steps
from luthier.recipe.steps import (
    MICRO_BATCH_TOKENS,
    choose_batching,
    divisible,
    sequences_for_rows,
    sequences_for_tokens,
)
from tests.recipe.support import BASE, load

pytestmark = pytest.mark.usefixtures("work")

GIB = 2**30
HELD_OUT = BASE.replace("}]}\n", "}], validation: {fraction: 0.1}}\n", 1)


def facts(**changes) -> Facts:
    """SmolLM2-135M on a CPU without bfloat16 units: 300 rows of 200 tokens in 60 packs of 1,000."""
    known = {
        "device_type": "cpu", "native_bf16": False, "device_memory_bytes": 24 * GIB, "world_size": 1,
        "rows": 300, "sequences": 60, "tokens": 60_000, "model_parameters": 134_515_008,
    }  # fmt: skip
    return Facts(**{**known, **changes})


def resolved(text: str = "", *, base: str = BASE, **changes) -> Resolved:
    return resolve(load(base + text, base=False), facts(**changes))


def reasons(result: Resolved) -> dict[str, str]:
    return {derived.key: derived.reason for derived in result.derived}


def autos(value: object, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in autos(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in autos(item, f"{path}.{index}")]
    return [path] if value == "auto" else []


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "freeze, last_n_layers: 2"])
@pytest.mark.parametrize("base", [BASE, HELD_OUT])
def test_no_auto_is_left_but_the_format_of_files_and_each_value_has_a_reason(method, base):
    result = resolved(f"method: {{name: {method}}}\n", base=base)
    left = autos(result.recipe.model_dump())
    assert left == ["data.train.0.format", "data.validation.format"]  # a verdict on each file: in the data manifest
    unread = {"objective.beta", "objective.simpo_gamma"}  # sft has neither; they become null
    assert set(autos(load(base, base=False).model_dump())) - set(left) - unread == set(reasons(result))
    assert all(reason and "\n" not in reason for reason in reasons(result).values())


@pytest.mark.parametrize(
    ("parameters", "full", "lora"),
    [
        (7_000_000_000, 2e-5, 2e-4),  # the reference size
        (134_515_008, 1.4e-4, 1.4e-3),  # 2e-5 x sqrt(52.04) = 1.443e-4, and ten times that
        (1_750_000_000, 4e-5, 4e-4),  # a quarter of the size, twice the rate
        (70_000_000_000, 1e-5, 1e-4),  # 6.3e-6 is below the floor
        (10_000_000, 3e-4, 3e-3),  # 5.3e-4 is above the ceiling
    ],
)
def test_learning_rate_by_hand(parameters, full, lora):
    for method, rate in (("full", full), ("freeze, last_n_layers: 1", full), ("lora", lora), ("qlora", lora)):
        result = resolved(f"method: {{name: {method}}}\n", model_parameters=parameters)
        assert result.recipe.train.learning_rate == rate
        assert f"method {method.split(',')[0]}" in reasons(result)["train.learning_rate"]


@pytest.mark.parametrize(
    ("tokens_per_step", "rate"),
    [
        (400, 2e-5), (16_384, 2e-5),  # nothing is taken away below the anchor
        (36_864, 3e-5),  # 2.25 times the tokens
        (65_536, 4e-5), (1_000_000, 4e-5),  # four times the tokens, twice the rate, and no more
    ],
)  # fmt: skip
def test_learning_rate_grows_with_the_square_root_of_the_tokens_up_to_twice(tokens_per_step, rate):
    assert rule_rate("full", 7_000_000_000, tokens_per_step)[0] == rate
    found, reason = rule_rate("lora", 7_000_000_000, tokens_per_step)
    assert found == pytest.approx(10 * rate) and ("tokens a step" in reason) == (tokens_per_step > 16_384)


def test_learning_rate_uses_the_tokens_that_a_step_has_in_the_end():
    small = resolved("method: {name: full}\ntrain: {tokens_per_step: 2000}\n", model_parameters=7_000_000_000)
    large = resolved("method: {name: full}\ntrain: {tokens_per_step: 80000}\n", model_parameters=7_000_000_000)
    assert small.recipe.train.learning_rate == 2e-5 and large.recipe.train.learning_rate == 4e-5


def test_a_found_rate_is_mentioned_only_for_like_steps_and_when_searches_agree():
    one = FoundRate(learning_rate=1e-3, tokens_per_step=1000, found_at="2026-01-02T03:04:05Z")
    assert "lr-find found 0.001 for this training on 2026-01-02" in found_line([one], 1000)
    assert found_line([one], 1240) and not found_line([one], 1260) and not found_line([], 1000)
    assert "lr-find found 0.00105" in found_line([one, replace(one, learning_rate=1.05e-3)], 1000)
    assert "several rates for this training (0.001, 0.003)" in found_line([one, replace(one, learning_rate=3e-3)], 1000)


def test_dtype_is_bfloat16_only_where_it_is_native():
    assert resolved().recipe.model.dtype == "float32"
    assert resolved(device_type="cuda", native_bf16=True).recipe.model.dtype == "bfloat16"
    assert resolved(device_type="cuda", native_bf16=False).recipe.model.dtype == "float32"


def test_quantisation_follows_the_method():
    assert resolved("method: {name: qlora}\n").recipe.model.quantization == "nf4"
    assert resolved().recipe.model.quantization == "none"


def test_what_the_recipe_says_is_never_derived():
    text = """\
train: {learning_rate: 0.5, per_device_train_batch_size: 3, gradient_accumulation_steps: 5,
        gradient_checkpointing: true, gradient_checkpointing_layers: null, gradient_checkpointing_attention: true,
        save_steps: null, eval_steps: 7}
evaluate: {batch_size: 3}
method: {name: full}
"""
    result = resolved(
        text, base=HELD_OUT.replace("instruct", "instruct, dtype: float16, quantization: none, dequantize_base: false")
    )
    train = result.recipe.train
    assert (train.learning_rate, train.save_steps, train.eval_steps, train.gradient_checkpointing) == (
        0.5,
        None,
        7,
        True,
    )
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (3, 5)
    assert (result.recipe.model.dtype, result.recipe.evaluate.batch_size) == ("float16", 3)
    assert set(reasons(result)) == {"model.attn_implementation", "train.tokens_per_step", "distributed.strategy"}


# -- batches


def test_two_percent_of_the_rows_a_step_by_hand():
    # 2% of 300 rows are 6, the nearest power of two is 8, and 8 rows of 5 a pack are 1.6 packs.
    assert sequences_for_rows(300, 60) == (2, 8)
    assert sequences_for_rows(7_473, 7_473) == (64, 64)  # 149 rows, at most 64
    assert sequences_for_rows(7_473, 1_500) == (12, 64)  # 64 rows of 4.98 a pack are 12.85, and 13 does not divide
    assert sequences_for_rows(1_600, 1_600) == (32, 32)
    assert sequences_for_rows(10, 10) == (4, 4)  # at least 4 rows
    assert sequences_for_rows(10, 1) == (1, 4)
    assert sequences_for_rows(2, 2) == (2, 4)  # never more than there are


def test_steps_divide_well_and_stay_near_what_was_asked():
    assert [divisible(number) for number in (1, 7, 10, 11, 13, 17, 19, 22, 61, 64)] == [
        1,
        7,
        10,
        12,
        12,
        18,
        20,
        24,
        60,
        64,
    ]
    for number in range(11, 600):
        found = divisible(number)
        assert abs(found - number) <= 0.1 * number
        assert (2 * 3 * 5) ** 12 % found == 0  # no other prime


def test_tokens_per_step_by_hand():
    assert [sequences_for_tokens(tokens, 1_000.0) for tokens in (1, 1_400, 1_600, 8_000)] == [1, 1, 2, 8]
    result = resolved("train: {tokens_per_step: 8000}\n").recipe.train
    assert (result.per_device_train_batch_size, result.gradient_accumulation_steps, result.tokens_per_step) == (
        1,
        8,
        8000,
    )
    result = resolved("train: {tokens_per_step: 8000}\n", device_type="cuda").recipe.train
    assert (result.per_device_train_batch_size, result.gradient_accumulation_steps) == (8, 1)
    result = resolved("train: {tokens_per_step: 8000}\n", sequences=300).recipe.train  # rows of 200 tokens, 40 a step
    assert (result.per_device_train_batch_size, result.gradient_accumulation_steps) == (5, 8)


def test_rows_per_step_by_hand():
    flat = BASE.replace("}]}\n", "}], packing: false}\n", 1)
    result = resolved("train: {rows_per_step: 7}\n", base=flat, rows=300, sequences=300)
    train = result.recipe.train
    # Exactly as many rows, also a number that splits badly, and the split does not change it.
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 7
    packed = resolved("train: {rows_per_step: 10}\n", rows=300, sequences=60).recipe.train
    assert packed.per_device_train_batch_size * packed.gradient_accumulation_steps == 2  # 10 rows of 5 a pack
    text = resolved_yaml(result)
    assert "rows_per_step" not in text  # the two batch keys say it


def test_the_multiplier_is_a_factor_on_the_rule_and_leaves_a_resolved_recipe():
    plain, half = resolved(""), resolved("train: {learning_rate_multiplier: 0.5}\n")
    assert half.recipe.train.learning_rate == pytest.approx(0.5 * plain.recipe.train.learning_rate)
    assert reasons(half)["train.learning_rate"].startswith("0.5 (learning_rate_multiplier) x ")
    assert "learning_rate_multiplier:" not in resolved_yaml(half).replace("(learning_rate_multiplier)", "")


def test_one_given_batch_key_decides_the_other():
    train = resolved("train: {per_device_train_batch_size: 2}\n", rows=6_000, sequences=6_000).recipe.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (2, 32)
    train = resolved("train: {gradient_accumulation_steps: 4}\n", rows=6_000, sequences=6_000).recipe.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (16, 4)
    assert train.tokens_per_step == 640  # 64 rows of 10 tokens


def test_sequences_are_dealt_to_groups_of_processes_that_share_them():
    four = resolved("train: {rows_per_step: 40}\n", world_size=4)
    two = resolved("train: {rows_per_step: 40}\ndistributed: {sequence_parallel_size: 2}\n", world_size=4)
    assert four.recipe.train.gradient_accumulation_steps * four.recipe.train.per_device_train_batch_size == 2
    assert two.recipe.train.gradient_accumulation_steps * two.recipe.train.per_device_train_batch_size == 4
    assert "x 2 groups of 2 devices = 8 sequences" in reasons(two)["train.gradient_accumulation_steps"]


def test_a_step_that_many_devices_make_larger_than_was_meant_says_so():
    """4,000 tokens are 4 packs: on 16 devices the smallest step has 16, which are not the steps of one device."""
    many = reasons(resolved("train: {tokens_per_step: 4000}\n", world_size=16))["train.gradient_accumulation_steps"]
    assert many.endswith("1 x 1 x 16 devices = 16 sequences, not 4: each of 16 takes one at least")
    four = reasons(resolved("train: {tokens_per_step: 4000}\n", world_size=4))["train.gradient_accumulation_steps"]
    assert four.endswith("1 x 1 x 4 devices = 4 sequences")


@given(
    wanted=st.integers(1, 500),
    mean=st.floats(1, 5_000),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    world=st.integers(1, 8),
)
def test_the_split_holds_the_step_and_the_token_budget(wanted, mean, device, world):
    split = choose_batching(wanted, mean_tokens=mean, device_type=device, world_size=world)
    micro, accumulate = split.per_device_train_batch_size, split.gradient_accumulation_steps
    assert split.sequences_per_step == micro * accumulate * world
    # The nearest multiple of the devices; where a step is none, one that divides well, within 10%.
    open_to = 0.1 * max(wanted, world) if wanted % world else 0.0
    assert abs(split.sequences_per_step - max(wanted, world)) <= world / 2 + open_to
    assert micro == 1 or micro * mean <= MICRO_BATCH_TOKENS[device]
    larger = [size for size in range(micro + 1, micro * accumulate + 1) if micro * accumulate % size == 0]
    assert all(size * mean > MICRO_BATCH_TOKENS[device] for size in larger)


def test_sequences_of_a_device_divide_well():
    """135 over 8 devices: 17 each would be one or all at a time."""
    split = choose_batching(135, mean_tokens=1_000, device_type="cuda", world_size=8, micro_batch_tokens=4_096)
    assert (split.per_device_train_batch_size, split.gradient_accumulation_steps) == (4, 4)
    assert split.sequences_per_step == 128
    exact = choose_batching(8 * 17, mean_tokens=1_000, device_type="cuda", world_size=8, micro_batch_tokens=4_096)
    assert exact.sequences_per_step == 136  # what divides exactly stays


@given(wanted=st.integers(1, 500), mean=st.floats(1, 5_000))
def test_devices_and_number_of_processes_do_not_change_the_step(wanted, mean):
    splits = [
        choose_batching(8 * wanted, mean_tokens=mean, device_type=d, world_size=w)
        for d in ("cpu", "cuda")
        for w in (1, 2, 4, 8)
    ]
    assert {split.sequences_per_step for split in splits} == {8 * wanted}


# -- steps


@pytest.mark.parametrize(
    ("sequences", "per_step", "epochs", "max_steps", "steps"),
    [
        (10, 5, 1, None, 2), (11, 5, 1, None, 3), (11, 5, 2, None, 6), (10, 100, 3, None, 3), (10, 1, 0.5, None, 5),
        (10, 1, 1.1, None, 11), (10, 3, 0.01, None, 1), (10, 3, 0.5, None, 2), (1, 1, 1e-4, None, 1), (10, 5, 3, 7, 7),
        (3_000, 1, 0.07, None, 210),
    ],
)  # fmt: skip
def test_total_steps_by_hand(sequences, per_step, epochs, max_steps, steps):
    assert total_steps(sequences, per_step, epochs, max_steps) == steps


@given(
    sequences=st.integers(1, 5_000), micro=st.integers(1, 16), accumulate=st.integers(1, 16), epochs=st.integers(1, 5)
)
def test_steps_equal_trls_count_for_whole_epochs(sequences, micro, accumulate, epochs):
    # B53: e x ceil(ceil(n / b) / a)
    expected = epochs * math.ceil(math.ceil(sequences / micro) / accumulate)
    assert total_steps(sequences, micro * accumulate, epochs, None) == expected


def test_eval_and_save_ten_times_in_a_run():
    train = resolved(base=HELD_OUT).recipe.train  # 60 packs, 2 a step: 30 steps
    assert (train.eval_steps, train.save_steps) == (3, 3)
    assert resolved().recipe.train.eval_steps is None
    assert resolved().recipe.train.save_steps == 3
    assert resolved("train: {max_steps: 5}\n", base=HELD_OUT).recipe.train.eval_steps == 1
    assert resolved("train: {max_steps: 14}\n", base=HELD_OUT).recipe.train.eval_steps == 2  # 7 times, not 14
    assert resolved("train: {num_train_epochs: 10}\n", base=HELD_OUT).recipe.train.eval_steps == 30


def test_recompute_only_when_the_step_cannot_fit():
    result = resolved("method: {name: full}\n")
    assert result.recipe.train.gradient_checkpointing is False
    result = resolved("method: {name: full}\n", device_memory_bytes=2 * GIB)  # 16 bytes x 134.5M are 2.0 GiB alone
    assert result.recipe.train.gradient_checkpointing is True
    assert "of 2.0 GiB" in reasons(result)["train.gradient_checkpointing"]
    big = {"model_parameters": 8_030_000_000, "device_type": "cuda", "native_bf16": True}
    assert resolved(device_memory_bytes=24 * GIB, **big).recipe.train.gradient_checkpointing is True
    assert resolved(device_memory_bytes=141 * GIB, **big).recipe.train.gradient_checkpointing is False


def test_the_plan_decides_what_the_recipe_leaves_open_and_nothing_else():
    reasons_given = {
        "train.per_device_train_batch_size": "fits, and is fastest",
        "train.gradient_checkpointing": "without it 90 GiB of 79",
        "train.gradient_checkpointing_layers": "12 of 32 layers are enough",
        "model.dequantize_base": "15 GiB are free",
    }
    planned = Decision(
        micro_batch_tokens=4_096, recompute=True, recompute_layers=12, dequantize_base=True, reasons=reasons_given
    )
    cuda = {"device_type": "cuda", "native_bf16": True, "planned": planned}
    result = resolved("method: {name: qlora}\ntrain: {tokens_per_step: 16000}\n", **cuda)
    train = result.recipe.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (4, 4)
    assert (train.gradient_checkpointing, train.gradient_checkpointing_layers) == (True, 12)
    assert result.recipe.model.dequantize_base is True
    assert reasons_given.items() <= reasons(result).items()
    given = "train: {gradient_checkpointing: selective, per_device_train_batch_size: 2}\n"
    result = resolved(given, **cuda)
    assert result.recipe.train.gradient_checkpointing == "selective"
    assert result.recipe.train.gradient_checkpointing_layers is None  # the plan's 12 are for its own policy
    assert result.recipe.train.per_device_train_batch_size == 2
    assert result.recipe.model.dequantize_base is False  # method lora: the base is not nf4
    result = resolved("train: {gradient_checkpointing_layers: 5}\n", **cuda)
    assert (result.recipe.train.gradient_checkpointing, result.recipe.train.gradient_checkpointing_layers) == (True, 5)


@pytest.mark.parametrize("wanted", [False, 1])
def test_a_written_key_that_the_chosen_policy_leaves_without_effect_is_not_in_the_resolved_recipe(tmp_path, wanted):
    """`load_recipe` would refuse it there, and the run could not be repeated."""
    policies = (None, False), ("selective", "selective"), (True, True)
    for planned, policy in policies:
        asked = None if planned is None else Decision(
            micro_batch_tokens=4_096, recompute=planned, recompute_layers=None, dequantize_base=False,
            reasons={"train.per_device_train_batch_size": "fits", "train.gradient_checkpointing": "fits"},
        )  # fmt: skip
        result = resolved(f"train: {{gradient_checkpointing_attention: {str(wanted).lower()}}}\n", planned=asked)
        train = result.recipe.train
        assert train.gradient_checkpointing == policy
        assert train.gradient_checkpointing_attention is (wanted if policy is True else True)
        (tmp_path / "resolved.yaml").write_text(resolved_yaml(result))
        assert load_recipe(tmp_path / "resolved.yaml").recipe.train.keeps_attention is (policy is True)


@pytest.mark.parametrize(("wanted", "kept"), [(2, 2), (3, True), (5, True)])
def test_more_layers_that_attend_than_run_again_are_not_in_the_resolved_recipe(tmp_path, wanted, kept):
    planned = Decision(
        micro_batch_tokens=4_096, recompute=True, recompute_layers=3, dequantize_base=False,
        reasons={"train.per_device_train_batch_size": "fits", "train.gradient_checkpointing": "fits"},
    )  # fmt: skip
    result = resolved(f"train: {{gradient_checkpointing_attention: {wanted}}}\n", planned=planned)
    assert result.recipe.train.gradient_checkpointing_layers == 3
    assert result.recipe.train.gradient_checkpointing_attention is kept
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(result))
    assert load_recipe(tmp_path / "resolved.yaml").recipe.train.gradient_checkpointing_attention is kept


def test_generation_batch():
    assert resolved().recipe.evaluate.batch_size == 64
    assert resolved(device_type="cuda").recipe.evaluate.batch_size == 256


# -- the resolved recipe as text

VARIANTS = [
    "",
    "method: {name: full}\n",
    "method: {name: freeze, trainable: [norm]}\n",
    "method: {name: qlora, target_modules: [q_proj]}\n",
    "train: {max_steps: 5, warmup_steps: 2, optim: sgd}\n",
    "train: {tokens_per_step: 4000, lr_scheduler_type: constant}\n",
    "evaluate: {tasks: [{name: a, path: rows.jsonl, metric: loss}, {name: b, path: ., metric: regex, pattern: (x)}]}\n",
    'name: "no"\n',
    "train: {num_train_epochs: 1.5, adam_epsilon: 1e-6, early_stopping_patience: null}\n",
]


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("base", [BASE, HELD_OUT])
def test_the_resolved_recipe_reads_back_and_resolves_to_itself(text, base):
    first = resolved(text, base=base)
    Path("resolved.yaml").write_text(resolved_yaml(first), encoding="utf-8")
    again = resolve(load_recipe(Path("resolved.yaml")).recipe, facts())
    given_tokens = first.recipe.train.tokens_per_step
    assert (
        again.recipe.model_copy(
            update={"train": again.recipe.train.model_copy(update={"tokens_per_step": given_tokens})}
        )
        == first.recipe
    )
    assert {derived.key for derived in again.derived} <= {"train.tokens_per_step"}


def test_every_derived_value_carries_its_reason_as_a_comment():
    result = resolved(base=HELD_OUT)
    lines = resolved_yaml(result).splitlines()
    for derived in result.derived:
        if derived.key != "train.tokens_per_step":  # left out: the two batch keys say it, and exclude it
            name = derived.key.rpartition(".")[2]
            assert any(
                line.strip().startswith(f"{name}: ") and line.endswith(f"  # {derived.reason}") for line in lines
            ), derived


@pytest.mark.parametrize("text", VARIANTS)
def test_a_stored_recipe_is_complete_and_loads_again(text):
    recipe = load(HELD_OUT + text, base=False)
    stored = recipe_to_dict(recipe)
    assert recipe_from_dict(stored, origin="manifest.json") == recipe
    assert stored["train"]["adam_beta1"] == 0.9 if recipe.train.optim != "sgd" else "adam_beta1" not in stored["train"]
