"""The Python API: thin, typed, with the names of the commands. Heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from luthier.pipeline.rerun import RerunResult
    from luthier.pipeline.run import RunResult
    from luthier.plan.online import OnlinePlan
    from luthier.plan.result import Plan
    from luthier.recipe.schema import Recipe
    from luthier.search.found import Found
    from luthier.search.sweep import SweepResult

__all__ = ["compare", "evaluate", "load_recipe", "lr_find", "merge", "plan", "rerun", "run", "sweep", "train"]


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe from a YAML file, a mapping, or a recipe.

    Args:
        recipe: Path of a YAML file, nested mapping, or recipe.
        overrides: `key.sub=value` strings; only for files.

    Raises:
        RecipeError: every problem at once, with line and column for files.
    """
    from luthier.recipe.load import load_recipe as load_file
    from luthier.recipe.load import recipe_from_dict
    from luthier.recipe.schema import Recipe as RecipeClass
    from luthier.runtime.errors import RecipeError

    if isinstance(recipe, str | Path):
        return load_file(Path(recipe), list(overrides)).recipe
    if overrides:
        raise RecipeError(code="C121", message="overrides go with recipe files only", hint="change the mapping instead")
    return recipe if isinstance(recipe, RecipeClass) else recipe_from_dict(dict(recipe), origin="recipe")


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = (), restart: bool = False
) -> RunResult:
    """Run the whole recipe; finished stages are reused. See `luthier.pipeline.run`."""
    from luthier.pipeline.run import run_recipe

    return run_recipe(load_recipe(recipe, overrides), restart=restart)


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = (), restart: bool = False
) -> RunResult:
    """Only prepare the data and train."""
    from luthier.pipeline.run import run_recipe

    return run_recipe(load_recipe(recipe, overrides), only=("data", "train"), restart=restart)


def lr_find(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = (), steps: int | None = None,
    max_minutes: float | None = None,
) -> Found:  # fmt: skip
    """Find the peak learning rate by a range test and short runs. See `luthier.search.lr_find`."""
    from luthier.search.lr_find import Budget, find_learning_rate

    return find_learning_rate(load_recipe(recipe, overrides), Budget(steps=steps, max_minutes=max_minutes))


def sweep(
    recipe: str | Path, settings: Sequence[str], *, method: Literal["grid", "random", "optuna"] = "grid",
    trials: int | None = None, metric: str = "eval_loss", seed: int = 0, out: str | Path | None = None,
) -> SweepResult:  # fmt: skip
    """Run a recipe file with many settings (`key=a,b`, `key=log:1e-5..1e-3`). See `luthier.search.sweep`."""
    from luthier.search.sweep import SweepOptions, run_sweep

    options = SweepOptions(
        method=method, trials=trials, metric=metric, seed=seed, out=None if out is None else Path(out)
    )
    return run_sweep(Path(recipe), settings, space=None, options=options)


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, gpu: str | None = None, num_gpus: int = 1
) -> Plan | OnlinePlan:
    """Memory, time and the setting a run takes, on this machine or on a named device; loads no weights.

    Of online RL (`objective.name: grpo`) an `OnlinePlan`, which says less (`luthier.plan.online`).
    """
    from luthier.plan.devices import find_device
    from luthier.plan.inputs import documents_of, shape_of
    from luthier.plan.machine import this_machine
    from luthier.plan.online import plan_online
    from luthier.plan.request import make_request
    from luthier.plan.search import make_plan
    from luthier.runtime.env import read_env
    from luthier.runtime.host_memory import free_memory_bytes

    wanted = load_recipe(recipe)
    device = find_device(gpu) if gpu else this_machine()[0]
    cache = read_env().cache_dir
    if wanted.objective.name == "grpo":
        return plan_online(wanted, shape_of(wanted), documents_of(wanted), device, num_gpus=num_gpus)
    request = make_request(
        wanted, shape_of(wanted), documents_of(wanted), device, num_gpus=num_gpus, cache_dir=cache,
        host_memory=None if gpu else free_memory_bytes(),
    )  # fmt: skip
    return make_plan(request)


def evaluate(recipe: str | Path | Mapping[str, Any] | Recipe, *, model: str | Path | None = None) -> dict[str, Any]:
    """Scores and answers of the untouched base, or of an adapter or model folder, on the recipe's tasks."""
    from luthier.pipeline.contest import Contestant, contest

    loaded = load_recipe(recipe)
    one = (
        Contestant(kind="folder", path=Path(model))
        if model
        else Contestant(kind="base", label=str(loaded.model.name_or_path))
    )
    return contest(loaded.evaluate, [one], recipe=loaded)[0].to_json()


def compare(before: str | Path, after: str | Path, *, confidence: float = 0.95) -> dict[str, Any]:
    """Paired comparison of two score files on the same rows."""
    from luthier.evaluate.compare import compare_files

    return compare_files(Path(before), Path(after), confidence=confidence)


def merge(run_folder: str | Path) -> dict[str, Any]:
    """Merge a run's adapter into its base and check the result; returns the check."""
    from luthier.pipeline.rerun import recipe_of_run
    from luthier.pipeline.run import run_recipe

    recipe = recipe_of_run(Path(run_folder))
    forced = recipe.model_copy(update={"export": recipe.export.model_copy(update={"merge": True})})
    return run_recipe(forced, only=("merge",)).stages["merge"]


def rerun(run_folder: str | Path, output_dir: str | Path) -> RerunResult:
    """Repeat a run and say whether every number is equal."""
    from luthier.pipeline.rerun import rerun as repeat

    return repeat(Path(run_folder), Path(output_dir), command=[])
