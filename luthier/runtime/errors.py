"""One exception tree; the exit code of the command line is a property of the class.

    LuthierError (1: the run failed)
    ├── RecipeError        2  recipe, override or command line is wrong
    ├── DataError          3  rows are wrong, or nothing is left to train on
    ├── EnvironmentProblem 4  missing extra, no device, folder not writable, disk full
    ├── OutOfMemory        5
    ├── AccessError        6  gated model, missing token, hub not reachable
    ├── RunFailed          1  non-finite loss, failed check, broken checkpoint
    ├── MachineLost        7  another machine of the run is gone; the same command goes on
    └── Interrupted      130  stopped by a signal; a checkpoint to resume from was saved

Every error carries one or more `Problem`s: all that is wrong is reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "ERRORS_BY_EXIT_CODE",
    "AccessError",
    "DataError",
    "EnvironmentProblem",
    "Interrupted",
    "LuthierError",
    "MachineLost",
    "OutOfMemory",
    "Problem",
    "RecipeError",
    "RunFailed",
]

_MAX_SHOWN = 50
"""A file with a million bad rows must not scroll the first one away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, where it is, and the smallest change that mends it."""

    code: str
    """Stable code: C1xx recipe, D2xx data, M3xx model, T4xx training, E5xx evaluation, X6xx export, S6xx serving,
    R7xx runtime, J1xx fine-tuning service."""
    message: str
    """What was got and what is allowed, in one sentence."""
    file: str | None = None
    line: int | None = None
    """1-based."""
    column: int | None = None
    """1-based, in characters."""
    source: str | None = None
    """The offending line as it stands in the file."""
    length: int = 1
    """Characters to underline from `column`."""
    hint: str | None = None
    """Smallest fix, for instance `did you mean "learning_rate"?`."""

    def where(self) -> str:
        """`file:line:column`, as far as known; empty if nothing is known."""
        parts = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        return ":".join(parts)

    def render(self) -> str:
        """Plain text, in the manner of a compiler: place, message, line, caret, hint."""
        head = f"error[{self.code}]"
        if self.where():
            head += f" {self.where()}"
        lines = [f"{head}  {self.message}"]
        if self.source is not None and self.line is not None:
            shown, column = _window(self.source, self.column or 1)
            lines.append(f"{self.line:>5} | {shown}")
            if self.column is not None:
                width = max(1, min(self.length, len(shown) - column + 1))
                hint = f" {self.hint}" if self.hint else ""
                lines.append(" " * (7 + column) + "^" * width + hint)
                return "\n".join(lines)
        if self.hint:
            lines.append(f"        {self.hint}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without empty fields."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(eq=False)
class LuthierError(Exception):
    """Base of all errors a user can cause or meet. Build with a message or with problems."""

    message: str = ""
    problems: Sequence[Problem] = field(default_factory=tuple)
    hint: str | None = None
    code: str = "R700"
    total: int | None = None
    """How many problems there are, when `problems` holds only the first of them."""
    exit_code: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not self.problems:
            self.problems = (Problem(code=self.code, message=self.message, hint=self.hint),)
        super().__init__(self.render())

    def render(self) -> str:
        """The first fifty problems, then the count of all."""
        shown = self.problems[:_MAX_SHOWN]
        text = "\n".join(problem.render() for problem in shown)
        total = self.total or len(self.problems)
        if total > len(shown):
            return f"{text}\n{total:,} errors, the first {len(shown)} are shown"
        return f"{text}\n{total} errors" if total > 1 else text

    def __str__(self) -> str:
        return self.render()


class RecipeError(LuthierError):
    """The recipe, an override or an argument is wrong."""

    def __post_init__(self) -> None:
        self.exit_code = 2
        super().__post_init__()


class DataError(LuthierError):
    """Rows that cannot be used, or a set with nothing to train on."""

    def __post_init__(self) -> None:
        self.exit_code = 3
        super().__post_init__()


class EnvironmentProblem(LuthierError):
    """This machine lacks something: package, device, space, permission."""

    def __post_init__(self) -> None:
        self.exit_code = 4
        super().__post_init__()


class OutOfMemory(LuthierError):
    """Host or device memory ran out."""

    def __post_init__(self) -> None:
        self.exit_code = 5
        super().__post_init__()


class AccessError(LuthierError):
    """A model or data set exists but may not be read, or its hub cannot be reached."""

    def __post_init__(self) -> None:
        self.exit_code = 6
        super().__post_init__()


class RunFailed(LuthierError):
    """The run itself failed: non-finite loss, failed check, broken checkpoint."""


class MachineLost(LuthierError):
    """Another machine of the run does not answer any more; what waits for all can start them again."""

    def __post_init__(self) -> None:
        self.exit_code = 7
        super().__post_init__()


class Interrupted(LuthierError):
    """Stopped by a signal after saving."""

    def __post_init__(self) -> None:
        self.exit_code = 130
        super().__post_init__()


ERRORS_BY_EXIT_CODE: dict[int, type[LuthierError]] = {
    1: RunFailed, 2: RecipeError, 3: DataError, 4: EnvironmentProblem, 5: OutOfMemory, 6: AccessError, 7: MachineLost,
    130: Interrupted,
}  # fmt: skip
"""The class of an error that came from another process."""


def _window(source: str, column: int, width: int = 100) -> tuple[str, int]:
    """Cut a long line around `column`; returns the text shown and the column in it."""
    text = source.rstrip("\r\n").replace("\t", " ")
    if len(text) <= width:
        return text, column
    start = max(0, min(column - 1 - width // 2, len(text) - width))
    left = "..." if start else ""
    right = "..." if start + width < len(text) else ""
    return f"{left}{text[start : start + width]}{right}", column - start + len(left)
