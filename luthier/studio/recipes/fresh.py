"""Recipes for a new run: of a file, or of a run that is there; both write into a folder that is free."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from luthier.recipe.yaml12 import parse_yaml
from luthier.report.read import printable
from luthier.runtime.errors import LuthierError
from luthier.studio.clean import read_json
from luthier.studio.names import path_below
from luthier.studio.recipes.edit import edit_text
from luthier.studio.runs.actions import overrides_of
from luthier.studio.settings import StudioSettings

__all__ = ["recipe_of_file", "recipe_of_run"]


def recipe_of_file(settings: StudioSettings, text: str) -> dict[str, Any]:
    """What `luthier init` would write for a file below the studio's folder.

    Raises:
        RecipeError: W105, W106: no file below it; C141: no format is recognised.
        DataError: it cannot be read.
    """
    from luthier.data.recipe_for import recipe_for

    path = path_below(settings.root, text)
    found, recipe = recipe_for(path, shown=text, output_dir=_free(settings, path.name.split(".")[0] or "run"))
    return {"text": recipe, "said": f"{text}: {printable(found.verdict)}"}


def recipe_of_run(settings: StudioSettings, folder: Path) -> dict[str, Any]:
    """The recipe of a run, with what was changed on its command line, for another run."""
    try:
        text = (folder / "recipe.yaml").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    name = folder.relative_to(settings.runs).as_posix() if folder != settings.runs else folder.name
    left: list[str] = []
    for change in _changes(folder):
        try:
            text = edit_text(text, [change])
        except LuthierError:
            left.append(str(change["key"]))
    try:
        text = edit_text(text, [{"key": "output_dir", "value": _free(settings, name)}])
    except LuthierError:
        left.append("output_dir")
    if left:
        text = f"# Not written in here, but changed on the command line of {name}: {', '.join(left)}\n{text}"
    return {"text": printable(text), "said": f"Recipe of {printable(name)}"}


def _changes(folder: Path) -> list[dict[str, Any]]:
    """The overrides of the command the run was started with."""
    found: list[dict[str, Any]] = []
    for word in overrides_of(read_json(folder / "manifest.json").get("command") or []):
        key, equals, value = word.removeprefix("~").partition("=")
        if key == "output_dir":
            continue
        if not equals:
            found.append({"key": key, "remove": True})
            continue
        try:
            parsed = parse_yaml(f"value: {value}", origin="command").value["value"]
        except (LuthierError, KeyError, TypeError):
            parsed = value
        found.append({"key": key, "value": parsed})
    return found


def _free(settings: StudioSettings, name: str) -> str:
    """A run folder that is not there yet, as a recipe names it: NAME, NAME-2, NAME-3, ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    path = next(path for one in names if not (path := settings.runs / one).exists())
    try:
        return path.resolve().relative_to(settings.root.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())
