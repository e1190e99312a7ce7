"""Set one value in the text of a recipe; comments, order, quoting and line ends of everything else stay.

Whatever way the text is edited, the result is read again and must be the old recipe with this one value changed;
else nothing is returned.
"""

from __future__ import annotations

import re

from luthier.recipe.emit import scalar
from luthier.recipe.positions import Document
from luthier.recipe.yaml12 import copy_plain, parse_yaml
from luthier.runtime.errors import RecipeError

__all__ = ["set_value"]

_FIRST_OF_LINE = re.compile(r"[^\r\n]*(\r\n|\r|\n|\Z)")


def set_value(text: str, key: str, value: float | int | str | bool, *, origin: str) -> str:
    """`text` with `section.name` set to `value`.

    Args:
        text: A recipe, valid YAML.
        key: A key of a section at the top, `train.learning_rate`.
        value: A scalar.
        origin: What messages call the file.

    Raises:
        RecipeError: the text has a form in which the value cannot be set safely (aliases, for instance).
    """
    section, name = key.split(".")
    document = parse_yaml(text, origin=origin)
    if document.problems or not isinstance(document.value, dict):
        raise RecipeError(problems=document.problems or [document.place(()).problem("C101", "this is no recipe")])
    edited = _edit(document, section, name, scalar(value))
    wanted = copy_plain(document.value)
    if not isinstance(wanted.get(section), dict):
        wanted[section] = {}
    wanted[section][name] = value
    again = None if edited is None else parse_yaml(edited, origin=origin)
    if edited is None or again is None or again.problems or again.value != wanted:
        place = document.place((section, name))
        message = f"`{key}: {scalar(value)}` cannot be put into this text without changing something else"
        raise RecipeError(problems=[place.problem("C161", message, hint="write it there by hand")])
    return edited


def _edit(document: Document, section: str, name: str, shown: str) -> str | None:
    text = document.text
    old = document.spots.get((section, name))
    if old is not None:
        start, end = old.value
        if start == end:  # `learning_rate:` with nothing behind it
            start = end = text.index(":", old.key[1]) + 1
            shown = f" {shown}"
        return text[:start] + shown + text[end:]
    breaks = "\r\n" if "\r\n" in text else "\n"
    above = document.spots.get((section,))
    if above is None:
        if text.lstrip().startswith("{"):
            return None
        end_of_text = "" if not text or text.endswith(("\n", "\r")) else breaks
        return f"{text}{end_of_text}{section}:{breaks}  {name}: {shown}{breaks}"
    start = above.value[0]
    if text[start : start + 1] == "{":
        rest = ", " if document.value[section] else ""
        return f"{text[: start + 1]}{name}: {shown}{rest}{text[start + 1 :].lstrip(' ')}"
    return _first_in_block(document, section, f"{name}: {shown}", breaks)


def _first_in_block(document: Document, section: str, line: str, breaks: str) -> str | None:
    """As the first key below the section's own line, indented as its other keys are."""
    text = document.text
    key = document.spots[(section,)].key
    below = [spot.key[0] for path, spot in document.spots.items() if len(path) == 2 and path[0] == section]
    indent = "  "
    if below:
        first = min(below)
        indent = text[max(text.rfind("\n", 0, first), text.rfind("\r", 0, first)) + 1 : first]
        if indent.strip():
            return None
    found = _FIRST_OF_LINE.match(text, key[1])
    assert found is not None
    ended = found.group(1) != ""
    return f"{text[: found.end()]}{'' if ended else breaks}{indent}{line}{breaks}{text[found.end() :]}"
