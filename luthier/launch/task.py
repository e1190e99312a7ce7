"""What is to be run where: a task, what it needs, how it is doing. Every launcher takes and gives these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["Launcher", "Resources", "Spec", "Status", "Task", "check_task"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a task needs of one machine."""

    gpus: int
    gpu_type: str | None = None
    """As the cluster names it; None: any."""
    cpus: int = 4
    memory_bytes: int = 16 << 30
    """Of the host."""
    seconds: int = 3600
    """After which the cluster may end it."""
    disk_bytes: int = 0
    """That the run writes; 0: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One command, with what it needs around it."""

    name: str
    """Unique for the user on the cluster: a task of the same name is the same task."""
    command: tuple[str, ...]
    """Program and arguments; never seen by a shell unquoted."""
    folder: Path
    """Working directory, the same path on every machine."""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of variables with secrets that the command needs; values are never written into a file."""
    resources: Resources = field(default_factory=lambda: Resources(gpus=0))

    def paths(self) -> tuple[Path, ...]:
        """All that are named."""
        return (self.folder,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Spec):
    """A command whose output goes into files that its server reads."""

    out: Path
    """File that gets standard output, written anew."""
    err: Path
    """File that gets standard error, appended to."""
    exit_file: Path
    """Where launchers without an exit code of their own leave it."""

    def paths(self) -> tuple[Path, ...]:
        """All that are named."""
        return (self.folder, self.out, self.err, self.exit_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a task is doing."""

    phase: Literal["waiting", "running", "ended", "unknown"]
    """`unknown`: the launcher has no record of it (any more), or cannot be asked now."""
    exit_code: int | None = None
    """Of an ended task: the command's; negative: ended by that signal; None: not known."""
    detail: str = ""
    """The launcher's own word."""


class Launcher(Protocol):
    """Hands tasks to where they run."""

    remote: bool
    """Tasks outlive this process, and run where only the file system is shared."""

    def files(self, task: Task) -> dict[str, str]:
        """What is submitted, by file name; empty where nothing is."""

    def submit(self, task: Task) -> str:
        """Start it, or put it in line; returns the handle by which it is asked for later.

        Raises:
            EnvironmentProblem: the launcher's program is missing, or refuses.
        """

    def find(self, task: Task) -> str | None:
        """The handle of a task of this name that waits or runs: after a crash it is not submitted twice."""

    def status(self, handle: str) -> Status:
        """How it is doing."""

    def stop(self, handle: str, *, hard: bool) -> None:
        """Ask it to save and end (SIGTERM), or end it and all it started at once."""


def check_task(task: Spec) -> None:
    """Refuse what could be read as something else than a name or a path.

    Raises:
        RecipeError: every problem.
    """
    problems = []
    if not NAME.fullmatch(task.name):
        problems.append(
            Problem(
                code="L151", message=f"{task.name!r} cannot be the name of a task",
                hint="letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 100",
            )
        )  # fmt: skip
    for name in [*task.environment, *task.secrets]:
        if not VARIABLE.fullmatch(name):
            problems.append(
                Problem(
                    code="L152", message=f"{name!r} cannot be the name of an environment variable",
                    hint="letters, digits and `_`",
                )
            )  # fmt: skip
    texts = [*task.command, *task.environment.values(), *map(str, task.paths())]
    problems += [
        Problem(code="L153", message=f"{text!r} holds a NUL character", hint="take it out")
        for text in texts
        if "\0" in text
    ]
    if problems:
        raise RecipeError(problems=problems)
