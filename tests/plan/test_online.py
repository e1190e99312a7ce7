"""Contract: the plan of online RL counts what can be counted, and names what it does not know."""

import json

import pytest

from luthier import public
from luthier.plan.devices import find_device
from luthier.plan.known import known_model
from luthier.plan.online import plan_online
from luthier.plan.work import assumed_documents
from luthier.recipe.load import recipe_from_dict
from luthier.runtime.errors import RecipeError
from tests.cli.calling import caller
from tests.support.tiny import conversations, save_tiny


def planned(tmp_path, *, gpu="H100", model="Qwen/Qwen2.5-7B-Instruct", rows=1000, num_gpus=1, **changes):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(4)))
    grpo = {"rewards": [{"name": "number"}], "max_completion_length": 300, **changes.pop("grpo", {})}
    value = {
        "model": {"name_or_path": model}, "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
        "objective": {"name": "grpo", "grpo": grpo}, "output_dir": str(tmp_path / "run"), **changes,
    }  # fmt: skip
    recipe = recipe_from_dict(value, origin="test")
    documents = assumed_documents(max_length=1024, packing=False, mean_tokens=100, rows=rows)
    return plan_online(recipe, known_model(model), documents, find_device(gpu), num_gpus=num_gpus)


@pytest.fixture
def shape():
    return known_model("Qwen/Qwen2.5-7B-Instruct")


def test_counts(tmp_path):
    plan = planned(tmp_path)
    assert (plan.steps, plan.prompts_per_step, plan.completions_per_step) == (125, 8, 64)
    assert plan.completions == 8000 and plan.sampled_tokens_at_most == 8000 * 300
    both = planned(tmp_path, num_gpus=2)
    assert (both.steps, both.completions_per_step, both.devices) == (125, 64, 2), "an open step is that of one device"
    assert (both.weights, both.optimizer) == (plan.weights, plan.optimizer), "each holds a copy"
    assert both.cache == pytest.approx(plan.cache / 2), "and samples its part"
    keys = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    given = [planned(tmp_path, num_gpus=count, train=keys) for count in (1, 4)]
    assert [(one.steps, one.completions_per_step) for one in given] == [(500, 16), (125, 64)], "of each device"
    with pytest.raises(RecipeError, match="torn apart"):
        planned(tmp_path, num_gpus=3, train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1})
    twice = planned(tmp_path, grpo={"num_iterations": 2})
    assert (twice.steps, twice.completions) == (250, 8000)


def test_bytes_of_adapters_and_of_whole_weights(tmp_path, shape):
    lora = planned(tmp_path)
    assert lora.weights == 2 * shape.parameters and lora.reference == 0
    assert lora.adapters == lora.gradients == lora.optimizer // 2
    assert lora.cache == 64 * 400 * shape.layers * 2 * shape.key_value_heads * shape.head_dim * 2
    full = planned(tmp_path, method={"name": "full"}, grpo={"beta": 0.1})
    assert full.weights == full.gradients == full.reference == 4 * shape.parameters and full.adapters == 0
    part = planned(tmp_path, method={"name": "spectrum"})
    assert part.weights == full.weights and part.adapters == 0 and 0 < part.gradients < full.gradients
    qlora = planned(tmp_path, method={"name": "qlora"})
    assert qlora.weights < 0.4 * lora.weights


def test_it_says_no_only_where_no_is_certain(tmp_path):
    assert planned(tmp_path).fits is None
    assert planned(tmp_path, method={"name": "full"}).fits is False
    value = planned(tmp_path).to_json()
    assert value["seconds"] is None and any("first step" in line for line in value["unknown"])


def test_the_command_and_the_function_tell_it(tmp_path, monkeypatch, capfd):
    call = caller(monkeypatch, capfd)
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(24)))
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: model}\ndata: {train: [{path: rows.jsonl}], max_length: 64}\n"
        "objective: {name: grpo, grpo: {rewards: [{name: exact_match}]}}\noutput_dir: run\n"
    )
    shown = call("plan", "recipe.yaml")
    assert shown.code == 0 and "told after the first step" in shown.out
    answer = call("plan", "recipe.yaml", "--json").json
    assert answer["prompts"] == 24 and answer["completions_per_step"] == 64
    assert public.plan(tmp_path / "recipe.yaml").steps == answer["steps"] == 3
    checked = call("data", "check", "recipe.yaml")
    assert checked.code == 2 and "leaves no room for a prompt" in checked.err
    checked = call("data", "check", "recipe.yaml", "objective.grpo.max_completion_length=32")
    assert checked.code == 0 and "24 prompts (24 with a reference)" in checked.out
