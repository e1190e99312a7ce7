"""`luthier merge`: adapters into the original base, with proof."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json


def merge(folder: Annotated[Path, typer.Argument(help="Run folder.")], as_json: JsonOption = False) -> None:
    """Merge a run's adapter into the base it came from and compare the logits of both."""
    from luthier.pipeline.rerun import recipe_of_run
    from luthier.pipeline.run import run_recipe

    recipe = recipe_of_run(folder)
    forced = recipe.model_copy(update={"export": recipe.export.model_copy(update={"merge": True})})
    result = run_recipe(
        forced, recipe_text=(folder / "recipe.yaml").read_text("utf-8"), only=("merge",), command=sys.argv
    )
    if as_json:
        emit_json(result.stages["merge"])
