"""`luthier eval`: score a model on a recipe's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.output import emit_json, show


def evaluate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    model: Annotated[
        Path | None, typer.Option(help="Adapter or model folder to score instead of the untouched base.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for scores and every answer (JSON).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the untouched base of a recipe on its tasks, or another model with --model."""
    from luthier.pipeline.score import score_model
    from luthier.runtime.atomic import write_json

    loaded = load_with_overrides(recipe, overrides)
    result = score_model(loaded.recipe, model)
    if out:
        write_json(out, result)
    if as_json:
        emit_json(result)
        return
    from rich.table import Table

    table = Table("task", "metric", "score", "interval", "rows", "tokens/s", box=None, pad_edge=False)
    for task in result["tasks"]:
        interval = f"[{task['low']:.3f}, {task['high']:.3f}]"
        speed = f"{task['tokens_per_second']:.0f}"
        table.add_row(task["name"], task["metric"], f"{task['score']:.3f}", interval, str(task["n"]), speed)
        for name, value in task["secondary"].items():
            table.add_row("", name, f"{value:.3f}", "", "", "")
    show(table)
