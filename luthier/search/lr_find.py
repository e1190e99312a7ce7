"""`lr-find`: a range test says where to look, short real runs decide by held-out loss.

    range_test.py   one walk with a rising rate     curve.py    its smoothing, divergence and proposal
    short_runs.py   runs with their own schedule    ladder.py   which rates, the best, its neighbourhood
    setting.py      recipe, folder, held-out rows   found.py    the result, as JSON and as pictures

Nothing of the recipe's own run folder is touched; the model is loaded once and goes back to its start, bit for
bit, after every walk.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.pipeline.offload import check_offload
from luthier.pipeline.rates import remember
from luthier.pipeline.train_stage import training_fingerprint, tuned_model
from luthier.recipe.rates import rule_rate
from luthier.recipe.schedules import FEEDBACK
from luthier.recipe.schema import Recipe
from luthier.recipe.steps import total_steps
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError
from luthier.search.curve import Curve, proposal
from luthier.search.found import Found, write_found
from luthier.search.ladder import Outcome, choose, first_rates, next_rate
from luthier.search.range_test import range_test
from luthier.search.setting import Setting, held_out_rows, open_setting
from luthier.search.short_runs import Kept, short_run

if TYPE_CHECKING:
    from luthier.model.adapters import Tuned
    from luthier.pipeline.session import Session
    from luthier.train.probe import Probe
    from luthier.train.reference_cache import ReferenceCache

__all__ = ["Budget", "find_learning_rate"]

VERSION = 1
"""Raised when a change of the code changes the outcome of a short run."""
DEFAULT_STEPS, FEWEST_STEPS = 60, 10
BELOW_RULE, ABOVE_RULE = 100.0, 1000.0
"""The range test goes from rule / 100 to rule x 1000: about 12 steps in each decade."""
RANGE_SHARE = 1 / 3
"""Most of the time budget that the range test may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much to spend."""

    steps: int | None = None
    """Optimizer steps of each short run; None: 60, or all steps of the recipe if it has fewer."""
    range_steps: int = DEFAULT_STEPS
    """Steps of the range test."""
    runs: int = 3
    """Short runs around the proposal."""
    extra_runs: int = 5
    """Most further runs outward while the best rate is at an edge."""
    max_minutes: float | None = None
    """Begin no run that would end later than this."""
    eval_rows: int = 256
    """Most held-out rows that are scored."""

    def check(self) -> None:
        """Refuse budgets with which nothing can be decided.

        Raises:
            RecipeError: the first one that is too small.
        """
        least = {"steps": 2, "range_steps": 5, "runs": 3, "extra_runs": 0, "eval_rows": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                message = f"`--{name.replace('_', '-')}` must be at least {smallest}, got {value}"
                raise RecipeError(code="C160", message=message)
        if self.max_minutes is not None and not 0.0 < self.max_minutes < math.inf:
            raise RecipeError(code="C160", message=f"`--max-minutes` must be above 0, got {self.max_minutes}")


def find_learning_rate(recipe: Recipe, budget: Budget) -> Found:
    """Find the peak learning rate of a recipe by trying; writes `lr_find.json` and two SVG files beside.

    Raises:
        LuthierError: as a training does. A rate that diverges is a result, not an error.
    """
    budget.check()
    if recipe.train.lr_scheduler_type in FEEDBACK:
        raise RecipeError(
            code="C160", message=f"{recipe.train.lr_scheduler_type} follows the validation loss of a whole run",
            hint="search with another schedule: train.lr_scheduler_type=cosine",
        )  # fmt: skip
    if recipe.objective.name == "grpo":
        raise RecipeError(
            code="C160", message="lr-find decides by held-out loss, and online RL has none",
            hint="`luthier sweep` ranks rates by a task: --metric task:NAME",
        )  # fmt: skip
    setting = open_setting(recipe)
    session = setting.session
    with session.run.lock():
        session.run.create()
        clock = _Clock(budget.max_minutes)
        found = _search(setting, budget, clock, asked=recipe.train.learning_rate)
        write_found(session.run.path, found)
        if found.choice.usable and found.choice.eval_loss is not None:
            remember(
                session, learning_rate=found.choice.learning_rate, tokens_per_step=found.tokens_per_step,
                eval_loss=found.choice.eval_loss, steps=found.steps,
            )  # fmt: skip
    return found


class _Clock:
    """Time that is left, in seconds."""

    def __init__(self, max_minutes: float | None) -> None:
        self.end = math.inf if max_minutes is None else time.monotonic() + 60.0 * max_minutes

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def _search(setting: Setting, budget: Budget, clock: _Clock, *, asked: float | str) -> Found:
    from luthier.train.probe import probing

    session = setting.session
    recipe = session.resolved.recipe
    tokens = recipe.train.tokens_per_step
    assert isinstance(tokens, int)
    rule, reason = rule_rate(recipe.method.name, session.shape.parameters, tokens, recipe.objective)
    planned = _planned_steps(setting)
    most = budget.steps or min(DEFAULT_STEPS, planned)
    rows = held_out_rows(session.prepared.validation, budget.eval_rows)
    check_offload(session)
    tuned = tuned_model(session)
    identity = _identity(setting, _keep_start(session, tuned))
    with probing(
        tuned, session.prepared, session.resolved, run=session.run, steps=max(most, budget.range_steps),
        validation=rows, cache=_references(session),
    ) as probe:  # fmt: skip
        probe.walk(rule, most)  # a schedule that does not fit into so few steps is told now
        started = time.monotonic()
        start_loss = probe.held_out(step=0)
        eval_seconds = time.monotonic() - started
        note(f"  held-out loss at the start: {start_loss:.4f} over {len(rows):,} rows")
        started = time.monotonic()
        curve = range_test(
            probe, low=rule / BELOW_RULE, high=rule * ABOVE_RULE, steps=budget.range_steps,
            seconds=clock.left * RANGE_SHARE,
        )  # fmt: skip
        step_seconds = (time.monotonic() - started) / max(1, len(curve.points))
        steps = _affordable(budget, most, clock, step_seconds, eval_seconds)
        _say_plan(curve, rule, budget, steps, steps * step_seconds + eval_seconds)
        kept = Kept(session.run.path / "short_runs.json", {**identity, "steps": steps, "eval_rows": len(rows)})
        outcomes, left_out = _runs(probe, kept, _centre(curve, rule), budget, steps, clock)
    return Found(
        recipe=recipe.name or session.recipe.output_dir, model=recipe.model.name_or_path, method=recipe.method.name,
        objective=recipe.objective.name, tokens_per_step=tokens, steps=steps, planned_steps=planned,
        start_loss=start_loss, eval_rows=len(rows), borrowed=setting.borrowed, rule=rule, rule_reason=reason,
        asked=asked if isinstance(asked, float | int) else None, curve=curve, proposal=proposal(curve.points),
        outcomes=tuple(sorted(outcomes, key=lambda item: item.rate)), choice=choose(outcomes, start_loss=start_loss),
        left_out=left_out, folder=session.run.path,
    )  # fmt: skip


def _planned_steps(setting: Setting) -> int:
    """Optimizer steps of the recipe itself."""
    train = setting.session.resolved.recipe.train
    batch, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    assert isinstance(batch, int) and isinstance(accumulate, int)
    sequences = setting.session.stage_result("data")["packs"]
    return total_steps(sequences, batch * accumulate, train.num_train_epochs, train.max_steps)


def _centre(curve: Curve, rule: float) -> float:
    return proposal(curve.points) or rule


def _affordable(budget: Budget, most: int, clock: _Clock, step_seconds: float, eval_seconds: float) -> int:
    """Steps of a short run so that all first runs end in time, if the number was left open."""
    if budget.steps is not None or math.isinf(clock.left):
        return most
    fit = int((clock.left / budget.runs - eval_seconds) / max(step_seconds, 1e-9))
    return max(min(most, FEWEST_STEPS), min(most, fit))


def _say_plan(curve: Curve, rule: float, budget: Budget, steps: int, seconds: float) -> None:
    found = proposal(curve.points)
    where = f"proposes {found:.2g}" if found else f"shows no fall, so the rule's {rule:.2g} is taken"
    at = f" at {curve.stopped_at:.2g}" if curve.stopped_at is not None else ""
    ends = f"; stopped{at}: {curve.stopped}" if curve.stopped else ""
    note(f"  range test: {where}{ends}")
    note(
        f"  {budget.runs} runs of {steps} steps (at most {budget.extra_runs} more outward): "
        f"about {seconds:.0f} s each, {seconds * budget.runs / 60:.1f} minutes for the first {budget.runs}"
    )


def _runs(
    probe: Probe, kept: Kept, centre: float, budget: Budget, steps: int, clock: _Clock
) -> tuple[list[Outcome], str | None]:
    """Outcomes of the first rates and of those outward; and why some were left out."""
    waiting = first_rates(centre, budget.runs)
    outcomes: list[Outcome] = []
    slowest = 0.0
    while waiting or len(outcomes) < budget.runs + budget.extra_runs:
        rate = waiting.pop(0) if waiting else next_rate(outcomes)
        if rate is None:
            return outcomes, None
        outcome = kept.outcomes.get(rate)
        if outcome is None:
            if outcomes and clock.left < slowest:
                return outcomes, f"--max-minutes: no time for a run at {rate:g}"
            outcome = short_run(probe, rate, steps=steps)
            kept.add(outcome)
        slowest = max(slowest, outcome.seconds)
        outcomes.append(outcome)
        what = f"held-out loss {outcome.eval_loss:.4f}" if outcome.eval_loss is not None else "diverged"
        note(f"  {rate:g}: {what}")
    if next_rate(outcomes) is None:
        return outcomes, None
    return outcomes, f"{len(outcomes)} runs are the most that were allowed"


def _identity(setting: Setting, start: str | None) -> dict[str, Any]:
    """Everything besides rate and length that a short run depends on."""
    session = setting.session
    whole = training_fingerprint(session)
    by_steps = ("learning_rate", "max_steps", "num_train_epochs", "eval_steps")
    train = {key: value for key, value in whole["train"].items() if key not in by_steps}
    return {
        **whole, "train": train, "version": VERSION, "start": start,
        "validation": session.recipe.data.validation.model_dump(mode="json"), "sources": session.source_hashes,
    }  # fmt: skip


def _keep_start(session: Session, tuned: Tuned) -> str | None:
    """Adapters that start out of the base are made once for a search, as for a run; hash of that start."""
    from luthier.model.starts import keep_start, start_of
    from luthier.train.loop import START_FOLDER

    start = start_of(tuned.model)
    if start is None:
        return None
    keep_start(start, session.run.path / START_FOLDER)
    return start.fingerprint()


def _references(session: Session) -> ReferenceCache:
    """The cache of reference log-probabilities that a run of this recipe uses, too."""
    from luthier.train.reference_cache import ReferenceCache, reference_start

    start = reference_start(
        training_fingerprint(session), init_from=session.recipe.method.init_from, device=session.device.type
    )
    return ReferenceCache(folder=read_env().cache_dir / "reference", start=start)
