"""Results on stdout, everything for people on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from luthier.runtime.console import console
from luthier.runtime.errors import LuthierError

__all__ = ["emit_json", "print_error", "show", "wants_json"]


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` stands among the arguments."""
    return "--json" in arguments


def emit_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


WIDTH_OF_A_PIPE = 160


def show(renderable: Any) -> None:
    """A table or text on stdout: it is the result of the command. A pipe has no width, so nothing is cut for one.

    A string is data: markup and emoji codes in it are not interpreted.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_A_PIPE)
    console.print(renderable, markup=False, emoji=False)


def print_error(error: LuthierError, *, as_json: bool) -> None:
    """Every problem, on stderr for people or on stdout as JSON."""
    if as_json:
        problems = [problem.to_dict() for problem in error.problems]
        emit_json({"ok": False, "exit_code": error.exit_code, "problems": problems})
    else:
        console().print(error.render(), markup=False, style="red", soft_wrap=True)
