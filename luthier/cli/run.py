"""`luthier run` and `luthier train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.output import emit_json

if TYPE_CHECKING:
    from luthier.recipe.load import LoadedRecipe

RestartOption = Annotated[bool, typer.Option("--restart", help="Train from the start, ignoring checkpoints.")]


def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: data, baseline, train, evaluate, compare, merge, report. Finished stages are reused."""
    _run(recipe, overrides, only=None, restart=restart, as_json=as_json)


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Only prepare the data and train (no scores, no merge)."""
    _run(recipe, overrides, only=("data", "train"), restart=restart, as_json=as_json)


def _run(
    recipe: Path, overrides: list[str] | None, *, only: tuple[str, ...] | None, restart: bool, as_json: bool
) -> None:
    run_and_show(load_with_overrides(recipe, overrides), only=only, restart=restart, as_json=as_json)


def run_and_show(loaded: LoadedRecipe, *, only: tuple[str, ...] | None, restart: bool, as_json: bool) -> None:
    """Run the stages; the result as JSON, or as lines for people. Of several processes the first shows it."""
    from luthier.pipeline.run import run_recipe
    from luthier.pipeline.summary import result_to_json, summary_lines
    from luthier.runtime.console import note
    from luthier.runtime.env import read_env

    env = read_env()
    command = env.launch_command or sys.argv
    result = run_recipe(loaded.recipe, recipe_text=loaded.text, only=only, restart=restart, command=command)
    if env.rank:
        return
    if as_json:
        emit_json(result_to_json(result))
        return
    for line in summary_lines(result):
        note(line)
