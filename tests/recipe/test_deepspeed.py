"""`distributed.strategy: zero1|zero2|zero3` and the DeepSpeed configuration that a user already has."""

from __future__ import annotations

import json

import pytest

from luthier.recipe.deepspeed_config import deepspeed_settings, read_config, without_effect
from luthier.recipe.deepspeed_keys import NO_EFFECT, NO_EFFECT_IN_ZERO, PASSED, PASSED_IN_ZERO, UNTRIED
from luthier.recipe.load import recipe_from_dict
from luthier.runtime.errors import RecipeError

TRAINER = {
    "fp16": {"enabled": "auto", "loss_scale": 0}, "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": dict.fromkeys(["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"], "auto"),
    },
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": True,
        "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
"""As transformers' documentation and Axolotl give it out."""
FP8 = {"name_or_path": "m", "quantization": "fp8"}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')

    def make(config=None, **sections):
        distributed = dict(sections.pop("distributed", {}))
        if config is not None:
            (tmp_path / "ds.json").write_text(config if isinstance(config, str) else json.dumps(config))
            distributed["deepspeed_config"] = str(tmp_path / "ds.json")
        return recipe_from_dict(
            {
                "model": {"name_or_path": "some/model"}, "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
                "output_dir": str(tmp_path / "run"), "distributed": distributed, **sections,
            },
            origin="test",
        )  # fmt: skip

    return make


def problems(make, *args, **sections) -> list[tuple[str, str]]:
    with pytest.raises(RecipeError) as caught:
        make(*args, **sections)
    assert caught.value.exit_code == 2
    return [(problem.code, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    "sections",
    [
        {"method": {"name": "full"}}, {"method": {"name": "lora"}}, {"method": {"name": "spectrum"}},
        {"method": {"name": "qlora"}}, {"method": {"name": "lora", "modules_to_save": ["lm_head"]}},
        {"model": {"name_or_path": "m", "new_tokens": ["<a>"]}, "method": {"name": "lora"}},
        {"model": FP8, "method": {"name": "lora"}}, {"method": {"name": "lora", "use_dora": True}},
        *({"method": {"name": "lora", "init_lora_weights": start}} for start in ("pissa", "pissa_niter_4", "olora")),
        *({"objective": {"name": name}} for name in ("dpo", "orpo", "simpo", "kto", "reward")),
    ],
)  # fmt: skip
def test_the_strategies_are_taken(recipe, strategy, sections):
    assert recipe(distributed={"strategy": strategy}, **sections).distributed.strategy == strategy


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": FP8, "method": {"name": "lora"}, "objective": {"name": "dpo"}}, "model.quantization"),
        ({"method": {"name": "lora"}, "train": {"optim": "adamw_8bit"}}, "train.optim"),
        ({"method": {"name": "qlora", "use_dora": True}}, "method.use_dora"),
    ],
)
def test_what_zero_cannot_be_combined_with_is_named(recipe, sections, key):
    found = problems(recipe, distributed={"strategy": "zero3"}, **sections)
    assert any(code == "L175" and f"`{key}`" in message for code, message in found)


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_below_zero3_an_fp8_base_has_its_16_bit_matrices_and_4_bits_have_none_for_dora(recipe, strategy):
    distributed = {"strategy": strategy}
    made = recipe(model=FP8, method={"name": "lora"}, objective={"name": "dpo"}, distributed=distributed)
    assert made.distributed.strategy == strategy
    found = problems(recipe, method={"name": "qlora", "use_dora": True}, distributed=distributed)
    assert any(code == "L175" and "`method.use_dora`" in message for code, message in found)


@pytest.mark.parametrize("quantization", ["fp8", "none"])
def test_an_fp8_base_is_not_offloaded_to_files(recipe, quantization):
    config = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/nvme"}}}
    sections = {"model": {**FP8, "quantization": quantization}, "method": {"name": "lora"}}
    if quantization == "none":
        assert recipe(config, **sections).distributed.offload == "all"
        return
    assert any(code == "L175" and "nvme" in message for code, message in problems(recipe, config, **sections))


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_whole_weights_are_not_offloaded(recipe, strategy):
    found = problems(recipe, distributed={"strategy": strategy, "offload": "all"})
    assert found[0][0] == "L175"
    assert recipe(distributed={"strategy": strategy, "offload": "optimizer"}).distributed.offload == "optimizer"


def test_stage_1_of_a_file_is_zero1(recipe):
    made = recipe({"zero_optimization": {"stage": 1, "overlap_comm": False}})
    assert made.distributed.strategy == "zero1"
    settings = deepspeed_settings(
        made.model_copy(update={"train": made.train.model_copy(
            update={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
        )}), dtype="bfloat16", processes=2, hidden_size=8, pin=False,
    )  # fmt: skip
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 64}


def test_the_configuration_of_transformers_documentation_is_taken_as_it_is(recipe):
    made = recipe(
        TRAINER, train={"learning_rate": 2e-4, "max_grad_norm": 0.5}, model={"name_or_path": "m", "dtype": "bfloat16"}
    )
    assert (made.distributed.strategy, made.distributed.offload) == ("zero3", "optimizer")
    assert made.train.lr_scheduler_type == "linear"
    train = made.train.model_copy(update={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    made = made.model_copy(update={"train": train})
    settings = deepspeed_settings(made, dtype="bfloat16", processes=8, hidden_size=64, pin=True)
    assert "auto" not in json.dumps(settings)
    assert settings["bf16"] == {"enabled": True} and settings["gradient_clipping"] == 0.5
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (4, 2)
    zero = settings["zero_optimization"]
    assert zero["stage"] == 3 and zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert (zero["reduce_bucket_size"], zero["stage3_prefetch_bucket_size"]) == (4096, 3686)
    assert zero["stage3_param_persistence_threshold"] == 640 and zero["overlap_comm"] is True
    assert settings["communication_data_type"] == "fp32", "sums in fp32"
    assert not {"optimizer", "scheduler", "steps_per_print"} & set(settings), "the recipe's, or nobody's"


def test_keys_without_effect_are_named(recipe, tmp_path):
    recipe(TRAINER)
    lines = "\n".join(without_effect(read_config(str(tmp_path / "ds.json"))[0]))
    for key in ("steps_per_print", "wall_clock_breakdown", "stage3_gather_16bit_weights_on_model_save", "scheduler"):
        assert f"{key}`" in lines


def test_values_that_the_recipe_leaves_open_are_taken(recipe):
    made = recipe({
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "gradient_clipping": 0.3,
        "bf16": {"enabled": True}, "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}},
    })  # fmt: skip
    train = made.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps, train.max_grad_norm) == (2, 4, 0.3)
    assert (train.learning_rate, train.adam_beta1, train.adam_beta2, train.adam_epsilon) == (1e-5, 0.9, 0.95, 1e-7)
    assert (train.weight_decay, train.warmup_steps, train.lr_scheduler_type) == (0.1, 10, "constant_with_warmup")
    assert (made.model.dtype, made.distributed.strategy) == ("bfloat16", "zero2")


def test_all_contradictions_at_once_with_key_file_got_and_allowed(recipe):
    found = problems(
        recipe,
        {
            "gradient_clipping": 0.3, "train_micro_batch_size_per_gpu": 0,
            "zero_optimization": {"stage": 2, "stage3_typo": 1},
            "optimizer": {"type": "Lamb", "params": {"lr": 1e-5}}, "fp16": {"enabled": True}, "gradient_cliping": 1.0,
            "zero_allow_untested_optimizer": True, "compression_training": {"enabled": True},
        },
        distributed={"strategy": "zero3"}, train={"max_grad_norm": 1.0, "learning_rate": 2e-5},
    )  # fmt: skip
    text = "\n".join(f"{code} {message}" for code, message in found)
    for expected in (
        "L171", "`gradient_clipping` is 0.3, and the recipe has `train.max_grad_norm: 1.0`",
        "`optimizer.params.lr` is 1e-05, and the recipe has `train.learning_rate: 2e-05`",
        "`zero_optimization.stage` is 2, and the recipe has `distributed.strategy: zero3`",
        '`optimizer.type` is "Lamb", allowed: "adam", "adamw", "sgd"', "allowed: a whole number of at least 1",
        "`gradient_cliping` is no key", "`zero_optimization.stage3_typo` is no key", "`fp16.enabled` is true",
        '`compression_training` is {"enabled": true}: not tried',
    ):  # fmt: skip
        assert expected in text
    assert all("ds.json" in message for _, message in found)
    assert len(found) == 9


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_file_that_is_no_json_object_is_one_clear_error(recipe, text):
    assert [code for code, _ in problems(recipe, text)] == ["L172"]


def test_a_file_that_is_not_there_is_one_clear_error(recipe):
    found = problems(recipe, distributed={"deepspeed_config": "nowhere/ds.json"})
    assert found[0][0] == "L172" and "No such file" in found[0][1]


@pytest.mark.parametrize("stage", [0, 4, True, "3"])
def test_stages_that_are_not_there_are_refused(recipe, stage):
    found = problems(recipe, {"zero_optimization": {"stage": stage}})
    assert found == [("L171", found[0][1])] and "allowed: 1, 2, 3" in found[0][1]


def test_stage_0_is_said_to_be_ddp(recipe):
    with pytest.raises(RecipeError) as caught:
        recipe({"zero_optimization": {"stage": 0}})
    hints = [one.hint or "" for one in caught.value.problems]
    assert any("distributed.strategy: ddp" in hint for hint in hints), hints


def test_parameters_offloaded_alone_take_the_optimizer_along_and_it_is_said():
    def lines(**zero):
        return " ".join(without_effect({"zero_optimization": zero}))

    cpu = {"device": "cpu"}
    assert "`offload_param` alone" in lines(offload_param=cpu)
    assert "`offload_param` alone" in lines(offload_param=cpu, offload_optimizer={"device": "none"})
    assert "alone" not in lines(offload_param=cpu, offload_optimizer=cpu) + lines(offload_optimizer=cpu) + lines()


def test_without_a_stage_the_recipe_must_name_it(recipe):
    assert problems(recipe, {"gradient_clipping": 1.0})[0][0] == "L178"
    assert recipe({"gradient_clipping": 1.0}, distributed={"strategy": "zero2"}).train.max_grad_norm == 1.0


def test_a_batch_of_another_shape_is_refused_when_the_processes_are_known(recipe):
    made = recipe({"train_batch_size": 32, "zero_optimization": {"stage": 3}},
                  train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})  # fmt: skip
    assert deepspeed_settings(made, dtype="float32", processes=4, hidden_size=8, pin=False)
    with pytest.raises(RecipeError, match=r"train_batch_size.* is 32.*4 x 2 accumulated x 2 processes = 16"):
        deepspeed_settings(made, dtype="float32", processes=2, hidden_size=8, pin=False)


def test_what_is_taken_may_be_stored_and_read_again(recipe):
    from luthier.recipe.resolve import recipe_to_dict

    made = recipe(TRAINER, train={"learning_rate": 1e-4})
    assert recipe_from_dict(recipe_to_dict(made), origin="stored") == made


def test_no_key_is_in_two_tables():
    tables = [PASSED, NO_EFFECT, UNTRIED]
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert not PASSED_IN_ZERO & set(NO_EFFECT_IN_ZERO)


def test_the_tables_know_deepspeed_s_own_keys():
    """A new version's keys are decided about, not passed over."""
    pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from luthier.recipe.zero_rules import known_in_zero

    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert theirs - known_in_zero() == set()


def test_keys_of_zero_3_without_stage3_are_deepspeeds_too(recipe, tmp_path):
    """`zero3_bf16.json` of Axolotl has them: fields of DeepSpeed's class, which takes both."""
    zero = {
        "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 0,
        "reduce_bucket_size": "auto", "prefetch_bucket_size": "auto", "param_persistence_threshold": "auto",
        "max_live_parameters": 0, "max_reuse_distance": 0, "gather_16bit_weights_on_model_save": True,
    }  # fmt: skip
    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    made = recipe({"zero_optimization": zero, "bf16": {"enabled": True}}, train=shape)
    assert made.distributed.strategy == "zero3"
    settings = deepspeed_settings(made, dtype="bfloat16", processes=2, hidden_size=10, pin=False)["zero_optimization"]
    assert settings["stage3_max_live_parameters"] == 0 and settings["stage3_prefetch_bucket_size"] == 90
    assert settings["stage3_param_persistence_threshold"] == 100 and "max_reuse_distance" not in settings
    both = {**zero, "stage3_max_live_parameters": 1e9}
    assert [code for code, _ in problems(recipe, {"zero_optimization": both}, train=shape)] == ["L173"]
