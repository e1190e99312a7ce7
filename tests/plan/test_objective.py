"""Contract: the plan knows what an objective over preferences adds: head passes, reference, reference point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.plan.devices import DEVICES
from luthier.plan.inputs import shape_of
from luthier.plan.objective import passes_before, work_of
from luthier.plan.request import make_request
from luthier.plan.search import make_plan
from luthier.plan.work import assumed_documents
from luthier.recipe.load import recipe_from_dict

H200 = DEVICES["H200"]


def plan(objective: str, *, epochs: float = 1.0, method: str = "lora", **more):
    recipe = recipe_from_dict(
        {
            "model": {"name_or_path": "smollm2-135m-instruct", "dtype": "bfloat16"},
            "data": {"train": [{"path": "x"}], "max_length": 1024}, "method": {"name": method},
            "objective": {"name": objective},
            "train": {"num_train_epochs": epochs, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
                      "gradient_checkpointing": False, **more},
            "output_dir": "runs/x",
        },
        origin="test",
    )  # fmt: skip
    documents = assumed_documents(max_length=1024, packing=True, mean_tokens=300, rows=8_000)
    return make_plan(make_request(recipe, shape_of(recipe), documents, H200))


def test_a_pass_of_the_head_more_and_nothing_else_in_a_step():
    sft, dpo = plan("sft").chosen.step, plan("dpo").chosen.step
    assert dpo.head == pytest.approx(sft.head * 1.5, rel=0.15)  # 3 products for 2, 5 passes over logits for 3
    without = {"head", "waiting"}
    assert {k: v for k, v in dpo.parts().items() if k not in without} == {
        k: v for k, v in sft.parts().items() if k not in without
    }
    assert plan("orpo").chosen.step == dpo


def test_the_reference_is_a_forward_pass_over_all_rows():
    found = plan("dpo")
    # A step of LoRA is about a forward pass and a backward one of the same size; the reference is the first alone.
    steps = found.seconds - found.steps * (found.chosen.step.optimizer + found.chosen.step.other)
    assert 0.2 * steps < found.seconds_before < 0.6 * steps
    assert plan("orpo").seconds_before == plan("sft").seconds_before == plan("reward").seconds_before == 0.0
    assert plan("dpo", epochs=3.0).seconds_before == pytest.approx(found.seconds_before), "once, not once an epoch"


def test_kto_has_a_pass_a_step_and_one_an_epoch_more():
    kto, dpo = plan("kto"), plan("dpo")
    assert kto.chosen.step.reference > 0.0
    assert dpo.chosen.step.reference == 0.0
    assert kto.seconds_before == pytest.approx(2.0 * dpo.seconds_before)
    assert plan("kto", epochs=3.0).seconds_before == pytest.approx(4.0 * dpo.seconds_before)


def test_a_reward_model_has_next_to_no_head():
    reward, dpo = plan("reward"), plan("dpo")
    assert reward.chosen.step.head == 0.0
    assert reward.chosen.memory.logits < dpo.chosen.memory.logits / 10


def test_measurements_of_one_objective_do_not_correct_another():
    keys = {name: plan(name).predicted()["key"]["method"] for name in ("sft", "dpo", "kto")}
    assert len(set(keys.values())) == 3
    assert "sft" not in keys["sft"], "the key of earlier versions"


def test_every_objective_has_its_work():
    for name in ("sft", "dpo", "orpo", "kto", "simpo", "reward"):
        assert work_of(name) is not None
        assert passes_before(name, 1.0) >= 0.0
    assert replace(work_of("sft")) == work_of("sft")
