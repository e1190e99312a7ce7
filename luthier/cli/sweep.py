"""`luthier sweep`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption, RecipeArgument, split_overrides
from luthier.cli.output import emit_json, show

if TYPE_CHECKING:
    from luthier.search.sweep import SweepResult


class Way(StrEnum):
    """Choices of `--method`."""

    grid = "grid"
    random = "random"
    optuna = "optuna"


def sweep(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=a,b,c or a range key=log:1e-5..1e-3 (lin, int, logint; /5 behind it: five points); "
            "key=value for all trials.",
            show_default=False,
        ),
    ] = None,
    space: Annotated[Path | None, typer.Option(help="YAML file with more keys, each with a list or a range.")] = None,
    method: Annotated[Way, typer.Option(help="grid; random: quasi-random, seeded; optuna: TPE (extra `sweep`).")] = (
        Way.grid
    ),
    trials: Annotated[int | None, typer.Option(help="How many, for random and optuna.")] = None,
    metric: Annotated[str, typer.Option(help="eval_loss, or task:NAME.")] = "eval_loss",
    max_minutes: Annotated[float | None, typer.Option(help="Begin no trial that would end later than this.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random and optuna.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; default: OUTPUT_DIR-sweep.")] = None,
    all_stages: Annotated[
        bool, typer.Option("--all-stages", help="Everything `luthier run` does, not only what the metric needs.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Train unfinished trials from their start.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe with many settings: one run folder each, finished ones reused, the best by a held-out metric."""
    from luthier.search.sweep import SweepOptions, run_sweep

    options = SweepOptions(
        method=method.value, trials=trials, metric=metric, max_minutes=max_minutes, seed=seed, out=out,
        all_stages=all_stages, restart=restart,
    )  # fmt: skip
    result = run_sweep(recipe, split_overrides(settings or []), space=space, options=options, command=sys.argv)
    if as_json:
        emit_json({"ok": True, **result.to_json()})
    else:
        _render(result)


def _render(result: SweepResult) -> None:
    from rich.table import Table

    from luthier.search.page import shown_value

    table = Table(box=None, pad_edge=False)
    for key in result.axes:
        table.add_column(key, overflow="fold")
    for name in (result.metric, "train loss", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for trial in result.trials:
        table.add_row(
            *(shown_value(trial.settings[key]) for key in result.axes),
            "failed" if trial.value is None else f"{trial.value:.5g}",
            "" if trial.train_loss is None else f"{trial.train_loss:.4f}", f"{trial.seconds:.0f}",
            trial.reason or Path(trial.folder).name,
            style="bold green" if trial is result.trials[0] else "red" if trial.value is None else None,
        )  # fmt: skip
    show(table)
    if result.left_out:
        show(result.left_out)
    best = result.best
    assert best is not None
    finished = sum(trial.value is not None for trial in result.trials)
    show(f"best of {finished} by {result.metric}: {best.folder}")
    show(f"  the rows that chose it flatter it; luthier run {best.folder}/recipe.yaml does the rest of its stages")
    show(f"{result.folder / 'index.html'}")
