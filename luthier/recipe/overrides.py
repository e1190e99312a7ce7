"""`key.sub=value` and `~key.sub` on the command line: the same keys and the same rules as in the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.recipe.positions import Document, KeyPath, Place, Spot, dotted
from luthier.recipe.yaml12 import parse_yaml, plain_scalar
from luthier.runtime.errors import Problem

__all__ = ["apply_overrides", "override_value"]

_FLOW = ("[", "{", '"', "'")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each override in the document; what is wrong goes to `document.problems`.

    A value that starts with a bracket, a brace or a quote is YAML; any other is one YAML 1.2
    scalar up to its end, so that `data.train.0.system=Answer: yes # or no` needs no quotes.
    Lists are reached by index, `data.train.0.path=...`; nothing is appended. `~key.sub` takes a key of the file out,
    so that its default holds.
    """
    document.overrides = list(overrides)
    given: dict[KeyPath, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().removeprefix("--").split(".")
        path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in parts)
        place = Place(file=f"command line: {override}")
        if key.startswith("~") and not equals:
            problem = _unset(document, (parts[0].removeprefix("~"), *path[1:]), place)
            document.problems.extend([problem] if problem else [])
            continue
        if not equals or not all(parts):
            message = f'"{override}" is not an override' if not equals else f'"{key}" is not a key'
            document.problems.append(
                place.problem("C107", message, hint="write key.sub=value, for instance train.learning_rate=1e-4")
            )
            continue
        if path in given:
            message = f"`{dotted(path)}` is given twice; the first time as {given[path]}"
            document.problems.append(place.problem("C105", message, hint="keep one of them"))
            continue
        given[path] = override
        value, problems = override_value(text, origin=f"command line: {override}")
        problem = _set(document, path, value, override) if not problems else None
        document.problems.extend(problems or ([problem] if problem else []))
        if problems:
            document.bad.add(path)


def override_value(text: str, *, origin: str) -> tuple[Any, list[Problem]]:
    """The value of the text behind `=`, and what is wrong with it."""
    text = text.strip()
    if text.startswith(_FLOW):
        inner = parse_yaml(text, origin=origin)
        return inner.value, [
            Problem(code=found.code, message=found.message, file=origin, hint=found.hint) for found in inner.problems
        ]
    try:
        return plain_scalar(text), []
    except ValueError as error:
        return None, [Problem(code="C103", message=str(error), file=origin)]


def _set(document: Document, path: KeyPath, value: Any, override: str) -> Problem | None:
    place = Place(file=f"command line: {override}")
    if document.value is None:
        document.value = {}
    current = document.value
    for depth, part in enumerate(path):
        here, last = dotted(path[:depth]), depth == len(path) - 1
        if isinstance(current, list):
            if not isinstance(part, int) or part >= len(current):
                known = f"0 to {len(current) - 1}" if current else "none: it is empty"
                return place.problem(
                    "C107",
                    f"`{here}` is a list; its entries are {known}, got {part}",
                    hint=f"set all of it: {here}=[...]",
                )
        elif isinstance(current, dict):
            part = str(part)
        else:
            return place.problem("C107", f"`{here}` has no keys below it", hint=f"write {here}=value")
        path = (*path[:depth], part, *path[depth + 1 :])
        if last:
            current[part] = value
        else:
            below = current.get(part) if isinstance(current, dict) else current[part]
            if below is None:
                below = {}
                current[part] = below
                document.spots.setdefault(path[: depth + 1], _spot(override))
            current = below
    for old in [at for at in document.spots if at[: len(path)] == path]:
        del document.spots[old]
    document.spots[path] = _spot(override)
    return None


def _unset(document: Document, path: KeyPath, place: Place) -> Problem | None:
    """Take a key out of the document, so that its default holds."""
    current = document.value
    for depth, part in enumerate(path):
        known = part < len(current) if isinstance(current, list) and isinstance(part, int) else (
            isinstance(current, dict) and part in current
        )  # fmt: skip
        if not known:
            hint = "take out what the recipe sets; what it does not set has its default anyway"
            return place.problem("C107", f"the recipe does not set `{dotted(path)}`", hint=hint)
        if depth < len(path) - 1:
            current = current[part]
    del current[path[-1]]
    for old in [at for at in document.spots if at[: len(path)] == path]:
        del document.spots[old]
    return None


def _spot(override: str) -> Spot:
    return Spot(key=(0, 0), value=(0, 0), override=override)
