"""Load a function out of a user's Python file. It is the user's code and runs with the user's rights."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["deepest_line", "first_line", "load_function"]


def load_function(text: str, file: str, name: str, *, code: str, prefix: str) -> Callable[..., Any]:
    """Import the file and take the function out of it.

    Args:
        text: FILE:FUNCTION as the recipe has it, for messages.
        file: path of the file.
        name: of the function.
        code: of the error.
        prefix: of the module's name, so that files of one name do not meet.

    Raises:
        RecipeError: the file cannot be imported, or has no such function.
    """
    path = Path(file).expanduser().resolve()
    module_name = f"{prefix}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(code=code, message=f"{file} is no Python file", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(problems=[_not_imported(error, file, path, code)]) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        message = f"{file} has no function `{name}`; its functions: {there}"
        raise RecipeError(code=code, message=message, hint=f"check `python: {text}`")
    return function  # type: ignore[no-any-return]


def _not_imported(error: Exception, file: str, path: Path, code: str) -> Problem:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return Problem(code=code, message=f"cannot be imported: {type(error).__name__}: {said}", file=file, line=line)


def deepest_line(error: Exception, file: str) -> tuple[int | None, str | None]:
    """Line of the file where an error arose, and its text: the deepest of its own lines."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == Path(file).expanduser().resolve()]
    return (own[-1].lineno, own[-1].line) if own else (None, None)


def first_line(function: Callable[..., Any]) -> int | None:
    """Line where a function begins."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else None
