"""What a search for a learning rate works on: the recipe as it is searched, its folder, its session.

The folder is `OUTPUT_DIR-lr-find`; the recipe's own run folder is not touched. A recipe without held-out
rows gets some here, drawn by the recipe's seed; its own training uses all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.pipeline.run import run_recipe
from luthier.pipeline.session import Session
from luthier.pipeline.stages import STAGES
from luthier.recipe.schema import Recipe, ValidationSection
from luthier.runs.folder import RunFolder
from luthier.runtime.console import note

if TYPE_CHECKING:
    from luthier.data.types import TrainRow

__all__ = ["Setting", "held_out_rows", "open_setting", "search_folder"]

ROWS_HELD_OUT = 32
LEAST_SHARE, MOST_SHARE = 0.1, 0.5
FOLDER_SUFFIX = "-lr-find"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A recipe ready to be searched."""

    session: Session
    """Of the searched recipe, in the search's own folder."""
    borrowed: float | None
    """Share of the training rows held out for the search alone; None: the recipe has validation rows."""


def search_folder(recipe: Recipe) -> Path:
    """Beside the recipe's run folder."""
    path = Path(recipe.output_dir)
    return path.with_name(path.name + FOLDER_SUFFIX)


def open_setting(recipe: Recipe) -> Setting:
    """Prepare data (and whatever else a training needs first) in the search's folder.

    Raises:
        LuthierError: as the stages of a run do.
    """
    folder = str(search_folder(recipe))
    searched = recipe.model_copy(update={"output_dir": folder})
    validation = recipe.data.validation
    borrowed = None
    if validation.path is None and not validation.fraction:
        rows = _before_training(searched)["rows_used"]
        borrowed = round(min(max(LEAST_SHARE, ROWS_HELD_OUT / rows), MOST_SHARE), 3)
        held = ValidationSection(fraction=borrowed)
        data = searched.data.model_copy(update={"validation": held})
        searched = searched.model_copy(update={"data": data})
        note(f"no validation rows in the recipe: {borrowed:.0%} of the training rows are held out for this search")
    _before_training(searched)
    return Setting(session=Session(searched, RunFolder(Path(folder))), borrowed=borrowed)


def _before_training(recipe: Recipe) -> dict[str, Any]:
    """Run the stages that a training needs, without scores; returns the result of the data stage."""
    names = [stage.name for stage in STAGES]
    only = [name for name in names[: names.index("train")] if name != "baseline"]
    return run_recipe(recipe, only=only).stages["data"]


def held_out_rows(rows: Sequence[TrainRow], most: int) -> list[TrainRow]:
    """At most `most` of the validation rows, evenly spaced, so that long sets cost no more than they tell."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]
