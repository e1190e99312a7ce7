"""`luthier lr-find`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.output import emit_json, show

if TYPE_CHECKING:
    from luthier.search.found import Found


def lr_find(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each short run; default: 60, or all of the recipe's if fewer.")
    ] = None,
    range_steps: Annotated[int, typer.Option(help="Steps of the range test.")] = 60,
    runs: Annotated[int, typer.Option(help="Short runs around the range test's proposal.")] = 3,
    extra_runs: Annotated[int, typer.Option(help="Most runs outward while the best rate is at an edge.")] = 5,
    max_minutes: Annotated[
        float | None, typer.Option(help="Begin no run that would end later than this many minutes from now.")
    ] = None,
    eval_rows: Annotated[int, typer.Option(help="Most held-out rows that are scored.")] = 256,
    write: Annotated[bool, typer.Option("--write", help="Put the rate into the recipe file, comments kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the learning rate: a range test says where to look, short real runs decide by held-out loss."""
    from luthier.runtime.console import note
    from luthier.search.lr_find import Budget, find_learning_rate
    from luthier.search.write_rate import require_writable, write_rate

    loaded = load_with_overrides(recipe, overrides)
    budget = Budget(
        steps=steps, range_steps=range_steps, runs=runs, extra_runs=extra_runs, max_minutes=max_minutes,
        eval_rows=eval_rows,
    )  # fmt: skip
    budget.check()
    if write:
        require_writable(loaded)
    found = find_learning_rate(loaded.recipe, budget)
    written = write_rate(loaded, found) if write and found.choice.usable else False
    if as_json:
        emit_json({"ok": True, **found.to_json(), "written": written})
    else:
        _render(found)
        if written:
            note(f"{recipe}: train.learning_rate is now {found.choice.learning_rate:g}", style="green")
        elif found.line and not write:
            note(f"to take it: `{found.line}` under `train:` in {recipe}, or the same command with --write")
    if write and not written:
        raise typer.Exit(1)


def _render(found: Found) -> None:
    from rich.table import Table

    from luthier.search.found import curve_text, found_lines

    if found.curve.points:
        show(curve_text(found))
    table = Table(box=None, pad_edge=False)
    for name in ("learning rate", "train loss", "held-out loss", "keeps", "diverged"):
        table.add_column(name, justify="left" if name == "diverged" else "right")
    table.add_row("start", "", f"{found.start_loss:.4f}", "0%", "")
    for outcome in found.outcomes:
        best = outcome.rate == found.choice.learning_rate
        share = found.choice.kept.get(f"{outcome.rate:g}")
        table.add_row(
            f"{outcome.rate:g}", "" if outcome.train_loss is None else f"{outcome.train_loss:.4f}",
            "" if outcome.eval_loss is None else f"{outcome.eval_loss:.4f}",
            "100%" if best and found.choice.kept else "" if share is None else f"{share:.0%}",
            f"after {outcome.steps} steps: {outcome.diverged}" if outcome.diverged else "no",
            style="bold green" if best and found.choice.usable else None,
        )  # fmt: skip
    show(table)
    for line in found_lines(found):
        show(line)
    show(f"{found.folder}: lr_find.json, range_test.svg, short_runs.svg")
