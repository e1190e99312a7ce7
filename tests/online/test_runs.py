"""Contract: a run of online RL is resumed exactly, leaves what other runs leave, and tells what is wrong in time."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from luthier.online.order import prompt_order
from luthier.pipeline.rerun import rerun
from luthier.pipeline.run import run_recipe
from luthier.pipeline.session import Session
from luthier.recipe.schema import ObjectiveSection
from luthier.runs.folder import RunFolder
from luthier.runtime.device import Device
from luthier.runtime.errors import EnvironmentProblem, Interrupted, OutOfMemory, RecipeError, RunFailed
from luthier.search.lr_find import Budget, find_learning_rate
from luthier.search.metric import read_metric
from tests.online.support import World, metrics, train


def weights(run):
    return load_file(next((run / "final").glob("*.safetensors")))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(run, kind):
    return [event for event in RunFolder(run).read_lines("events.jsonl") if event["event"] == kind]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that Ctrl-C stopped after step 3 of 6, and one that was never stopped; validation on the way."""
    world = World.make(tmp_path_factory.mktemp("stopped"))
    settings = {
        "rewards": [world.python("stops")], "train": {"save_steps": 2, "eval_steps": 2},
        "data": {"validation": {"fraction": 0.2}}, "grpo": {"beta": 0.01}, "method": {"name": "lora", "r": 4},
    }  # fmt: skip
    (world.folder / "rewards.py.pressed").touch()
    whole = world.folder / "whole"
    train(world.recipe(whole, **settings))
    (world.folder / "rewards.py.pressed").unlink()
    halved = world.folder / "halved"
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        train(world.recipe(halved, **settings))
    return world, settings, whole, halved


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(stopped, tmp_path):
    world, settings, whole, halved = stopped
    shutil.copytree(halved, tmp_path / "run")
    result = train(world.recipe(tmp_path / "run", **settings)).stages["train"]
    assert result["resumed_from"] == 3
    assert metrics(tmp_path / "run") == metrics(whole)
    assert same(weights(tmp_path / "run"), weights(whole))
    assert [line["step"] for line in metrics(whole) if "eval_reward" in line] == [2, 4, 6]


def test_a_checkpoint_that_was_never_finished_is_removed_and_an_older_one_taken(stopped, tmp_path):
    world, settings, whole, halved = stopped
    run = tmp_path / "run"
    shutil.copytree(halved, run)
    (run / "checkpoints" / "checkpoint-3" / "luthier.json").unlink()
    assert train(world.recipe(run, **settings)).stages["train"]["resumed_from"] == 2
    assert [event["step"] for event in events(run, "checkpoint_removed")] == [3]
    assert metrics(run) == metrics(whole) and same(weights(run), weights(whole))


def test_an_altered_checkpoint_is_named_and_passed_over(stopped, tmp_path):
    world, settings, _, halved = stopped
    run = tmp_path / "run"
    shutil.copytree(halved, run)
    for step in (2, 3):
        file = run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(RunFailed, match=r"optimizer\.pt was altered"):
        train(world.recipe(run, **settings))


def test_other_settings_and_another_reward_code_do_not_go_on(stopped, tmp_path):
    world, settings, _, halved = stopped
    run = tmp_path / "run"
    shutil.copytree(halved, run)
    with pytest.raises(RecipeError, match=r"beta: 0\.01 -> 0\.02"):
        train(world.recipe(run, **{**settings, "grpo": {"beta": 0.02}}))
    file = world.folder / "rewards.py"
    text = file.read_text()
    try:
        file.write_text(text + "\n# changed\n")
        with pytest.raises(RecipeError, match="code:"):
            train(world.recipe(run, **settings))
    finally:
        file.write_text(text)


def test_a_run_killed_between_its_last_checkpoint_and_its_result_only_writes_the_result(stopped, tmp_path):
    world, settings, whole, _ = stopped
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "final")
    (run / "stages" / "train.json").unlink()
    result = train(world.recipe(run, **settings)).stages["train"]
    assert result["resumed_from"] == 6 and same(weights(run), weights(whole))
    assert metrics(run)[: len(metrics(whole)) - 1] == metrics(whole)[:-1]
    assert result["tokens"] == metrics(whole)[-2]["tokens"]


def test_rerun_gives_equal_numbers_to_the_last_bit(stopped, tmp_path):
    _, _, whole, _ = stopped
    outcome = rerun(whole, tmp_path / "again", command=[])
    assert outcome.equal, outcome.differences


def test_no_pickle_is_left_and_every_file_of_a_checkpoint_is_sealed(stopped):
    _, _, whole, _ = stopped
    folders = sorted((whole / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["checkpoint-4", "checkpoint-6"], "save_total_limit"
    assert not list((whole / "checkpoints").rglob("*.bin"))
    listed = json.loads((folders[0] / "luthier.json").read_text())["files"]
    there = {file.relative_to(folders[0]).as_posix() for file in folders[0].rglob("*") if file.is_file()}
    assert set(listed) | {"luthier.json"} == there


def test_the_whole_chain_scores_before_and_after_and_merges(world, tmp_path):
    rows = tmp_path / "test.jsonl"
    rows.write_text("\n".join((world.folder / "rows.jsonl").read_text().splitlines()[:3]))
    recipe = world.recipe(
        tmp_path / "run", rewards=[{"name": "exact_match"}, {"name": "length", "soft_tokens": 4}],
        method={"name": "lora", "r": 4}, grpo={"num_iterations": 2, "loss_type": "dr_grpo", "scale_rewards": "none"},
        train={"max_steps": 4}, export={"merge": True},
        evaluate={"tasks": [{"name": "held_out", "path": str(rows), "metric": "loss"}]},
    )  # fmt: skip
    result = run_recipe(recipe, command=["test"])
    assert list(result.stages) == ["data", "baseline", "train", "evaluate", "compare", "merge", "report"]
    run = tmp_path / "run"
    assert (run / "merged" / "model.safetensors").is_file() and result.stages["merge"]["passed"] is True
    assert json.loads((run / "data" / "manifest.json").read_text())["rows_are"] == "prompts"
    page = (run / "report.html").read_text()
    assert "Mean reward" in page and "prompts" in page
    assert json.loads((run / "measured.json").read_text())["generation_seconds_per_step"] > 0
    assert run_recipe(recipe).reused == tuple(result.stages), "nothing runs twice"
    settings = json.loads((run / "final" / "adapter_config.json").read_text())
    assert settings["r"] == 4 and not (run / "final" / "ref").exists()


def test_full_tuning_in_bfloat16_trains_float32_and_saves_bfloat16(world, tmp_path):
    recipe = world.recipe(tmp_path / "run", model={"dtype": "bfloat16"}, train={"max_steps": 2, "learning_rate": 1e-6})
    train(recipe)
    sft = recipe.model_copy(update={"objective": ObjectiveSection(), "output_dir": str(tmp_path / "sft")})
    train(sft)  # what accelerate keeps for the process does not stand in the way of the loop of our own
    final, start = weights(tmp_path / "run"), weights_of_model(world)
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    moved = max(float((kept[name] - start[name]).abs().max()) for name in kept)
    assert 0 < moved < 1e-4, "steps of 1e-6 are kept, which bfloat16 weights would have lost"
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["pad_token_id"] == 2 and config.get("use_cache", True)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_are_trained_in_float32_on_a_base_of_16_or_4_bits(world, tmp_path, method):
    recipe = world.recipe(
        tmp_path / "run", model={"dtype": "bfloat16"}, method={"name": method, "r": 4}, grpo={"beta": 0.01},
        train={"max_steps": 2, "learning_rate": 1e-6},
    )  # fmt: skip
    train(recipe)
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    moved = [float(tensor.abs().max()) for name, tensor in kept.items() if "lora_B" in name]
    assert 0 < max(moved) < 1e-5, "B starts at 0 and two steps of 1e-6 are not lost"
    assert same(weights(tmp_path / "run"), kept)


def weights_of_model(world):
    return load_file(world.folder / "model" / "model.safetensors")


# -- told in time


def test_a_row_without_a_reference_is_told_with_its_line_before_anything_is_loaded(world, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.model.load.load_base", None)
    rows = tmp_path / "rows.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "3 7"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "none"}]}
    rows.write_text("\n".join(json.dumps(row) for row in (good, {"messages": good["messages"][:1]}, bad)))
    recipe = world.recipe(tmp_path / "run", rewards=[{"name": "number"}], data={"train": [{"path": str(rows)}]})
    with pytest.raises(Exception, match="no number in the reference") as caught:
        run_recipe(recipe)
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("D251", 2), ("D251", 3)]
    assert caught.value.exit_code == 3


def test_a_reward_that_fails_is_told_with_file_and_line_before_the_baseline(world, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.model.load.load_base", None)
    file = tmp_path / "mine.py"
    file.write_text("def f(prompts, **columns):\n    return [1.0 / 0]\n")
    recipe = world.recipe(tmp_path / "run", rewards=[{"python": f"{file}:f"}])
    with pytest.raises(RecipeError, match="ZeroDivisionError") as caught:
        run_recipe(recipe)
    (problem,) = caught.value.problems
    assert (problem.code, problem.file, problem.line) == ("T491", str(file), 2)
    assert not (tmp_path / "run" / "final").exists()


def test_a_reward_that_fails_later_ends_the_run_with_its_place(world, tmp_path):
    file = tmp_path / "mine.py"
    code = "return [float('nan')] * 32 if len(completions) > 1 else [0]"
    file.write_text(f"def f(completions, **columns):\n    {code}\n")
    with pytest.raises(RunFailed, match="returned nan for completion 0"):
        train(world.recipe(tmp_path / "run", rewards=[{"python": f"{file}:f"}]))
    assert not (tmp_path / "run" / "final").exists()


def test_weights_that_blow_up_end_the_run_before_the_update(world, tmp_path):
    recipe = world.recipe(tmp_path / "run", train={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(RunFailed, match="not finite"):
        train(recipe)


def test_settings_that_trl_refuses_are_a_recipe_error(world, tmp_path):
    recipe = world.recipe(tmp_path / "run", method={"name": "lora", "target_modules": ["lm_head"]})
    with pytest.raises(RecipeError, match="lm_head") as caught:
        train(recipe)
    assert caught.value.problems[0].code == "T494"


def test_memory_that_runs_out_while_the_trainer_is_made_is_no_fault_of_the_settings(monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("luthier.online.trainer.OnlineTrainer.__init__", full)
    world = World.make(tmp_path)
    with pytest.raises(OutOfMemory) as caught:
        train(world.recipe(tmp_path / "run"))
    assert caught.value.problems[0].code == "T440" and "max_completion_length" in caught.value.problems[0].hint


def test_one_process_that_sees_two_gpus_is_told_to_launch_unless_it_only_reads_data(world, tmp_path, monkeypatch):
    gpu = Device(type="cuda", index=0, name="a GPU", memory_bytes=1 << 34, native_bf16=True, reason="test")
    monkeypatch.setattr(Session, "device", gpu)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    recipe = world.recipe(tmp_path / "run")
    with pytest.raises(EnvironmentProblem, match="sees 2") as caught:
        run_recipe(recipe)
    assert "luthier launch --num-gpus 2" in caught.value.problems[0].hint
    assert run_recipe(recipe, only=("data",)).stages["data"]["rows_used"] == 24, "as a launcher does"


# -- order


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_prompt_is_asked_once_before_any_is_asked_twice(shuffle):
    order = prompt_order(10, batches=9, batch=4, seed=3, shuffle=shuffle)
    assert len(order) == 36
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert (order[:10] == list(range(10))) is not shuffle
    assert (order[:10] != order[10:20]) is shuffle
    assert order == prompt_order(10, batches=9, batch=4, seed=3, shuffle=shuffle)
    assert prompt_order(10, batches=2, batch=4, seed=3, shuffle=shuffle) == order[:8]


def test_spectrum_trains_what_is_listed_and_nothing_else(tmp_path):
    world = World.make(tmp_path)
    base = load_file(world.folder / "model" / "model.safetensors")
    name = next(key for key in base if key.endswith("layers.1.mlp.down_proj.weight"))
    (tmp_path / "list.yaml").write_text(f"unfrozen_parameters:\n- ^{name}$\n")
    run = tmp_path / "run"
    method = {"name": "spectrum", "spectrum_file": str(tmp_path / "list.yaml")}
    train(world.recipe(run, method=method, train={"max_steps": 2}))
    after = weights(run)
    assert {key for key in after if not torch.equal(after[key], base[key])} == {name}
    assert (run / "spectrum" / "unfrozen_parameters.yaml").is_file()


def test_settings_of_optimizer_and_schedule_reach_the_trainer(tmp_path):
    world = World.make(tmp_path)
    (tmp_path / "rewards.py.pressed").touch()
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 0}
    decay = {"lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear"}}
    plain = {"optim": "sgd", "max_steps": 4, **schedule, **decay}
    train(world.recipe(tmp_path / "plain", train=plain))
    train(world.recipe(tmp_path / "momentum", train={**plain, "optim_args": {"momentum": 0.9}}))
    rates = [line["learning_rate"] for line in metrics(tmp_path / "plain") if "learning_rate" in line]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005])
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "momentum"))
    with pytest.raises(RecipeError, match="warmup_stable_decay"):
        train(world.recipe(tmp_path / "long", train={**plain, "lr_scheduler_kwargs": {"num_decay_steps": 9}}))


def test_searches_that_need_a_held_out_loss_are_refused(tmp_path):
    recipe = World.make(tmp_path).recipe(tmp_path / "run", data={"validation": {"fraction": 0.2}})
    with pytest.raises(RecipeError, match="online RL has none"):
        find_learning_rate(recipe, Budget())
    with pytest.raises(RecipeError, match="not measured by online RL"):
        read_metric("eval_loss", [recipe])
    assert not (tmp_path / "run-lr-find").exists()
