"""--map and --format of commands over files, and what is wrong with them in the words of the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from luthier.runtime.errors import DataError, Problem, RecipeError

__all__ = ["columns_of", "hints_as_options"]

_MAP = re.compile(r"`map: \{([^{}`]*)\}`")
_PAIR = re.compile(r"(\w+): (.+?)(?=, \w+: |$)")
_FORMAT = re.compile(r"`format: (\w+)`")


def columns_of(pairs: list[str]) -> dict[str, str]:
    """--map field=column, as in `data.train`.

    Raises:
        RecipeError: all that have no `=`.
    """
    problems = [
        Problem(code="C120", message=f"--map {pair} has no `=`", hint="for instance user=question")
        for pair in pairs
        if "=" not in pair
    ]
    if problems:
        raise RecipeError(problems=problems)
    return dict(pair.split("=", 1) for pair in pairs)


@contextmanager
def hints_as_options(*, option: str = "--map", has_format: bool = True) -> Iterator[None]:
    """Keys of a recipe that a hint about rows suggests, as options to copy: `map: {user: q}` is `--map user=q`.

    Args:
        option: What takes field=column for these rows.
        has_format: Whether there is a --format for them.
    """
    try:
        yield
    except DataError as error:
        problems = [
            problem if problem.hint is None else replace(problem, hint=_as_options(problem.hint, option, has_format))
            for problem in error.problems
        ]
        raise DataError(problems=problems, total=error.total) from error


def _as_options(hint: str, option: str, has_format: bool) -> str:
    def pairs(found: re.Match[str]) -> str:
        return "`" + " ".join(f"{option} {shlex.quote(f'{key}={name}')}" for key, name in _PAIR.findall(found[1])) + "`"

    told = _MAP.sub(pairs, hint.replace("add a `map`", f"add `{option} FIELD=COLUMN`"))
    return _FORMAT.sub(r"`--format \1`", told) if has_format else told
