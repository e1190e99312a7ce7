"""Slurm: a batch script, and `sbatch`, `squeue`, `sacct`, `scancel`.

Directives hold only names and numbers that were checked; paths and arguments stand quoted in the body, where bash reads
them. The job does not inherit the environment of this process: variables are exported in the script, secrets by name.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from luthier.launch.programs import call
from luthier.launch.settings import LaunchSettings
from luthier.launch.shell import comment, run_lines
from luthier.launch.task import Launcher, Spec, Status, Task, check_task
from luthier.runtime.atomic import write_text
from luthier.runtime.errors import EnvironmentProblem

__all__ = ["Slurm", "batch_script", "directives_of", "slurm_time"]

WAITS = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "CONFIGURING"}
RUNS = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING"}


def batch_script(task: Task, settings: LaunchSettings) -> str:
    """The script that `sbatch` gets.

    Raises:
        RecipeError: a name that is none.
    """
    check_task(task)
    directives = [
        *directives_of(task, settings, nodes=1), f"--export={','.join(task.secrets) or 'NONE'}",
        f"--output={_output(task.err)}",
    ]  # fmt: skip
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in directives),
        comment("SIGUSR1 comes before the time limit: save, then wait in line again. SIGTERM: save and end."),
        *run_lines(task, again='scontrol requeue "$SLURM_JOB_ID"', setup=settings.slurm.setup),
    ]
    return "\n".join(lines) + "\n"


def directives_of(task: Spec, settings: LaunchSettings, *, nodes: int) -> list[str]:
    """What is asked for, one task a node; without the place of Slurm's own messages."""
    slurm, needs = settings.slurm, task.resources
    gpus = [f"--gres=gpu:{needs.gpu_type + ':' if needs.gpu_type else ''}{needs.gpus}"] if needs.gpus else []
    named = [("partition", slurm.partition), ("account", slurm.account), ("qos", slurm.qos),
             ("constraint", slurm.constraint)]  # fmt: skip
    return [
        f"--job-name={task.name}", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={needs.cpus}",
        f"--mem={-(-needs.memory_bytes // (1 << 20))}M", *gpus, f"--time={slurm_time(needs.seconds)}",
        *(f"--{key}={value}" for key, value in named if value), "--requeue", "--open-mode=append",
        f"--signal=B:USR1@{slurm.signal_seconds}",
    ]  # fmt: skip


def slurm_time(seconds: int) -> str:
    """`D-HH:MM:SS`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"


def _output(path: Path) -> str:
    """Slurm's own messages go to the log too, where its path needs no quoting (`%` has a meaning there)."""
    return str(path) if re.fullmatch(r"[A-Za-z0-9/._-]+", str(path)) else "/dev/null"


class Slurm(Launcher):
    """Hand tasks to Slurm. Home, runs and models must be on a file system that the nodes share."""

    remote = True

    def __init__(self, settings: LaunchSettings) -> None:
        self._settings = settings
        self._exit_files: dict[str, Path] = {}

    def files(self, task: Task) -> dict[str, str]:
        """The batch script."""
        return {f"{task.name}.sbatch": batch_script(task, self._settings)}

    def submit(self, task: Task) -> str:
        """`sbatch`; the handle is the job's number."""
        (name, text), *_ = self.files(task).items()
        script = task.exit_file.parent / name
        write_text(script, text)
        said = call(["sbatch", "--parsable", str(script)]) or ""
        number = said.strip().partition(";")[0]
        if not number.isdigit():
            raise EnvironmentProblem(
                code="L163",
                message=f"`sbatch` printed no job number but {said.strip()[:200]!r}",
                hint="see its message",
            )
        self._exit_files[number] = task.exit_file
        return number

    def find(self, task: Task) -> str | None:
        """By name, among those that wait or run."""
        check_task(task)
        said = call(["squeue", "--noheader", "--me", f"--name={task.name}", "--format=%i"]) or ""
        numbers = [line.strip() for line in said.splitlines() if line.strip().isdigit()]
        if numbers:
            self._exit_files[numbers[0]] = task.exit_file
        return numbers[0] if numbers else None

    def status(self, handle: str) -> Status:
        """`squeue` while it waits or runs, `sacct` afterwards."""
        said = call(["squeue", "--noheader", f"--jobs={_number(handle)}", "--format=%T"], may_fail=True) or ""
        word = said.strip().partition("\n")[0].strip()
        if word in WAITS:
            return Status(phase="waiting", detail=word)
        if word in RUNS:
            return Status(phase="running", detail=word)
        return self._ended(handle)

    def _ended(self, handle: str) -> Status:
        call_ = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={_number(handle)}",
                 "--format=State,ExitCode"]  # fmt: skip
        said = call(call_, may_fail=True) or ""
        word, _, codes = said.strip().partition("\n")[0].partition("|")
        word = word.split(" ")[0]  # `CANCELLED by 1000`
        if word in WAITS or word in RUNS:
            return Status(phase="running", detail=word)
        code = self._left(handle)
        if not word:  # no accounting here: the script's own record
            return Status(phase="unknown" if code is None else "ended", exit_code=code)
        if code is None and re.fullmatch(r"\d+:\d+", codes):
            plain, by_signal = map(int, codes.split(":"))
            code = -by_signal if by_signal else plain
        killed = word not in ("COMPLETED", "FAILED") and code in (None, 0)
        return Status(phase="ended", exit_code=-9 if killed else code, detail=word)

    def _left(self, handle: str) -> int | None:
        file = self._exit_files.get(handle)
        if file is None or not file.is_file():
            return None
        text = file.read_text("ascii", "replace").strip()
        return int(text) if text.isdigit() else None

    def stop(self, handle: str, *, hard: bool) -> None:
        """SIGTERM to the batch shell, which passes it on; or the end."""
        options = [] if hard else ["--batch", "--signal=TERM"]
        call(["scancel", *options, _number(handle)], may_fail=True)
        if not hard:  # one that waits gets no signal
            call(["scancel", "--state=PENDING", _number(handle)], may_fail=True)


def _number(handle: str) -> str:
    if not handle.isdigit():
        raise EnvironmentProblem(code="L163", message=f"{handle!r} is no job number of Slurm", hint="see docs/jobs.md")
    return shlex.quote(handle)
