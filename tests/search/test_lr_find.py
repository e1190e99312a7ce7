"""Contract: `lr-find` on a tiny model: a table, a choice with its neighbourhood, files; the run folder is untouched."""

import json
from dataclasses import replace

import pytest

from luthier.pipeline.run import run_recipe
from luthier.recipe.rates import rule_rate
from luthier.runtime.env import read_env
from luthier.runtime.errors import OutOfMemory, RecipeError
from luthier.search.found import found_lines
from luthier.search.lr_find import Budget, find_learning_rate
from luthier.search.setting import search_folder
from tests.search.world import recipe, tree

SMALL = Budget(steps=4, range_steps=24)


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return find_learning_rate(recipe(world, tmp_path_factory.mktemp("lr") / "run"), SMALL)


def test_the_best_is_inside_and_has_the_lowest_held_out_loss(found):
    assert found.choice.usable and found.choice.minimum
    losses = {item.rate: item.score for item in found.outcomes}
    assert min(losses, key=lambda rate: losses[rate]) == found.choice.learning_rate
    assert min(losses) < found.choice.learning_rate < max(losses)
    assert found.choice.eval_loss < found.start_loss
    assert found.line == f"learning_rate: {found.choice.learning_rate:g}"


def test_every_run_has_the_same_tokens(found):
    finished = [item for item in found.outcomes if not item.diverged]
    assert len({item.tokens for item in finished}) == 1 and finished[0].tokens > 4 * 100
    assert {item.steps for item in finished} == {4}


def test_files(found):
    value = json.loads((found.folder / "lr_find.json").read_text())
    assert value["choice"]["learning_rate"] == found.choice.learning_rate and value["line"] == found.line
    assert len(value["range_test"]["points"]) > 3 and value["runs"][0]["rate"] == found.outcomes[0].rate
    for name in ("range_test.svg", "short_runs.svg"):
        text = (found.folder / name).read_text()
        assert text.startswith("<svg xmlns=") and "polyline" in text
    lines = found_lines(found)
    assert any("the rule of `auto` gives" in line for line in lines)
    assert any("4 of the recipe's 8 steps" in line for line in lines)


def test_the_run_folder_is_not_touched(world, tmp_path):
    wanted = recipe(world, tmp_path / "run", train={"max_steps": 2, "learning_rate": 1e-3})
    run_recipe(wanted, only=("data", "train"))
    before = tree(tmp_path / "run")
    result = find_learning_rate(wanted, SMALL)
    assert tree(tmp_path / "run") == before
    assert result.folder == tmp_path / "run-lr-find" == search_folder(wanted)
    assert run_recipe(wanted, only=("data", "train")).reused == ("data", "train")
    assert result.asked == 1e-3


def test_nothing_is_made_of_a_recipe_that_never_ran(found):
    assert not (found.folder.parent / "run").exists()


def test_a_host_without_the_memory_for_offload_is_told_before_the_model_is_loaded(world, tmp_path, monkeypatch):
    from luthier.search import lr_find

    def refuse(session):
        raise RecipeError(code="L310", message="needs 100.0 GiB of host memory")

    monkeypatch.setattr(lr_find, "check_offload", refuse)
    monkeypatch.setattr(lr_find, "tuned_model", lambda session: pytest.fail("it was loaded"))
    with pytest.raises(RecipeError, match="host memory"):
        find_learning_rate(recipe(world, tmp_path / "run"), SMALL)


def test_finished_short_runs_are_taken_over_and_those_of_other_settings_are_not(world, tmp_path, monkeypatch, capfd):
    from luthier.search import lr_find

    ran = []
    real = lr_find.short_run
    monkeypatch.setattr(
        lr_find, "short_run", lambda probe, rate, steps: ran.append(rate) or real(probe, rate, steps=steps)
    )
    first = find_learning_rate(recipe(world, tmp_path / "run"), SMALL)
    count = len(ran)
    assert count == len(first.outcomes)
    again = find_learning_rate(recipe(world, tmp_path / "run"), SMALL)
    assert len(ran) == count and again.outcomes == first.outcomes and again.choice == first.choice
    find_learning_rate(recipe(world, tmp_path / "run", train={"learning_rate": 5e-2}), SMALL)
    assert len(ran) == count, "the rate of the recipe is no part of a short run"
    capfd.readouterr()
    for changes, budget, word in (
        ({}, replace(SMALL, steps=5), "steps: 4 -> 5"),
        ({"train": {"weight_decay": 0.1}}, SMALL, "train.weight_decay"),
        ({"train": {"lr_scheduler_type": "linear"}}, SMALL, "train.lr_scheduler_type"),
        ({"data": {"validation": {"fraction": 0.5}}}, SMALL, "data"),
    ):
        before = len(ran)
        find_learning_rate(recipe(world, tmp_path / "run", **changes), budget)
        assert len(ran) > before, changes
        err = capfd.readouterr().err
        assert "earlier short runs do not count" in err and word in err


def test_a_recipe_without_validation_borrows_a_seeded_share_and_says_so(world, tmp_path, capfd):
    wanted = recipe(world, tmp_path / "run", data={"validation": {}})
    result = find_learning_rate(wanted, SMALL)
    assert result.borrowed == 0.5 and result.eval_rows > 3
    assert "no validation rows in the recipe: 50%" in capfd.readouterr().err
    assert any("held out for this search" in line for line in found_lines(result))


@pytest.mark.parametrize(("extra", "tried"), [(0, 3), (2, 5)])
def test_a_search_that_may_not_go_on_reports_an_edge(world, tmp_path, monkeypatch, extra, tried):
    """Planted: a proposal far below the best. Two more runs are not enough to get there."""
    monkeypatch.setattr("luthier.search.lr_find._centre", lambda curve, rule: 1e-6)
    result = find_learning_rate(recipe(world, tmp_path / "run"), replace(SMALL, extra_runs=extra))
    assert result.choice.edge == "highest" and len(result.outcomes) == tried
    assert not result.choice.usable and result.line is None
    assert "no minimum" in result.verdict and "most that were allowed" in result.verdict


def test_a_proposal_that_is_off_is_corrected_by_the_runs(world, tmp_path, monkeypatch, found):
    monkeypatch.setattr("luthier.search.lr_find._centre", lambda curve, rule: 1e-4)
    result = find_learning_rate(recipe(world, tmp_path / "run"), replace(SMALL, extra_runs=12))
    assert result.choice.learning_rate == found.choice.learning_rate and result.choice.usable


def test_time_that_is_over_ends_the_search_and_is_told(world, tmp_path):
    result = find_learning_rate(recipe(world, tmp_path / "run"), replace(SMALL, max_minutes=1e-6))
    assert len(result.outcomes) == 1 and "--max-minutes" in result.left_out
    assert not result.choice.usable, "one run is no minimum"


def test_with_little_time_the_short_runs_are_shorter(world, tmp_path):
    budget = Budget(steps=None, range_steps=10, max_minutes=1e-6)
    result = find_learning_rate(recipe(world, tmp_path / "run", train={"max_steps": 500}), budget)
    assert result.steps == 10 and result.planned_steps == 500


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"range_steps": 2}, {"runs": 1}, {"eval_rows": 0}, {"max_minutes": 0.0}, {"extra_runs": -1}]
)
def test_budgets_with_which_nothing_can_be_decided_are_refused(world, tmp_path, wrong):
    with pytest.raises(RecipeError, match="C160"):
        find_learning_rate(recipe(world, tmp_path / "run"), replace(Budget(), **wrong))
    assert not list(tmp_path.iterdir())


def test_memory_that_runs_out_is_told_as_in_a_run(world, tmp_path, monkeypatch):
    import torch

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr("luthier.train.step.forward_backward", no_memory)
    with pytest.raises(OutOfMemory, match="T440"):
        find_learning_rate(recipe(world, tmp_path / "run", data={"packing": False}), SMALL)


# -- what `auto` says of it


def resolved_rate(world, folder, **changes):
    from luthier.pipeline.session import Session
    from luthier.runs.folder import RunFolder

    wanted = recipe(world, folder, **changes)
    run_recipe(wanted, only=("data",))
    resolved = Session(wanted, RunFolder(folder)).resolved
    reason = next((item.reason for item in resolved.derived if item.key == "train.learning_rate"), "")
    return resolved.recipe.train.learning_rate, reason


def test_auto_mentions_what_was_found_and_keeps_to_its_rule(world, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    rate, before = resolved_rate(world, tmp_path / "before")
    assert "lr-find" not in before
    result = find_learning_rate(recipe(world, tmp_path / "run"), SMALL)
    same, reason = resolved_rate(world, tmp_path / "after")
    assert same == rate, "a recipe means the same before and after a search"
    assert reason.startswith(before) and f"lr-find found {result.choice.learning_rate:g}" in reason
    for other in (
        {"method": {"name": "lora", "r": 4}}, {"train": {"tokens_per_step": 1024}}, {"data": {"max_length": 64}},
        {"objective": {"label_smoothing": 0.1}},
    ):  # fmt: skip
        assert "lr-find" not in resolved_rate(world, tmp_path / "other", **other)[1], other
    assert "lr-find" in resolved_rate(world, tmp_path / "split", data={"validation": {"fraction": 0.3}})[1]


def test_auto_suggests_nothing_where_searches_disagree(world, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    find_learning_rate(recipe(world, tmp_path / "run"), SMALL)
    (file,) = (read_env().cache_dir / "learning_rates").glob("*.json")
    value = json.loads(file.read_text())
    value["found"].append({**value["found"][0], "learning_rate": 10 * value["found"][0]["learning_rate"]})
    file.write_text(json.dumps(value))
    assert "several rates" in resolved_rate(world, tmp_path / "after")[1]
    file.write_text("{")
    assert "lr-find" not in resolved_rate(world, tmp_path / "damaged")[1]


def test_the_rule_of_the_result_is_that_of_auto(world, found, tmp_path):
    rate, reason = resolved_rate(world, tmp_path / "auto")
    assert found.rule == rate and reason.startswith(found.rule_reason)
    assert rule_rate("full", 7_000_000_000, 16_384)[0] == 2e-5
