"""One trial of a sweep: the base recipe with other settings, in a run folder of its own.

The folder's name ends in a hash of the whole recipe it is for. So the same settings find their folder again
whatever the order of the trials, and other settings, of the sweep or of the base recipe, never do. What changed
outside the recipe (rows, code) is found by the stages of the run themselves.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.pipeline.run import run_recipe
from luthier.recipe.emit import scalar
from luthier.recipe.load import load_recipe
from luthier.recipe.push_rules import unpublished
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import Interrupted, LuthierError, Problem, RecipeError
from luthier.runtime.hashing import hash_json
from luthier.search.design import Settings
from luthier.search.metric import Metric

__all__ = ["Trial", "TrialResult", "make_trials", "run_trial", "trial_name"]

_UNSAFE = re.compile(r"[^A-Za-z0-9.+=-]+")
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Settings, and the recipe they make."""

    settings: Settings
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What a trial came to."""

    settings: Settings
    folder: str
    status: Literal["finished", "failed"]
    value: float | None
    """The metric; None: it failed."""
    train_loss: float | None
    steps: int | None
    seconds: float
    """Of its stages, whenever they ran."""
    reused: bool
    """Nothing had to run."""
    reason: str | None
    """Why it failed."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def make_trials(path: Path, overrides: Sequence[str], designs: Sequence[Settings], folder: Path) -> list[Trial]:
    """Load and check the recipe of every trial before any of them runs.

    Raises:
        RecipeError: what is wrong with any trial, each problem once.
    """
    trials: list[Trial] = []
    problems: dict[tuple[str, str], Problem] = {}
    counts: dict[tuple[str, str], int] = {}
    for settings in designs:
        given = [f"{key}={_override(value)}" for key, value in settings.items()]
        try:
            recipe = load_recipe(path, [*overrides, *given]).recipe
        except RecipeError as error:
            for problem in error.problems:
                same = (problem.code, problem.message)
                problems.setdefault(same, problem)
                counts[same] = counts.get(same, 0) + 1
            continue
        place = folder / trial_name(recipe, settings)
        trials.append(Trial(settings=settings, recipe=recipe.model_copy(update={"output_dir": str(place)})))
    if problems:
        raise RecipeError(problems=list(problems.values()))
    return trials


def trial_name(recipe: Recipe, settings: Settings) -> str:
    """A name that people can read and that belongs to this recipe alone."""
    words = "_".join(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in settings.items())
    whole = recipe.model_dump(mode="json", exclude={"output_dir", "name"})
    return f"{_UNSAFE.sub('-', words)[:_LONGEST_NAME]}-{hash_json(whole)[:8]}"


def run_trial(
    trial: Trial, metric: Metric, *, only: Sequence[str] | None, restart: bool, command: Sequence[str]
) -> TrialResult:
    """Run or reuse one trial; a failure is its result.

    Raises:
        Interrupted: stopped by a signal.
    """
    folder = trial.recipe.output_dir
    try:
        done = run_recipe(unpublished(trial.recipe), only=only, restart=restart, command=command)
        value = metric.value(done.stages)
    except Interrupted:
        raise
    except LuthierError as error:
        first = error.problems[0]
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        return _failed(trial, f"{first.code}: {first.message}{more}")
    except Exception as error:  # noqa: BLE001 - one broken trial must not cost the others
        return _failed(trial, f"unexpected {type(error).__name__}: {error}")
    finally:
        _free_memory()
    records = [RunFolder(Path(folder)).stage(name) for name in done.stages]
    return TrialResult(
        settings=trial.settings, folder=folder, status="finished", value=value,
        train_loss=done.stages["train"]["final_loss"], steps=done.stages["train"]["steps"],
        seconds=round(sum(record.seconds for record in records if record is not None), 3),
        reused=set(done.reused) >= set(done.stages) - {"report"}, reason=None,
    )  # fmt: skip


def _failed(trial: Trial, reason: str) -> TrialResult:
    return TrialResult(
        settings=trial.settings, folder=trial.recipe.output_dir, status="failed", value=None, train_loss=None,
        steps=None, seconds=0.0, reused=False, reason=reason,
    )  # fmt: skip


def _free_memory() -> None:
    """The model of a finished trial is gone before the next one comes."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _override(value: Any) -> str:
    """As the text behind `=`."""
    return json.dumps(value) if isinstance(value, list | dict) else scalar(value)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
