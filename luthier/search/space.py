"""What a sweep goes over: keys of a recipe, each with values or a range. Read from the command line or a YAML file.

    train.learning_rate=1e-4,3e-4,1e-3        values
    train.learning_rate=log:1e-5..1e-3        a range, uniform in the logarithm
    method.lora_dropout=lin:0..0.1            a range, uniform
    method.r=int:4..64    method.r=logint:4..64    whole numbers, both ends included
    train.learning_rate=log:1e-5..1e-3/5      five points of it, for a grid
    method.target_modules=[q_proj,v_proj],all-linear    commas inside brackets or quotes do not separate

A single value (`method.r=8`) is an override for all trials. In a file the same words stand behind the keys, and
lists are YAML lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.recipe.overrides import override_value
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["Axis", "Range", "read_space"]

Kind = Literal["log", "lin", "int", "logint"]
_RANGE = re.compile(r"(log|lin|int|logint):(.+?)\.\.([^/]+?)(?:/(.+))?\Z")
_LOOKS_LIKE_RANGE = re.compile(r"[A-Za-z]+:.*\.\.")
_OPEN, _CLOSE = "[{(", "]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    kind: Kind
    low: float
    high: float
    points: int | None = None
    """How many a grid takes of it."""

    @property
    def whole(self) -> bool:
        """Only whole numbers."""
        return self.kind in ("int", "logint")

    def at(self, share: float) -> int | float:
        """The number at `share` (0 to 1) of the range; four significant digits, so that it can be read and typed."""
        if self.kind in ("log", "logint"):
            value = float(self.low * (self.high / self.low) ** share)
        else:
            value = self.low + (self.high - self.low) * share
        if self.whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def grid(self) -> list[int | float]:
        """Its `points`, evenly spaced on its own scale; whole numbers that coincide once."""
        assert self.points is not None
        return list(dict.fromkeys(self.at(index / max(1, self.points - 1)) for index in range(self.points)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A key and what it is given."""

    key: str
    values: tuple[Any, ...] = ()
    """Empty if there is a range."""
    range: Range | None = None

    def at(self, share: float) -> Any:
        """The value at `share` (from 0, below 1)."""
        if self.range is not None:
            return self.range.at(share)
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def ends(self) -> list[Any]:
        """All values, or both ends of the range: what can be wrong shows there."""
        return [self.range.at(0.0), self.range.at(1.0)] if self.range is not None else list(self.values)


def read_space(arguments: Sequence[str], file: Path | None) -> tuple[list[Axis], list[str]]:
    """(axes, overrides for all trials) from `key=...` arguments and a file of keys.

    Raises:
        RecipeError: everything that is wrong with any of them.
    """
    problems: list[Problem] = []
    axes, overrides = _from_arguments(arguments, problems)
    if file is not None:
        axes = [*_from_file(file, problems), *axes]
    seen: dict[str, int] = {}
    for axis in axes:
        seen[axis.key] = seen.get(axis.key, 0) + 1
    problems += [
        Problem(code="C162", message=f"`{key}` is given {count} times", hint="keep one of them")
        for key, count in seen.items()
        if count > 1
    ]
    given = {override.partition("=")[0] for override in overrides}
    problems += [
        Problem(code="C162", message=f"`{key}` is swept and also given one value", hint="keep one of them")
        for key in seen
        if key in given
    ]
    if "output_dir" in seen or "output_dir" in given:
        problems.append(
            Problem(code="C162", message="`output_dir` cannot be set in a sweep", hint="`--out` names its folder")
        )
    if not axes and not problems:
        hint = "for instance train.learning_rate=1e-4,3e-4 or train.learning_rate=log:1e-5..1e-3"
        problems.append(Problem(code="C162", message="nothing to sweep: no key has several values", hint=hint))
    if problems:
        raise RecipeError(problems=problems)
    return axes, overrides


def _from_arguments(arguments: Sequence[str], problems: list[Problem]) -> tuple[list[Axis], list[str]]:
    axes: list[Axis] = []
    overrides: list[str] = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        key, origin = key.strip(), f"command line: {argument}"
        parts = _split(text)
        if len(parts) == 1 and not _LOOKS_LIKE_RANGE.match(text.strip()):
            overrides.append(argument)
        elif len(parts) == 1:
            axes += _range_axis(key, text.strip(), origin, problems)
        else:
            values = []
            for part in parts:
                value, wrong = override_value(part, origin=origin)
                problems += wrong
                values.append(value)
            axes += _list_axis(key, values, origin, problems)
    return axes, overrides


def _from_file(file: Path, problems: list[Problem]) -> list[Axis]:
    origin = str(file)
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(code="C101", message=f"cannot read {origin}: {error}", file=origin))
        return []
    document = parse_yaml(text, origin=origin)
    problems += document.problems
    if document.problems:
        return []
    if not isinstance(document.value, Mapping):
        message = "a file for `--space` is a mapping from keys to lists or ranges"
        problems.append(Problem(code="C162", message=message, file=origin, hint="train.learning_rate: [1e-4, 3e-4]"))
        return []
    axes: list[Axis] = []
    for key, value in document.value.items():
        place = document.place((key,))
        found: list[Problem] = []
        if isinstance(value, list):
            axes += _list_axis(key, value, origin, found)
        elif isinstance(value, str) and _LOOKS_LIKE_RANGE.match(value):
            axes += _range_axis(key, value, origin, found)
        else:
            message = f"`{key}` needs a list of values or a range"
            found.append(Problem(code="C162", message=message, hint=f"{key}: [..., ...] or log:1e-5..1e-3"))
        problems += [place.problem(item.code, item.message, hint=item.hint) for item in found]
    return axes


def _list_axis(key: str, values: list[Any], origin: str, problems: list[Problem]) -> list[Axis]:
    texts = [repr(value) for value in values]
    if not values:
        problems.append(Problem(code="C162", message=f"`{key}` has no values", file=origin))
    for text in sorted({text for text in texts if texts.count(text) > 1}):
        problems.append(Problem(code="C162", message=f"`{key}` has the value {text} twice", file=origin))
    return [Axis(key=key, values=tuple(values))]


def _range_axis(key: str, text: str, origin: str, problems: list[Problem]) -> list[Axis]:
    found = _RANGE.match(text)
    hint = "log:1e-5..1e-3, lin:0..0.1, int:4..64 or logint:4..64; /5 behind it for five points"

    def wrong(message: str) -> list[Axis]:
        problems.append(Problem(code="C162", message=f"`{key}`: {message}", file=origin, hint=hint))
        return []

    if found is None:
        return wrong(f'"{text}" is no range')
    kind: Kind = found[1]  # type: ignore[assignment]
    numbers = [_number(part) for part in (found[2], found[3])]
    if any(number is None for number in numbers):
        return wrong(f'the ends of "{text}" must be finite numbers')
    low, high = numbers[0], numbers[1]
    assert low is not None and high is not None
    if low >= high:
        return wrong(f"the range must rise, got {low:g} to {high:g}")
    if kind in ("log", "logint") and low <= 0:
        return wrong(f"a logarithmic range starts above 0, got {low:g}")
    if kind in ("int", "logint") and not (low.is_integer() and high.is_integer()):
        return wrong(f"whole numbers are needed, got {found[2]} to {found[3]}")
    points = found[4]
    if points is not None and not (points.isdecimal() and int(points) >= 2):
        return wrong(f'"/{points}" must be a whole number of points, at least 2')
    return [Axis(key=key, range=Range(kind=kind, low=low, high=high, points=int(points) if points else None))]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no bracket and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in _OPEN:
            depth += 1
        elif sign in _CLOSE:
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]
