"""`sweep`: many runs of one recipe with other settings, each a run folder of its own, the best by a held-out metric.

    space.py    keys and their values        design.py   which settings are tried
    metric.py   what is compared             trials.py   one trial: run, reuse, failure
    page.py     `index.html` and `sweep.json`

All recipes are checked before the first trial starts. Finished trials are reused by the stages of their runs, so a
sweep that was interrupted goes on, and a longer one keeps what a shorter one did.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.load import load_recipe
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError, RunFailed
from luthier.runtime.hashing import hash_json
from luthier.search.design import Adviser, Method, Settings, corners, fixed_design, make_adviser
from luthier.search.metric import Metric, read_metric
from luthier.search.page import render_page
from luthier.search.space import Axis, read_space
from luthier.search.trials import Trial, TrialResult, make_trials, run_trial

__all__ = ["SweepOptions", "SweepResult", "run_sweep"]

ASKS_PER_TRIAL = 4
"""How often optuna may ask for settings that were tried before, for each trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """How to go over the space."""

    method: Method = "grid"
    trials: int | None = None
    metric: str = "eval_loss"
    max_minutes: float | None = None
    """Begin no trial that would end later than this, as far as earlier trials tell."""
    seed: int = 0
    """Of random settings and of optuna."""
    out: Path | None = None
    """Folder of the sweep; None: `OUTPUT_DIR-sweep`."""
    all_stages: bool = False
    """Run everything the recipe asks for; False: only what the metric needs, and the report."""
    restart: bool = False
    """Train unfinished trials from their start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep came to."""

    recipe: str
    folder: Path
    metric: str
    minimise: bool
    method: Method
    axes: tuple[str, ...]
    trials: tuple[TrialResult, ...]
    """Best first, failed ones last."""
    best: TrialResult | None
    left_out: str | None
    """Why fewer were run than asked for."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything, trials best first."""
        return {
            "recipe": self.recipe, "folder": str(self.folder), "metric": self.metric, "minimise": self.minimise,
            "method": self.method, "axes": list(self.axes), "best": self.best.to_json() if self.best else None,
            "trials": [item.to_json() for item in self.trials], "left_out": self.left_out, "seconds": self.seconds,
        }  # fmt: skip


def run_sweep(
    path: Path, arguments: Sequence[str], *, space: Path | None, options: SweepOptions, command: Sequence[str] = ()
) -> SweepResult:
    """Check every trial, run them one after another, write `index.html` and `sweep.json` after each.

    Args:
        path: The base recipe.
        arguments: `key=...` with several values or a range, or with one value for all trials.
        space: A YAML file with more keys.
        options: How.
        command: The command line, for the manifests.

    Raises:
        RecipeError: anything that is wrong with any trial; nothing was started.
        EnvironmentProblem: optuna is asked for and not installed.
        RunFailed: every trial failed.
        Interrupted: stopped by a signal; the same command goes on.
    """
    if options.max_minutes is not None and not options.max_minutes > 0.0:
        raise RecipeError(code="C163", message=f"`--max-minutes` must be above 0, got {options.max_minutes}")
    axes, overrides = read_space(arguments, space)
    base = load_recipe(path, overrides).recipe
    own = Path(base.output_dir)
    folder = options.out or own.with_name(f"{own.name}-sweep")
    designs = fixed_design(axes, options.method, trials=options.trials, seed=options.seed)
    checked = make_trials(path, overrides, corners(axes) if designs is None else designs, folder)
    metric = read_metric(options.metric, [trial.recipe for trial in checked])
    adviser = None
    if designs is None:
        adviser = make_adviser(axes, minimise=metric.minimise, seed=options.seed)
    sweep = _Sweep(base, axes, metric, folder, options, command)
    with RunFolder(folder).lock():
        if adviser is None:
            short = options.trials is not None and len(checked) < options.trials
            sweep.left_out = f"there are only {len(checked)} different settings" if short else None
            sweep.run_all(checked)
        else:
            assert options.trials is not None
            sweep.run_advised(adviser, path, overrides, options.trials)
    result = sweep.result()
    if result.best is None:
        raise RunFailed(problems=[
            Problem(code="T482", message=f"all {len(result.trials)} trials failed; see {folder / 'sweep.json'}"),
            *(
                Problem(code="T482", message=item.reason or "", file=item.folder)
                for item in result.trials
            ),
        ])  # fmt: skip
    return result


def rank(results: Sequence[TrialResult], *, minimise: bool) -> list[TrialResult]:
    """Best first, failed ones last; equal ones by their settings, never by the order they were run in."""
    sign = 1.0 if minimise else -1.0
    return sorted(
        results, key=lambda item: (math.inf if item.value is None else sign * item.value, hash_json(item.settings))
    )


class _Sweep:
    """Trials so far, and the files about them."""

    def __init__(
        self, base: Recipe, axes: Sequence[Axis], metric: Metric, folder: Path, options: SweepOptions,
        command: Sequence[str],
    ) -> None:  # fmt: skip
        self.base, self.axes, self.metric, self.folder = base, tuple(axes), metric, folder
        self.options, self.command = options, command
        self.results: list[TrialResult] = []
        self.left_out: str | None = None
        self.started = time.monotonic()
        self.paces: list[float] = []
        """Wall seconds of the trials that had to run."""

    def run_all(self, trials: Sequence[Trial]) -> None:
        for index, trial in enumerate(trials):
            if not self._time_left(len(trials) - index):
                return
            self._run(trial, index, len(trials))

    def run_advised(self, adviser: Adviser, path: Path, overrides: Sequence[str], count: int) -> None:
        known: dict[str, TrialResult] = {}
        for _ in range(count * ASKS_PER_TRIAL):
            if len(self.results) == count or not self._time_left(count - len(self.results)):
                break
            settings = adviser.ask()
            result = known.get(hash_json(settings))
            if result is None:
                result = known[hash_json(settings)] = self._advised(settings, path, overrides, count)
            adviser.tell(result.value)
        if len(self.results) < count and self.left_out is None:
            self.left_out = f"optuna asked for only {len(self.results)} different settings"
        self._write()

    def _advised(self, settings: Settings, path: Path, overrides: Sequence[str], count: int) -> TrialResult:
        (trial,) = make_trials(path, overrides, [settings], self.folder)
        return self._run(trial, len(self.results), count)

    def _run(self, trial: Trial, index: int, count: int) -> TrialResult:
        said = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        note(f"trial {index + 1} of {count}: {said}{self._eta(count - index)}", style="bold")
        began = time.monotonic()
        only = None if self.options.all_stages else self.metric.stages
        result = run_trial(trial, self.metric, only=only, restart=self.options.restart, command=self.command)
        self.results.append(result)
        if not result.reused and result.status == "finished":
            self.paces.append(time.monotonic() - began)
        if result.reason:
            note(f"  failed: {result.reason}", style="red")
        else:
            note(f"  {self.metric.name} {result.value:.5g}{' (reused)' if result.reused else ''}")
        self._write()
        return result

    def _eta(self, left: int) -> str:
        if not self.paces:
            return ""
        return f"  (about {left * sum(self.paces) / len(self.paces) / 60:.1f} minutes left)"

    def _time_left(self, waiting: int) -> bool:
        """Whether the slowest trial so far would still end in time."""
        most = self.options.max_minutes
        if most is None or time.monotonic() - self.started + max(self.paces, default=0.0) <= 60.0 * most:
            return True
        self.left_out = f"--max-minutes: {waiting} trials were not run"
        self._write()
        return False

    def result(self) -> SweepResult:
        ranked = rank(self.results, minimise=self.metric.minimise)
        return SweepResult(
            recipe=self.base.name or Path(self.base.output_dir).name, folder=self.folder, metric=self.metric.name,
            minimise=self.metric.minimise, method=self.options.method, axes=tuple(axis.key for axis in self.axes),
            trials=tuple(ranked), best=next((item for item in ranked if item.value is not None), None),
            left_out=self.left_out, seconds=round(time.monotonic() - self.started, 3),
        )  # fmt: skip

    def _write(self) -> None:
        result = self.result()
        write_json(self.folder / "sweep.json", result.to_json())
        write_text(self.folder / "index.html", render_page(result))
