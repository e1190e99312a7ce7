"""Contract: keys of another objective are errors, defaults depend on the objective and say why."""

from __future__ import annotations

import pytest

from luthier.recipe.facts import Facts
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.objective import objective_values
from luthier.recipe.resolve import recipe_to_dict, resolve, resolved_yaml
from luthier.recipe.schema import ObjectiveSection
from luthier.recipe.unused import unused_in_objective
from luthier.runtime.errors import RecipeError

FACTS = {
    "device_type": "cpu", "native_bf16": False, "device_memory_bytes": 32 << 30, "world_size": 1, "rows": 1000,
    "sequences": 500, "tokens": 200_000,
}  # fmt: skip


def made(objective, *, tmp_path, **more):
    (tmp_path / "rows.jsonl").touch()
    value = {
        "model": {"name_or_path": "smollm2-135m-instruct"},
        "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]}, "objective": objective,
        "output_dir": str(tmp_path / "run"), **more,
    }  # fmt: skip
    return recipe_from_dict(value, origin="test")


def refused(objective, tmp_path, **more) -> list:
    with pytest.raises(RecipeError) as caught:
        made(objective, tmp_path=tmp_path, **more)
    return caught.value.problems


IGNORED = [
    ({"name": "sft", "beta": 0.1}, "beta"), ({"name": "reward", "beta": 0.1}, "beta"),
    ({"name": "orpo", "loss_type": "ipo"}, "loss_type"), ({"name": "kto", "rpo_alpha": 1.0}, "rpo_alpha"),
    ({"name": "dpo", "simpo_gamma": 1.0}, "simpo_gamma"),
    ({"name": "dpo", "desirable_weight": 2.0}, "desirable_weight"),
    ({"name": "dpo", "center_rewards_coefficient": 0.1}, "center_rewards_coefficient"),
    ({"name": "dpo", "neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    ({"name": "orpo", "label_smoothing": 0.1}, "label_smoothing"),
    ({"name": "dpo", "loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "key"), IGNORED)
def test_a_key_that_the_objective_ignores_is_an_error(tmp_path, objective, key):
    (problem,) = refused(objective, tmp_path)
    assert problem.code == "C111"
    assert f"objective.{key}" in problem.message
    assert "would have no effect" in problem.message


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "dpo", "beta": 0.2, "loss_type": "robust", "label_smoothing": 0.1, "rpo_alpha": 0.5},
        {"name": "simpo", "beta": 2.5, "simpo_gamma": 1.4, "label_smoothing": 0.1},
        {"name": "kto", "desirable_weight": 1.3, "undesirable_weight": 1.0},
        {"name": "reward", "center_rewards_coefficient": 0.01},
        {"name": "orpo", "beta": 0.2},
        {"name": "sft", "label_smoothing": 0.7, "neftune_noise_alpha": 5.0},
    ],
)
def test_its_own_keys_are_taken(tmp_path, objective):
    assert made(objective, tmp_path=tmp_path).objective.name == objective["name"]


def test_values_that_mean_nothing_are_refused_all_at_once(tmp_path):
    problems = refused({"name": "dpo", "loss_type": "robust", "beta": None}, tmp_path)
    assert {problem.code for problem in problems} == {"C110"}
    assert len(problems) == 2
    (problem,) = refused({"name": "dpo", "label_smoothing": 0.5}, tmp_path)
    assert problem.code == "C103"
    (problem,) = refused({"name": "dop"}, tmp_path)
    assert "dpo" in problem.hint


def test_a_reward_model_has_no_tasks(tmp_path):
    tasks = [{"name": "a", "path": str(tmp_path / "rows.jsonl"), "metric": "exact"}]
    (problem,) = refused({"name": "reward"}, tmp_path, evaluate={"tasks": tasks})
    assert problem.code == "C110"
    assert "rates answers" in problem.message


@pytest.mark.parametrize(
    ("name", "full", "lora"),
    [("dpo", 5e-7, 5e-6), ("kto", 5e-7, 5e-6), ("simpo", 5e-7, 5e-6), ("orpo", 8e-6, 8e-5), ("reward", 1e-5, 1e-4)],
)
def test_the_rate_of_seven_billion_parameters_is_the_published_one(tmp_path, name, full, lora):
    for method, rate in (("full", full), ("lora", lora)):
        recipe = made({"name": name}, tmp_path=tmp_path, method={"name": method})
        result = resolve(recipe, Facts(model_parameters=7_000_000_000, **FACTS))
        assert result.recipe.train.learning_rate == pytest.approx(rate)
        (reason,) = [item.reason for item in result.derived if item.key == "train.learning_rate"]
        assert name in reason
        small = resolve(recipe, Facts(model_parameters=1_750_000_000, **FACTS))
        assert small.recipe.train.learning_rate == pytest.approx(2 * rate), "a quarter of the size, twice the rate"


@pytest.mark.parametrize(("name", "beta"), [("dpo", 0.1), ("kto", 0.1), ("orpo", 0.1), ("simpo", 2.0)])
def test_beta_has_a_default_with_a_reason(tmp_path, name, beta):
    result = resolve(made({"name": name}, tmp_path=tmp_path), Facts(model_parameters=10**9, **FACTS))
    assert result.recipe.objective.beta == beta
    assert "objective.beta" in [item.key for item in result.derived]
    assert result.recipe.objective.simpo_gamma == (1.0 if name == "simpo" else None)
    assert f"beta: {beta}  # the usual start for {name}" in resolved_yaml(result)
    again = resolve(result.recipe, Facts(model_parameters=10**9, **FACTS))
    assert again.recipe == result.recipe


def test_gamma_follows_a_beta_that_is_given(tmp_path):
    result = resolve(made({"name": "simpo", "beta": 3.0}, tmp_path=tmp_path), Facts(model_parameters=10**9, **FACTS))
    assert result.recipe.objective.simpo_gamma == 1.5


def test_sft_depends_on_what_it_depended_on_before():
    """Checkpoints and finished stages of earlier versions stay valid."""
    assert objective_values(ObjectiveSection()) == {"name": "sft", "label_smoothing": 0.0, "neftune_noise_alpha": 0.0}


@pytest.mark.parametrize("name", ["sft", "dpo", "orpo", "kto", "simpo", "reward"])
def test_a_resolved_recipe_is_written_and_read_back(tmp_path, name):
    result = resolve(made({"name": name}, tmp_path=tmp_path), Facts(model_parameters=10**9, **FACTS))
    value = recipe_to_dict(result.recipe)
    assert not set(value["objective"]) & set(unused_in_objective(result.recipe.objective))
    again = recipe_from_dict(value, origin="again")
    assert objective_values(again.objective) == objective_values(result.recipe.objective)
