"""`distributed`: what is refused by name, and what is not."""

from __future__ import annotations

import pytest

from luthier.recipe.distributed_rules import require_groups
from luthier.recipe.facts import Facts
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.resolve import resolve
from luthier.runtime.errors import RecipeError

FSDP2 = {"strategy": "fsdp2"}
MODEL = {"name_or_path": "some/model"}


@pytest.fixture
def document(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')

    def make(**sections):
        return {
            "model": MODEL, "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
            "output_dir": str(tmp_path / "run"), **sections,
        }  # fmt: skip

    return make


def codes(document) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(document, origin="test")
    return {problem.code: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"method": {"name": "qlora", "use_dora": True}}, "method.use_dora"),
        (
            {"model": {"name_or_path": "some/model", "quantization": "fp8"}, "objective": {"name": "dpo"}},
            "model.quantization",
        ),
        ({"method": {"name": "full"}, "train": {"optim": "adamw_bnb_8bit"}}, "train.optim"),
        ({"method": {"name": "full"}, "train": {"optim": "adafactor"}}, "train.optim"),
        ({"method": {"name": "spectrum"}, "train": {"optim": "muon"}}, "train.optim"),
    ],
)
def test_what_shards_cannot_be_combined_with_is_named(document, sections, key):
    assert f"`{key}`" in codes(document(distributed=FSDP2, **sections))["L112"]
    recipe_from_dict(document(distributed={"strategy": "auto"}, **sections), origin="test")
    recipe_from_dict(document(distributed={"strategy": "ddp"}, **sections), origin="test")


@pytest.mark.parametrize(
    "sections",
    [
        {"method": {"name": "full"}}, {"method": {"name": "lora"}}, {"method": {"name": "spectrum"}},
        {"method": {"name": "qlora"}},
        {"method": {"name": "full"}, "train": {"optim": "adamw_8bit"}},
        {"method": {"name": "lora"}, "train": {"optim": "adafactor"}},
        {"objective": {"name": "dpo"}}, {"objective": {"name": "kto"}, "method": {"name": "full"}},
        {"method": {"name": "lora", "modules_to_save": ["lm_head"]}},
        {"method": {"name": "lora", "use_dora": True}},
        {"method": {"name": "lora", "init_lora_weights": "pissa"}},
    ],
)  # fmt: skip
def test_what_can_be_sharded_is_taken(document, sections):
    recipe = recipe_from_dict(
        document(distributed={"strategy": "fsdp2", "reshard_after_forward": False}, **sections), origin="test"
    )
    assert recipe.distributed.strategy == "fsdp2"


def test_a_key_of_shards_beside_copies_has_no_effect(document):
    found = codes(document(distributed={"strategy": "ddp", "reshard_after_forward": False}))
    assert "distributed.reshard_after_forward" in found["C111"]


@pytest.mark.parametrize(
    ("distributed", "sections", "word"),
    [
        ({"strategy": "ddp", "offload": "all"}, {"method": {"name": "full"}}, "ddp"),
        ({"strategy": "fsdp2", "offload": "optimizer"}, {"method": {"name": "lora"}}, "lora"),
        ({"offload": "all"}, {"method": {"name": "full"}, "train": {"optim": "adafactor"}}, "adafactor"),
    ],
)
def test_offload_that_has_nothing_to_move_is_refused_by_name(document, distributed, sections, word):
    assert word in codes(document(distributed=distributed, **sections))["L240"]


@pytest.mark.parametrize("strategy", ["auto", "zero2"])
def test_offload_has_no_effect_on_grpo(document, strategy):
    objective = {"name": "grpo", "grpo": {"rewards": [{"name": "number"}]}}
    distributed = {"strategy": strategy, "offload": "optimizer"}
    assert "grpo" in codes(document(distributed=distributed, objective=objective, method={"name": "full"}))["L240"]
    recipe_from_dict(document(objective=objective, method={"name": "full"}), origin="test")


@pytest.mark.parametrize(("offload", "method"), [("all", "lora"), ("all", "full"), ("optimizer", "spectrum")])
def test_offload_of_shards_is_taken(document, offload, method):
    for strategy in ("fsdp2", "auto"):
        recipe = recipe_from_dict(
            document(distributed={"strategy": strategy, "offload": offload}, method={"name": method}), origin="test"
        )
        assert recipe.distributed.offload == offload


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adamw_8bit", "sgd"])
def test_one_process_offloads_its_optimizer(document, optim):
    distributed, train = {"strategy": "ddp", "offload": "optimizer"}, {"optim": optim}
    recipe = recipe_from_dict(document(distributed=distributed, method={"name": "full"}, train=train), origin="test")
    assert recipe.distributed.offload == "optimizer"


def test_sequences_are_shared_for_sft_alone(document):
    shared = {"sequence_parallel_size": 2}
    for strategy in ("ddp", "fsdp2", "auto"):
        recipe = recipe_from_dict(document(distributed={**shared, "strategy": strategy}), origin="test")
        assert recipe.distributed.sequence_parallel_size == 2
    assert "objective dpo" in codes(document(distributed=shared, objective={"name": "dpo"}))["L231"]
    assert "zero3" in codes(document(distributed={**shared, "strategy": "zero3"}))["L231"]


def test_the_number_of_processes_is_a_multiple_of_those_that_share_a_sequence():
    require_groups(1, 3)
    require_groups(2, 4)
    for processes in (1, 3):
        with pytest.raises(RecipeError, match=f"does not divide {processes} processes"):
            require_groups(2, processes)


def test_a_strategy_without_effect_is_said(document):
    for strategy, said in (("fsdp2", 1), ("zero3", 1), ("ddp", 0)):
        recipe = recipe_from_dict(document(distributed={"strategy": strategy}), origin="test")
        facts = Facts(
            device_type="cpu", native_bf16=True, device_memory_bytes=2**34, world_size=1, rows=8, sequences=8,
            tokens=800, model_parameters=1000,
        )  # fmt: skip
        resolved = resolve(recipe, facts)
        assert resolved.recipe.distributed.strategy == strategy
        lines = [one.reason for one in resolved.derived if one.key == "distributed.strategy"]
        assert lines == ["without effect: one process: nothing is distributed"] * said
