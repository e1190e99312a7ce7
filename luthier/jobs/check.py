"""Check the files of a job before it waits in line: each line through Luthier's own readers, none left out.

Bad files are no errors of the service: the job fails with `invalid_training_file` and the numbers of the lines. What
needs the tokenizer (rows that are too long, masks) is found by the job's own first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.data.sources import Reading
from luthier.jobs.body import AUTO
from luthier.jobs.create import recipe_of
from luthier.jobs.errors import ServiceError
from luthier.jobs.merge import given
from luthier.jobs.records import JobRecord
from luthier.jobs.settings import ApiSettings
from luthier.jobs.store import Store
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.schema import DataSection, Recipe, Source
from luthier.recipe.steps import sequences_for_rows
from luthier.runtime.errors import LuthierError, Problem

__all__ = ["PACK_FROM_ROWS", "CheckResult", "auto_epochs", "check_job"]

Tick = Callable[[], None]
PACK_FROM_ROWS = 2_000
"""Smaller files are trained row by row when `batch_size` is `auto`: a few packs would be too few steps."""
_TARGET_EPOCHS, _FEWEST_EXAMPLES, _MOST_EXAMPLES, _MOST_EPOCHS = 3, 100, 25_000, 25
_LINE_CHARACTERS = 400
_TICK_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What the files of a job are."""

    error: Mapping[str, Any] | None
    """None: the job may wait in line; else `{"code", "message", "param"}` for `move(to="failed", error=...)`."""
    rows: int
    """Of the training file."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the job, with `auto` replaced where the number of rows decides."""
    messages: tuple[str, ...] = ()
    """What was found, for events."""


@dataclass(slots=True)
class _Found:
    rows: int = 0
    verdict: str = ""
    error: dict[str, Any] | None = None


def check_job(job: JobRecord, store: Store, settings: ApiSettings, *, tick: Tick = lambda: None) -> CheckResult:
    """Read the training and the validation file of a job, whole, in bounded memory.

    Bad files raise nothing: they are the result. `tick` is called every 1,000 rows, for instance to renew a lease.
    """
    try:
        recipe = recipe_from_dict(recipe_of(job, store, settings), origin=f"job {job.id}")
    except LuthierError as problems:
        # Accepted with other settings, or its file has gone meanwhile.
        message = "the job can no longer be run as it was accepted: " + _plain(problems.problems, settings)
        return CheckResult(error={"code": "invalid_job", "message": message, "param": None}, rows=0)
    names = {param: store.file(id_).filename for param, id_ in _files(job)}
    train = _read(recipe, recipe.data.train[0], "training_file", names, settings, tick)
    messages = [f"{names['training_file']}: {train.verdict}"] if train.verdict else []
    held_out = None
    if job.validation_file is not None and recipe.data.validation.path is not None:
        section = recipe.data.validation
        source = Source(path=section.path or "", format=section.format, map=section.map)
        held_out = _read(recipe, source, "validation_file", names, settings, tick)
        messages += [f"{names['validation_file']}: {held_out.verdict}"] if held_out.verdict else []
    error = train.error or (held_out.error if held_out else None)
    if train.error and held_out and held_out.error:
        error = {**train.error, "message": f"{train.error['message']}\n{held_out.error['message']}"}
    values = dict(job.hyperparameters) if error else _resolved(job, recipe, train.rows, settings)
    return CheckResult(error=error, rows=train.rows, hyperparameters=values, messages=tuple(messages))


def auto_epochs(rows: int) -> int:
    """Passes when `n_epochs` is `auto`: 3; more for fewer than 34 rows, to see about 100; fewer beyond 8,333 rows.

    The rule that OpenAI publishes in its cookbook ("Data preparation and analysis for chat model fine-tuning").
    """
    if rows * _TARGET_EPOCHS < _FEWEST_EXAMPLES:
        return min(_MOST_EPOCHS, _FEWEST_EXAMPLES // rows)
    if rows * _TARGET_EPOCHS > _MOST_EXAMPLES:
        return max(1, _MOST_EXAMPLES // rows)
    return _TARGET_EPOCHS


def _files(job: JobRecord) -> list[tuple[str, str]]:
    pairs = [("training_file", job.training_file)]
    return pairs + ([("validation_file", job.validation_file)] if job.validation_file else [])


def _read(
    recipe: Recipe, source: Source, param: str, names: Mapping[str, str], settings: ApiSettings, tick: Tick
) -> _Found:
    """Every row of a file through the readers of training."""
    data: DataSection = recipe.data
    kind = row_kind(recipe.objective.name)
    # Online RL asks prompts, which are read as chats and need no answer (`data/prompts.py`).
    reading = (
        Reading(source, 0, on_empty="keep", loss_on=data.loss_on)
        if kind == "prompts"
        else Reading(source, 0, on_empty=data.on_empty, loss_on=data.loss_on, kind=kind)
    )
    found = _Found()
    try:
        for count, _ in enumerate(reading):
            if count % _TICK_ROWS == 0:
                tick()
    except ServiceError:  # of `tick`: the lease is lost
        raise
    except LuthierError as problems:
        total = problems.total or len(problems.problems)
        what = f"{total:,} problems" if total > 1 else "1 problem"
        found.error = _error(param, names, _lines(problems.problems, total, settings), what)
        return found
    found.rows = reading.rows - len(reading.dropped)
    found.verdict = reading.result([]).verdict
    fewest = settings.limits.min_rows if param == "training_file" else 1
    if found.rows < fewest:
        there = f"{found.rows:,} row" + ("" if found.rows == 1 else "s")
        found.error = _error(param, names, [f"needed are at least {fewest:,}"], there)
    return found


def _error(param: str, names: Mapping[str, str], lines: list[str], what: str) -> dict[str, Any]:
    file = param.replace("_", " ")
    message = f"Invalid {file} {names[param]}: {what}\n" + "\n".join(lines)
    return {"code": f"invalid_{param}", "message": message, "param": param}


def _lines(problems: Any, total: int, settings: ApiSettings) -> list[str]:
    """The first problems, a line each."""
    shown = problems[: settings.limits.shown_problems]
    lines = [_line(problem) for problem in shown]
    return lines + ([f"and {total - len(shown):,} more"] if total > len(shown) else [])


def _line(problem: Problem) -> str:
    """One problem with its line; the path of the blob is the service's own affair."""
    place = f"line {problem.line:,}" if problem.line else "file"
    if problem.line and problem.column:
        place += f", column {problem.column:,}"
    text = f"{place}: {problem.message}" + (f" ({problem.hint})" if problem.hint else "")
    return text if len(text) <= _LINE_CHARACTERS else text[:_LINE_CHARACTERS] + "..."


def _plain(problems: Any, settings: ApiSettings) -> str:
    return "; ".join(problem.message for problem in problems[: settings.limits.shown_problems])


def _resolved(job: JobRecord, recipe: Recipe, rows: int, settings: ApiSettings) -> dict[str, Any]:
    """Hyperparameters with `n_epochs` and `batch_size` where the rows decide them and nothing else does.

    `auto` of the batch size is about 2% of the rows, a power of two from 4 to 64 (`recipe/steps.py`); of large files
    it stays `auto` until the packs are known.
    """
    values = dict(job.hyperparameters)
    keys = (settings.base_recipe(job.base), job.luthier)

    def free(*names: str) -> bool:
        return not any(given(part, name) for part in keys for name in names)

    if values.get("n_epochs") == AUTO and free("train.num_train_epochs", "train.max_steps"):
        values["n_epochs"] = auto_epochs(rows)
    steps = [
        f"train.{key}"
        for key in ("rows_per_step", "tokens_per_step", "per_device_train_batch_size", "gradient_accumulation_steps")
    ]
    small = rows < PACK_FROM_ROWS and recipe.objective.name != "grpo"
    if values.get("batch_size") == AUTO and small and free("data.packing", *steps):
        values["batch_size"] = min(rows, sequences_for_rows(rows, rows)[1])
    return values
