"""Start a run from the text of a recipe."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from luthier.recipe.load import recipe_from_text
from luthier.runtime.atomic import write_text
from luthier.runtime.errors import EnvironmentProblem, LuthierError, RecipeError
from luthier.studio.names import check_name, run_id
from luthier.studio.recipes.edit import edit_text
from luthier.studio.runs.index import Index
from luthier.studio.runs.launch import start_process
from luthier.studio.runs.processes import alive, born

__all__ = ["start_run"]


def start_run(index: Index, text: str, name: str | None) -> dict[str, Any]:
    """Check a recipe and start it as a process of its own.

    Args:
        index: The runs.
        text: The recipe.
        name: Of the run folder, below the runs folder; None: `output_dir` of the recipe.

    Returns:
        `id` of the run and the `command` that does the same.

    Raises:
        RecipeError: every problem of the recipe; W107: a name that cannot be one; W124: `output_dir` is not below the
            runs folder.
        EnvironmentProblem: W121: the folder is in use.
    """
    settings = index.settings
    if name is not None:
        name = check_name(name.strip())
        output = settings.runs / name
        text = edit_text(text, [{"key": "output_dir", "value": _relative(output, settings.root)}])
    recipe = recipe_from_text(text, origin="recipe.yaml")
    folder = (settings.root / recipe.output_dir).resolve()
    try:
        below = folder.relative_to(settings.runs.resolve()).as_posix()
    except ValueError:
        raise RecipeError(
            code="W124",
            message=f"output_dir {recipe.output_dir} is not below {settings.runs.name}: the studio would not show it",
            hint=f"give the run a name, or write output_dir: {_relative(settings.runs, settings.root)}/NAME",
        ) from None  # fmt: skip
    ident = run_id(check_name(below))
    _refuse_in_use(index, ident, recipe.output_dir)
    file = settings.home / "recipes" / f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^A-Za-z0-9._-]', '_', ident)}.yaml"
    write_text(file, text)
    start_process(settings, index.store, ident, ["run", str(file)], folder=settings.root)
    return {"id": ident, "command": "luthier run recipe.yaml"}


def _refuse_in_use(index: Index, ident: str, shown: str) -> None:
    try:
        pid = index.pid(ident)
    except LuthierError:
        pid = None  # there is no such folder yet
    child = index.store.children().get(ident)
    starting = child is not None and child.pid > 0 and alive(child.pid) and born(child.pid) == child.born
    if pid is not None or starting:
        raise EnvironmentProblem(
            code="W121", message=f"{shown} is in use by a run", hint="stop it, or take another name"
        )


def _relative(path: Path, root: Path) -> str:
    """As it stands in a recipe: relative to the folder runs are started in, where it lies below it."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())
