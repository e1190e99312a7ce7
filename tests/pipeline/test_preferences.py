"""Contract: a recipe over preferences runs every stage, says what changed on held-out answers, and is reused."""

import json
import random
from pathlib import Path

import pytest

from luthier.pipeline.run import run_recipe
from luthier.recipe.load import recipe_from_dict
from tests.support.tiny import WORDS, conversations, save_tiny

OBJECTIVES = {
    "dpo": {"name": "dpo"}, "ipo": {"name": "dpo", "loss_type": "ipo", "beta": 0.5}, "orpo": {"name": "orpo"},
    "simpo": {"name": "simpo"}, "kto": {"name": "kto"}, "reward": {"name": "reward"},
}  # fmt: skip


def lines(n: int, *, rated: bool) -> str:
    """Chosen answers begin with `yes`-like words, rejected ones with others: something a model can learn."""
    chooser = random.Random(0)
    rows = []
    for place in range(n):
        prompt = [{"role": "user", "content": " ".join(chooser.choices(WORDS, k=8))}]
        good, bad = (
            [{"role": "assistant", "content": f"{word} {' '.join(chooser.choices(WORDS, k=chooser.randint(2, 9)))}"}]
            for word in ("time", "hand")
        )
        if rated:
            rows.append({"prompt": prompt, "completion": good if place % 2 else bad, "label": bool(place % 2)})
        else:
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    (folder / "pairs.jsonl").write_text(lines(40, rated=False))
    (folder / "rated.jsonl").write_text(lines(40, rated=True))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(4, seed=1)))
    return folder


def recipe(folder: Path, name: str, **changes):
    value = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {
            "train": [{"path": str(folder / ("rated.jsonl" if name == "kto" else "pairs.jsonl"))}],
            "validation": {"fraction": 0.25}, "max_length": 128,
        },
        "method": {"name": "lora", "r": 4}, "objective": OBJECTIVES[name],
        "train": {"max_steps": 6, "learning_rate": 2e-2, "tokens_per_step": 512, "eval_steps": 3},
        "output_dir": str(folder / name), **changes,
    }  # fmt: skip
    return recipe_from_dict(value, origin="test")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_stage_runs_and_the_report_says_what_changed(folder, name):
    result = run_recipe(recipe(folder, name), command=["test"])
    assert list(result.stages) == ["data", "train", "merge", "report"]
    assert result.stages["merge"]["passed"] is True
    found = result.stages["train"]["preferences"]
    assert found["n"] == result.stages["data"]["validation_rows"] > 3
    names = [measure["name"] for measure in found["measures"]]
    expected = {"kto": ["auc"], "reward": ["reward"], "dpo": ["implicit", "log_prob", "log_prob_mean"]}
    assert names == expected.get("dpo" if name == "ipo" else name, ["log_prob", "log_prob_mean"])
    assert json.loads((folder / name / "eval" / "preferences.json").read_text()) == found
    page = (folder / name / "report.html").read_text()
    assert "held-out answers" in page
    assert "Reward margin" in page
    resolved = (folder / name / "resolved.yaml").read_text()
    assert ("beta:" in resolved) == (name != "reward")
    assert "simpo_gamma: 1.0  # half of beta 2" in resolved or name != "simpo"
    again = run_recipe(recipe(folder, name))
    assert again.reused == ("data", "train", "merge", "report")


def test_learning_to_prefer_is_seen_on_held_out_pairs(folder):
    run = run_recipe(recipe(folder, "dpo", output_dir=str(folder / "long"), train={
        "max_steps": 30, "learning_rate": 2e-2, "tokens_per_step": 1024, "save_steps": 30,
    }))  # fmt: skip
    implicit = run.stages["train"]["preferences"]["measures"][0]
    assert implicit["before"] is None
    assert implicit["after"] >= 0.9
    assert implicit["low"] > 0.5


def test_another_beta_trains_again_and_takes_the_cached_reference(folder, capsys):
    run_recipe(recipe(folder, "dpo", output_dir=str(folder / "beta")))
    changed = recipe(folder, "dpo", objective={"name": "dpo", "beta": 0.4}, output_dir=str(folder / "beta"))
    assert run_recipe(changed).reused == ("data",)
    assert "cached, and a sample agrees" in capsys.readouterr().err


def test_tasks_are_scored_as_for_any_other_objective(folder):
    tasks = [{"name": "held_out", "path": str(folder / "test.jsonl"), "metric": "loss"}]
    result = run_recipe(recipe(folder, "dpo", evaluate={"tasks": tasks}, output_dir=str(folder / "tasks")))
    assert list(result.stages) == ["data", "baseline", "train", "evaluate", "compare", "merge", "report"]
