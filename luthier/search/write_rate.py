"""Put a found rate into the recipe file."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from luthier.recipe.edit import set_value
from luthier.recipe.load import LoadedRecipe
from luthier.runtime.atomic import write_bytes
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem
from luthier.search.found import Found

__all__ = ["require_writable", "write_rate"]

KEY = "train.learning_rate"


def require_writable(loaded: LoadedRecipe) -> None:
    """Find out before the search, not after it, that its result cannot be written.

    Raises:
        EnvironmentProblem: the file or its folder is read-only.
        RecipeError: the recipe has a form in which the rate cannot be set.
    """
    path = loaded.path.resolve()
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise EnvironmentProblem(
            code="R710", message=f"cannot write {loaded.path}: permission denied", hint="leave out `--write`"
        )
    set_value(loaded.text, KEY, 1.5e-4, origin=str(loaded.path))


def write_rate(loaded: LoadedRecipe, found: Found) -> bool:
    """Set the rate in the file as it is now; everything else in it stays. Returns True.

    Raises:
        RecipeError: the file has changed into a form in which the rate cannot be set.
        EnvironmentProblem: it cannot be written.
    """
    path = Path(loaded.path).resolve()
    data = path.read_bytes()
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    text = data.removeprefix(mark).decode("utf-8")
    edited = set_value(text, KEY, found.choice.learning_rate, origin=str(loaded.path))
    mode = path.stat().st_mode
    write_bytes(path, mark + edited.encode("utf-8"))
    path.chmod(mode)
    others = [item for item in loaded.overrides if not item.startswith(f"{KEY}=")]
    if others:
        note(f"found with {', '.join(others)}, which the recipe file does not say", style="yellow")
    return True
