"""Contract: every trial is checked first and is a run like any other; finished ones are reused, failed ones recorded,
and the best does not depend on the order."""

import json
import shutil
from dataclasses import replace

import pytest

from luthier.pipeline.run import run_recipe
from luthier.recipe.load import load_recipe
from luthier.runtime.errors import Interrupted, RecipeError, RunFailed
from luthier.search import trials as trials_module
from luthier.search.sweep import SweepOptions, rank, run_sweep
from luthier.search.trials import TrialResult
from tests.search.world import recipe, tree, write_recipe

RATES = "train.learning_rate=1e-4,1e-2"


@pytest.fixture
def path(world, tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", world, train={"max_steps": 3})


def sweep(path, *arguments, **options):
    return run_sweep(path, arguments, space=None, options=SweepOptions(**options))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A finished sweep of four trials, through which most tests look."""
    path = write_recipe(tmp_path_factory.mktemp("done") / "recipe.yaml", world, train={"max_steps": 3})
    return path, sweep(path, RATES, "method={name: lora, r: 4}", "method.r=2,8")


def test_every_combination_is_a_run_and_the_lowest_loss_is_best(done):
    _, result = done
    assert len(result.trials) == 4 and {str(item.settings) for item in result.trials} == {
        str({"train.learning_rate": rate, "method.r": r}) for rate in (1e-4, 1e-2) for r in (2, 8)
    }
    assert result.best.value == min(item.value for item in result.trials) and result.best is result.trials[0]
    assert result.best.settings["train.learning_rate"] == 1e-2


def test_a_trial_is_what_luthier_run_writes(world, done, tmp_path):
    """The same recipe run by itself: equal stages, metrics and weights."""
    _, result = done
    own = load_recipe(result.folder / result.trials[1].folder / "recipe.yaml").recipe
    alone = run_recipe(own.model_copy(update={"output_dir": str(tmp_path / "alone")}), only=("data", "train", "report"))
    files, theirs = tree(tmp_path / "alone"), tree(result.folder / result.trials[1].folder)
    assert set(files) == set(theirs)
    assert files["final/adapter_model.safetensors"] == theirs["final/adapter_model.safetensors"]
    assert alone.stages["train"]["eval_loss"] == result.trials[1].value


def test_the_recipe_of_a_trial_goes_on_with_the_other_stages(world, done):
    _, result = done
    own = load_recipe(result.folder / result.best.folder / "recipe.yaml")
    assert own.recipe.train.learning_rate == 1e-2 and own.recipe.output_dir == result.best.folder
    again = run_recipe(own.recipe)
    assert {"data", "train"} <= set(again.reused)


def test_json_and_page(done):
    _, result = done
    value = json.loads((result.folder / "sweep.json").read_text())
    assert [item["value"] for item in value["trials"]] == [item.value for item in result.trials]
    assert value["best"]["settings"] == result.best.settings and value["minimise"] is True
    page = (result.folder / "index.html").read_text()
    assert page.count("<svg") == 2 and "train.learning_rate=0.01" in page and "<script" not in page
    for item in result.trials:
        assert f"{item.value:.3f}"[:4] in page


def test_finished_trials_are_reused_and_a_longer_sweep_keeps_them(done, monkeypatch, world):
    path, result = done
    monkeypatch.setattr("luthier.model.load.load_base", None)
    again = sweep(path, RATES, "method={name: lora, r: 4}", "method.r=2,8")
    assert all(item.reused for item in again.trials)
    assert [(i.settings, i.value, i.folder) for i in again.trials] == [
        (i.settings, i.value, i.folder) for i in result.trials
    ]
    monkeypatch.undo()
    more = sweep(path, "train.learning_rate=1e-4,1e-3,1e-2", "method={name: lora, r: 4}", "method.r=2,8")
    assert sorted(item.reused for item in more.trials) == [False, False, True, True, True, True]


def test_the_order_of_the_trials_does_not_matter(done, tmp_path):
    path, result = done
    other = run_sweep(
        path, ["train.learning_rate=1e-2,1e-4", "method={name: lora, r: 4}", "method.r=8,2"], space=None,
        options=SweepOptions(out=tmp_path / "other"),
    )  # fmt: skip
    assert [(i.settings, i.value) for i in other.trials] == [(i.settings, i.value) for i in result.trials]


def test_a_trial_of_other_settings_is_never_reused(path):
    """Of the sweep, of the base recipe, of an override for all."""
    first = sweep(path, RATES)
    for arguments in (
        [RATES, "train.max_steps=4"],
        [RATES, "train.weight_decay=0.1"],
        ["train.learning_rate=2e-4,2e-2"],
    ):
        other = sweep(path, *arguments)
        assert not any(item.reused for item in other.trials)
        assert {item.folder for item in other.trials}.isdisjoint(item.folder for item in first.trials)
    assert all(item.reused for item in sweep(path, RATES).trials)


def test_planted_a_folder_named_without_the_whole_recipe_is_not_taken_for_another(path, monkeypatch):
    """Even if the names of two trials were the same, the stages of the run would notice."""
    monkeypatch.setattr(trials_module, "trial_name", lambda recipe, settings: "_".join(map(str, settings.values())))
    before = sweep(path, RATES)
    after = sweep(path, RATES, "train.max_steps=4")
    assert [i.folder for i in before.trials] == [i.folder for i in after.trials]
    assert not any(item.reused for item in after.trials) and {item.steps for item in after.trials} == {4}


def test_changed_rows_are_noticed_in_a_reused_folder(path, world, tmp_path):
    shutil.copy(world / "train.jsonl", tmp_path / "rows.jsonl")
    argument = f"data.train.0.path={tmp_path / 'rows.jsonl'}"
    sweep(path, RATES, argument)
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("time", "life"))
    assert not any(item.reused for item in sweep(path, RATES, argument).trials)


def test_what_is_wrong_with_any_trial_is_told_before_the_first_one(path, tmp_path):
    with pytest.raises(RecipeError) as error:
        sweep(path, "train.learning_rat=1e-4,1e-3", "train.weight_decay=0.1,-1", "train.optim=sgd,adm")
    messages = [item.message for item in error.value.problems]
    assert sum("learning_rat" in message for message in messages) == 1, "once, not once for each trial"
    assert any("weight_decay" in message and "-1" in message for message in messages)
    assert any("adm" in message for message in messages)
    assert not (tmp_path / "run-sweep").exists()


def test_keys_that_exclude_each_other_in_one_trial_only_are_told_too(path, tmp_path):
    with pytest.raises(RecipeError, match="optim sgd has no such setting"):
        sweep(path, "train.optim=adamw_torch,sgd", "train.adam_beta2=0.99,0.95")
    with pytest.raises(RecipeError, match="lora_dropout"):
        sweep(path, "method={name: lora}", "method.lora_dropout=lin:0.5..1.5", method="random", trials=8)
    assert not (tmp_path / "run-sweep").exists()


def test_optuna_is_checked_at_the_ends_of_its_ranges(path):
    with pytest.raises(RecipeError, match="lora_dropout"):
        sweep(path, "method={name: lora}", "method.lora_dropout=lin:0..1.5", method="optuna", trials=4)


def test_a_failed_trial_is_recorded_and_the_others_go_on(path):
    """A rate of 1e38 ends in NaN: the run fails, the sweep does not."""
    result = sweep(path, "train.learning_rate=1e38,1e-3")
    good, bad = result.trials
    assert good.value is not None and bad.status == "failed" and bad.value is None
    assert bad.reason.startswith("T41") and result.best is good
    page = (result.folder / "index.html").read_text()
    assert "failed" in page and bad.reason[:30] in page.replace("&#39;", "'")
    again = sweep(path, "train.learning_rate=1e38,1e-3")
    assert again.trials[0].reused and again.trials[1].status == "failed"


def test_an_unexpected_error_in_a_trial_is_recorded_too(path, monkeypatch):
    real = trials_module.run_recipe

    def broken(recipe, **kwargs):
        if recipe.train.learning_rate > 1e-3:
            raise TypeError("planted <b>")
        return real(recipe, **kwargs)

    monkeypatch.setattr(trials_module, "run_recipe", broken)
    result = sweep(path, RATES)
    assert result.trials[1].reason == "unexpected TypeError: planted <b>"
    assert "planted &lt;b&gt;" in (result.folder / "index.html").read_text(), "text of errors is escaped"


def test_a_sweep_of_failed_trials_fails_with_every_reason(path, tmp_path):
    with pytest.raises(RunFailed) as error:
        sweep(path, "train.learning_rate=1e37,1e38")
    assert error.value.problems[0].code == "T482" and len(error.value.problems) == 3
    assert len(json.loads((tmp_path / "run-sweep" / "sweep.json").read_text())["trials"]) == 2


def test_an_interrupted_sweep_goes_on(path, monkeypatch, tmp_path):
    real, calls = trials_module.run_recipe, []

    def interrupted(recipe, **kwargs):
        calls.append(recipe)
        if len(calls) == 2:
            raise Interrupted(code="T480", message="planted")
        return real(recipe, **kwargs)

    monkeypatch.setattr(trials_module, "run_recipe", interrupted)
    with pytest.raises(Interrupted):
        sweep(path, RATES)
    assert len(json.loads((tmp_path / "run-sweep" / "sweep.json").read_text())["trials"]) == 1
    monkeypatch.undo()
    assert sorted(item.reused for item in sweep(path, RATES).trials) == [False, True]


def test_time_that_is_over_ends_the_sweep_and_is_told(path):
    result = sweep(path, "train.learning_rate=1e-4,1e-3,1e-2", max_minutes=1e-3)
    assert len(result.trials) == 1 and result.left_out == "--max-minutes: 2 trials were not run"


def test_random_is_seeded_and_its_trials_are_kept_by_a_longer_sweep(path):
    argument = "train.learning_rate=log:1e-5..1e-2"
    two = sweep(path, argument, method="random", trials=2, seed=5)
    three = sweep(path, argument, method="random", trials=3, seed=5)
    assert sorted(item.reused for item in three.trials) == [False, True, True]
    assert {str(i.settings) for i in two.trials} < {str(i.settings) for i in three.trials}
    few = sweep(path, "train.learning_rate=1e-4,1e-3", method="random", trials=9)
    assert few.left_out == "there are only 2 different settings" and len(few.trials) == 2


def test_optuna_goes_on_where_it_was(path):
    pytest.importorskip("optuna")
    argument = "train.learning_rate=log:1e-5..1e-2"
    two = sweep(path, argument, method="optuna", trials=2, seed=5)
    three = sweep(path, argument, method="optuna", trials=3, seed=5)
    assert sorted(item.reused for item in three.trials) == [False, True, True]
    assert {str(i.settings) for i in two.trials} < {str(i.settings) for i in three.trials}
    few = sweep(path, "train.learning_rate=1e-4,1e-3", method="optuna", trials=5)
    assert len(few.trials) == 2 and "only 2 different" in few.left_out


def test_the_held_out_loss_is_that_of_the_weights_that_are_kept(path):
    """With `load_best_model_at_end` the last loss is not the one of `final/`."""
    result = sweep(path, "train.learning_rate=1e-1,3e-1", "train.max_steps=8", "train.load_best_model_at_end=true")
    for item in result.trials:
        stage = json.loads((result.folder / item.folder / "stages" / "train.json").read_text())["result"]
        assert item.value == stage["best_eval_loss"] <= stage["eval_loss"]


@pytest.mark.parametrize(("minimise", "order"), [(True, [1, 2, 3, None]), (False, [3, 2, 1, None])])
def test_lower_or_higher_is_better_and_failed_trials_come_last(minimise, order):
    def result(value):
        return TrialResult(
            settings={"a.b": value}, folder="x", status="failed" if value is None else "finished", value=value,
            train_loss=None, steps=None, seconds=0.0, reused=False, reason=None,
        )  # fmt: skip

    assert [item.value for item in rank([result(v) for v in (2, None, 3, 1)], minimise=minimise)] == order
    tied = [replace(result(1.0), settings={"a.b": name}) for name in "xyz"]
    assert rank(tied, minimise=minimise) == rank(tied[::-1], minimise=minimise)


def test_a_task_ranks_by_its_score(world, tmp_path):
    tasks = [{"name": "words", "path": str(world / "test.jsonl"), "metric": "exact", "max_new_tokens": 4},
             {"name": "held", "path": str(world / "test.jsonl"), "metric": "loss"}]  # fmt: skip
    path = write_recipe(tmp_path / "recipe.yaml", world, train={"max_steps": 3}, evaluate={"tasks": tasks})
    result = sweep(path, RATES, metric="task:held")
    assert result.minimise and result.trials[0].value < result.trials[1].value
    assert result.best.settings == {"train.learning_rate": 1e-2}
    assert not sweep(path, RATES, metric="task:words").minimise
    with pytest.raises(RecipeError, match="did you mean task:words"):
        sweep(path, RATES, metric="task:word")
    with pytest.raises(RecipeError, match="is no metric"):
        sweep(path, RATES, metric="loss")


def test_all_stages_are_run_when_asked_for(world, tmp_path):
    path = write_recipe(
        tmp_path / "recipe.yaml", world, train={"max_steps": 2}, method={"name": "lora", "r": 2}, export={"merge": True}
    )
    result = sweep(path, RATES, all_stages=True)
    assert (result.folder / result.best.folder / "merged" / "model.safetensors").is_file()


def test_a_sweep_without_held_out_rows_is_refused(world, tmp_path):
    path = write_recipe(tmp_path / "recipe.yaml", world, data={"validation": {}})
    with pytest.raises(RecipeError, match="C164"):
        sweep(path, RATES)
    assert recipe(world, tmp_path / "x") and not (tmp_path / "run-sweep").exists()


def test_the_base_recipes_own_folder_is_not_touched(path, tmp_path):
    sweep(path, RATES)
    assert not (tmp_path / "run").exists() and (tmp_path / "run-sweep").is_dir()
