"""The part of a batch script that all clusters share. Everything from outside is quoted; nothing is expanded twice."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from luthier.launch.task import Task

__all__ = ["comment", "run_lines"]


def run_lines(task: Task, *, again: str | None, setup: Sequence[str] = ()) -> list[str]:
    """Lines of bash that run the command, pass SIGTERM on to it and leave its exit code in `task.exit_file`.

    Args:
        task: What to run.
        again: A command that puts the task in line again, run when SIGUSR1 (time is running out) came and the
            command has saved (130); None: SIGUSR1 is not used.
        setup: Lines of the configuration, run before, as they are.
    """
    quote = shlex.quote
    exports = [f"export {name}={quote(value)}" for name, value in sorted(task.environment.items())]
    exit_file, temporary = quote(str(task.exit_file)), quote(str(task.exit_file) + ".tmp")
    lines = [
        f"cd -- {quote(str(task.folder))} || exit 4",
        *exports,
        *setup,
        "child= again=",
        'pass_on() { if [ -n "$child" ]; then kill -s TERM "$child" 2>/dev/null; fi; }',
        "trap pass_on TERM INT",
        *(["trap 'again=1; pass_on' USR1"] if again else []),
        f"rm -f -- {exit_file}",
        f"{shlex.join(task.command)} > {quote(str(task.out))} 2>> {quote(str(task.err))} < /dev/null &",
        "child=$!",
        "code=0",
        # A signal ends `wait`, not the child: wait until it is gone.
        'wait "$child" || code=$?',
        'while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done',
    ]
    if again:
        lines += ['if [ -n "$again" ] && [ "$code" -eq 130 ]; then', f"  {again} && exit 0", "fi"]
    return [*lines, f"printf '%s\\n' \"$code\" > {temporary} && mv -f -- {temporary} {exit_file}", 'exit "$code"']


def comment(text: str) -> str:
    """A line of a script that can hold no command."""
    return "# " + "".join(char if char.isprintable() else "?" for char in text)
