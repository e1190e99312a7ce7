"""Contract: one recipe, every stage; a finished stage is reused until something it depends on changes."""

import json
import shutil

import pytest

from luthier.pipeline.rerun import rerun
from luthier.pipeline.run import run_recipe
from luthier.recipe.load import recipe_from_dict
from luthier.runs.overview import describe_run, find_runs
from luthier.runtime.errors import LuthierError, RecipeError
from tests.support.tiny import conversations, save_tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, 24 training rows, 6 test rows, and one finished run."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    for name, count, seed in (("train", 24, 0), ("test", 6, 1)):
        lines = [json.dumps(row) + "\n" for row in conversations(count, seed=seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    result = run_recipe(_recipe(folder), command=["test"])
    return folder, result


def _recipe(folder, **changes):
    value = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {
            "train": [{"path": str(folder / "train.jsonl")}],
            "validation": {"fraction": 0.2},
            "max_length": 128,
        },
        "method": {"name": "lora", "r": 4},
        "train": {"max_steps": 4, "learning_rate": 1e-3, "tokens_per_step": 256},
        "evaluate": {
            "tasks": [
                {"name": "words", "path": str(folder / "test.jsonl"), "metric": "exact", "max_new_tokens": 4},
                {"name": "held_out", "path": str(folder / "test.jsonl"), "metric": "loss"},
            ]
        },
        "output_dir": str(folder / "run"),
    }
    for key, change in changes.items():
        value[key] = {**value.get(key, {}), **change} if isinstance(change, dict) else change
    return recipe_from_dict(value, origin="test")


def test_every_stage_ran_and_left_its_files(world):
    folder, result = world
    assert list(result.stages) == ["data", "baseline", "train", "evaluate", "compare", "merge", "report"]
    assert result.reused == ()
    for name in ("recipe.yaml", "resolved.yaml", "manifest.json", "metrics.jsonl", "events.jsonl", "data/manifest.json",
                 "eval/before.json", "eval/after.json", "eval/comparison.json", "export/merge.json", "report.html",
                 "final/adapter_model.safetensors", "merged/model.safetensors"):  # fmt: skip
        assert (folder / "run" / name).is_file(), name
    assert result.stages["merge"]["passed"] is True
    held_out = next(task for task in result.comparison if task["name"] == "held_out")
    assert held_out["after"] < held_out["before"], "four steps lower the held-out loss of a random model"
    assert held_out["verdict"] == "better", "a lower loss is better"


def test_the_manifest_holds_what_is_needed_to_repeat_the_run(world):
    folder, _ = world
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert manifest["versions"]["torch"] and manifest["hardware"]["cpu"]
    assert manifest["base"] and manifest["sources"] and manifest["data"]
    assert manifest["recipe"]["train"]["max_steps"] == 4 and manifest["seed"] == 0


def test_a_run_whose_adapters_start_in_the_base_is_scored_and_merged_on_the_untouched_one(world, tmp_path):
    """PiSSA through every stage: step 0 is the base, the saved adapter is plain, its merge is checked."""
    folder, plain = world
    method = {"name": "lora", "r": 4, "init_lora_weights": "pissa"}
    train = {"max_steps": 4, "learning_rate": 1e-3, "tokens_per_step": 256, "loraplus_lr_ratio": 4.0}
    recipe = _recipe(folder, output_dir=str(tmp_path / "run"), method=method, train=train)
    result = run_recipe(recipe)
    assert result.stages["train"]["first_loss"] == pytest.approx(plain.stages["train"]["first_loss"], abs=1e-4)
    config = json.loads((tmp_path / "run/final/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    assert (tmp_path / "run/start/start.safetensors").is_file()
    assert result.stages["merge"]["passed"] is True
    held_out = next(task for task in result.comparison if task["name"] == "held_out")
    assert held_out["verdict"] == "better"
    assert len(run_recipe(recipe).reused) == 7


def test_a_second_call_reuses_everything_and_loads_no_model(world, monkeypatch):
    folder, _ = world
    monkeypatch.setattr("luthier.model.load.load_base", None)
    again = run_recipe(_recipe(folder))
    assert len(again.reused) == len(again.stages) == 7


def test_a_changed_learning_rate_runs_training_and_what_follows_but_not_data_and_baseline(world, tmp_path):
    folder, _ = world
    shutil.copytree(folder / "run", tmp_path / "run")
    changed = _recipe(folder, train={"learning_rate": 5e-3}, output_dir=str(tmp_path / "run"))
    result = run_recipe(changed)
    assert result.reused == ("data", "baseline")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    reasons = {event["stage"]: event["reason"] for event in events if event["event"] == "stage_started"}
    assert reasons["train"] == "changed: train.learning_rate: 0.001 -> 0.005"
    assert reasons["evaluate"].startswith("changed: weights")


def test_a_changed_row_runs_data_again(world, tmp_path):
    folder, _ = world
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(folder / name, tmp_path / name)
    shutil.copytree(folder / "run", tmp_path / "run")
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace("time", "life", 1))
    changed = _recipe(
        folder,
        data={"train": [{"path": str(tmp_path / "train.jsonl")}]},
        output_dir=str(tmp_path / "run"),
    )
    result = run_recipe(changed, only=("data",))
    assert result.reused == ()


def test_a_lost_file_is_made_again(world, tmp_path):
    folder, _ = world
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "merged")
    result = run_recipe(_recipe(folder, output_dir=str(tmp_path / "run")))
    assert set(result.stages) - set(result.reused) == {"merge", "report"}
    assert (tmp_path / "run" / "merged" / "model.safetensors").is_file()


def test_rerun_gives_equal_numbers_to_the_last_bit(world, tmp_path):
    folder, _ = world
    outcome = rerun(folder / "run", tmp_path / "again", command=[])
    assert outcome.equal, outcome.differences


def test_rerun_notices_a_number_that_is_not_equal(world, tmp_path):
    folder, _ = world
    shutil.copytree(folder / "run", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    first = json.loads(lines[0])
    first["loss"] += 1e-12
    metrics.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    # What one process cannot have is left out, and nothing else differs.
    manifest["recipe"]["distributed"] = {"strategy": "fsdp2", "dp_replicate_size": 2, "sequence_parallel_size": 2}
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    outcome = rerun(tmp_path / "run", tmp_path / "again", command=[])
    assert [line.split(":")[0] for line in outcome.differences] == ["metrics step 1 loss"]
    assert not outcome.equal
    assert any("loss" in line for line in outcome.differences)


def test_a_rerun_in_one_process_says_how_many_there_were(world, tmp_path):
    from luthier.pipeline.rerun import PATH_KEYS, _processes
    from luthier.runs.folder import RunFolder

    folder, _ = world
    old = RunFolder(folder / "run")
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run/stages/train.json"
    record = json.loads(file.read_text())
    record["result"]["processes"] = 8
    file.write_text(json.dumps(record))
    (line,) = _processes(RunFolder(tmp_path / "run"), old)
    assert line.startswith("processes: 8 -> 1;") and _processes(old, old) == []
    assert {"deepspeed_config", "accelerate_config"} <= set(PATH_KEYS)


def test_runs_are_found_and_described(world):
    folder, _ = world
    overview = find_runs(folder)
    assert [run["folder"] for run in overview] == [str(folder / "run")]
    assert overview[0]["method"] == "lora" and overview[0]["steps"] == 4
    assert set(describe_run(folder / "run")["stages"]) >= {"data", "train", "merge"}
    with pytest.raises(RecipeError, match="no run folder"):
        describe_run(folder / "model")


def test_an_interrupted_training_of_another_kind_is_refused_before_anything_changes(world, tmp_path):
    folder, _ = world
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "stages" / "train.json").unlink()  # as after a kill in training: checkpoints, no finished stage
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"train\.seed: 0 -> 5"):
        run_recipe(_recipe(folder, train={"seed": 5}, output_dir=str(tmp_path / "run")))
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    result = run_recipe(_recipe(folder, output_dir=str(tmp_path / "run")))
    assert result.stages["train"]["resumed_from"] == 4, "the same recipe goes on from the checkpoint"


def test_a_tracker_that_is_not_there_is_told_before_the_baseline(world, tmp_path, monkeypatch):
    folder, _ = world
    monkeypatch.setattr("luthier.runtime.trackers.PACKAGES", {"wandb": ("no_such_package",)})
    recipe = _recipe(folder, train={"report_to": ["wandb"]}, output_dir=str(tmp_path / "run"))
    with pytest.raises(LuthierError, match="which is not installed") as caught:
        run_recipe(recipe)
    assert (caught.value.problems[0].code, caught.value.exit_code) == ("T461", 4)
    assert not (tmp_path / "run" / "eval").exists() and not (tmp_path / "run" / "data").exists()


def test_a_task_that_cannot_be_read_is_told_before_training(world, tmp_path):
    folder, _ = world
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "no answer"}]}\n')
    tasks = {
        "tasks": [{"name": "bad", "path": str(tmp_path / "bad.jsonl"), "metric": "exact"}],
        "compare_with_base": False,
    }
    with pytest.raises(LuthierError, match=r"bad\.jsonl"):
        run_recipe(_recipe(folder, evaluate=tasks, output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_models_carry_their_cards_and_keep_what_people_wrote(world):
    folder, _ = world
    cards = [folder / "run" / name / "README.md" for name in ("final", "merged")]
    for card in cards:
        text = card.read_text("utf-8")
        assert "| words |" in text and "## Limits" in text and "blake2b-128" in text
        assert str(folder) not in text, "no place of this machine"
    cards[1].write_text(cards[1].read_text("utf-8") + "\nMine.\n", "utf-8")
    again = run_recipe(_recipe(folder, export={"merge": True, "max_shard_size": "1GB"}))
    assert "merge" not in again.reused
    assert cards[1].read_text("utf-8").endswith("\nMine.\n")
