"""Recipes to begin with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from luthier.report.read import printable
from luthier.runtime.errors import LuthierError

__all__ = ["starters"]

_MOST = 100
_LARGEST = 64 << 10
_SMALL = ("smollm2-135m-instruct",)


def starters(root: Path) -> dict[str, Any]:
    """The quickstart's recipe, and those that lie in `root` and its folder `recipes`; bases that are known by name."""
    own = (resources.files("luthier.quickstart") / "recipe.yaml").read_text("utf-8")
    found = [{"name": "quickstart", "title": "Support tickets to JSON: the quickstart", "text": own}]
    for file in sorted([*root.glob("*.yaml"), *root.glob("recipes/*.yaml")])[:_MOST]:
        text = _text(file)
        if text is not None:
            name = printable(file.relative_to(root).as_posix())
            words = (line[1:].strip() for line in text.splitlines() if line.startswith("#"))
            # The first comment, but not the line that tells editors of the schema.
            title = next((word for word in words if word and not word.startswith("yaml-language-server")), "")
            found.append({"name": name, "title": f"{name}: {printable(title)}" if title else name, "text": text})
    return {"starters": found, "models": [{"name": name, "title": name} for name in (*_SMALL, *_known())]}


def _text(file: Path) -> str | None:
    """The text of a file that looks like a recipe."""
    from luthier.recipe.yaml12 import parse_yaml

    try:
        if file.stat().st_size > _LARGEST:
            return None
        text = file.read_text("utf-8")
        value = parse_yaml(text, origin=file.name).value
    except (OSError, ValueError, LuthierError):
        return None
    return text if isinstance(value, dict) and {"model", "data"} <= set(value) else None


def _known() -> list[str]:
    from luthier.plan.known import known_names

    return known_names()
