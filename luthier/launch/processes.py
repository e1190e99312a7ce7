"""One command on several processes of this machine, started and watched by torch's elastic agent (what torchrun is).

Each process is `python -m luthier run RECIPE ...` with a rank. The first prints; what the others print goes into files
of the run folder. When one fails, the agent ends the rest (SIGTERM, SIGKILL after 30 s), and the error that was the
cause is raised here, so it is the last thing a user reads.
"""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.runtime.env import variable
from luthier.runtime.errors import (
    AccessError,
    DataError,
    EnvironmentProblem,
    Interrupted,
    LuthierError,
    OutOfMemory,
    RecipeError,
    RunFailed,
)
from luthier.runtime.failure import Failure, read_failure
from luthier.train.distributed.watch import FOLDER, read_beats

__all__ = ["Nodes", "choose_processes", "launch_processes"]

_CLASSES: dict[int, type[LuthierError]] = {
    1: RunFailed, 2: RecipeError, 3: DataError, 4: EnvironmentProblem, 5: OutOfMemory, 6: AccessError, 130: Interrupted,
}  # fmt: skip
WAIT_FOR_NODES_SECONDS = 24 * 3600
"""Node 0 prepares the data before it comes to the rendezvous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The machines of a run; the same command starts on each."""

    count: int = 1
    rank: int = 0
    """Of this machine."""
    rendezvous: str = "localhost:0"
    """`host:port` of machine 0."""


def choose_processes(num_gpus: int | None, num_processes: int | None) -> tuple[int, bool]:
    """(processes on this machine, whether they compute on the CPU).

    Raises:
        RecipeError: both are given, or neither and there is no GPU.
        EnvironmentProblem: fewer GPUs than asked for.
    """
    import torch

    if num_gpus is not None and num_processes is not None:
        raise RecipeError(code="L103", message="`--num-gpus` and `--num-processes` exclude each other")
    if num_processes is not None:
        return num_processes, True
    there = torch.cuda.device_count()
    if num_gpus is None and not there:
        raise RecipeError(
            code="L103", message="no GPU here, and no number of processes", hint="`--num-processes N` takes the CPU"
        )
    if num_gpus is not None and num_gpus > there:
        raise EnvironmentProblem(
            code="L101", message=f"{num_gpus} GPUs were asked for, this machine shows {there}",
            hint="lower `--num-gpus`, or look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return num_gpus or there, False


def launch_processes(arguments: Sequence[str], *, processes: int, cpu: bool, run: Path, nodes: Nodes) -> None:
    """Run `luthier ARGUMENTS` on `processes` processes here; returns when all have ended well.

    Raises:
        LuthierError: the error of the process that failed first, with its number.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = run / FOLDER / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:8] if nodes.count == 1 else f"luthier-{nodes.rendezvous.rpartition(':')[2]}"
    config = LaunchConfig(
        min_nodes=nodes.count, max_nodes=nodes.count, nproc_per_node=processes, run_id=name, max_restarts=0,
        rdzv_backend="c10d" if nodes.count == 1 else "static", rdzv_endpoint=nodes.rendezvous,
        rdzv_configs={"timeout": WAIT_FOR_NODES_SECONDS, "rank": nodes.rank},
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
    )  # fmt: skip
    before = {*logs.iterdir()}
    failed: dict[int, Any] = {}
    stopped: signal.Signals | None = None
    with _child_environment(cpu=cpu), _quiet_agent():
        try:
            elastic_launch(config, sys.executable)("-m", "luthier", *arguments)
            return
        except ChildFailedError as error:
            failed = dict(error.failures)
        except SignalException as error:
            stopped = error.sigval
    mine = [folder for folder in logs.iterdir() if folder not in before]
    said = [found for folder in mine for file in folder.rglob("error.json") if (found := read_failure(file))]
    raise _cause(said, failed, stopped, run=run, logs=mine)


def _cause(
    said: Sequence[Failure], failed: dict[int, Any], stopped: signal.Signals | None, *, run: Path, logs: Sequence[Path]
) -> LuthierError:
    """What ended the run: an error of its own first, then a process that was killed, then one that followed."""
    own = sorted((one for one in said if not one.follows), key=lambda one: one.time)
    if own:
        return _as_error(own[0])
    told = {one.rank for one in said}
    silent = [(rank, failure) for rank, failure in sorted(failed.items()) if rank not in told]
    if silent:
        # SIGTERM is what the agent sends to those that are left over.
        first = min(silent, key=lambda item: int(item[1].exitcode) == -signal.SIGTERM)
        return _killed(*first, run=run, logs=logs)
    if said:
        return _as_error(min(said, key=lambda one: one.time))
    name = stopped.name if stopped else "a signal"
    return Interrupted(code="L144", message=f"stopped by {name} before a process could save anything")


def _as_error(failure: Failure) -> LuthierError:
    first, *rest = failure.problems
    stopped = failure.exit_code == Interrupted(code="L144").exit_code
    named = first if stopped else replace(first, message=f"process {failure.rank}: {first.message}")
    return _CLASSES.get(failure.exit_code, RunFailed)(problems=[named, *rest])


def _killed(rank: int, failure: Any, *, run: Path, logs: Sequence[Path]) -> LuthierError:
    code = int(failure.exitcode)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    doing = [beat.what() for beat in read_beats(run / FOLDER) if beat.rank == rank]
    where = f" in {doing[0]}" if doing else ""
    said = f"; it said: {last}" if (last := "" if code == -signal.SIGKILL else _last_words(rank, logs)) else ""
    hint = "the newest checkpoint is whole: the same command goes on from it"
    if code == -signal.SIGKILL:
        hint = f"if the machine ran out of memory, its log (`dmesg`) names the process; {hint}"
    return RunFailed(code="L143", message=f"process {rank} (pid {failure.pid}) {how}{where}{said}", hint=hint)


def _last_words(rank: int, logs: Sequence[Path]) -> str:
    """Last line of what a process wrote where it has a file; of the first, it is on the screen."""
    for folder in logs:
        for file in folder.glob(f"attempt_*/{rank}/stderr.log"):
            lines = file.read_text("utf-8", errors="replace").strip().splitlines()
            if lines:
                return lines[-1][:300]
    return ""


@contextmanager
def _child_environment(*, cpu: bool) -> Iterator[None]:
    with variable("LUTHIER_LAUNCHED", "1"):
        if not cpu:
            yield
            return
        with variable("LUTHIER_FORCE_CPU", "1"):
            yield


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """The agent's own account of a failure would stand after ours."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.distributed.launcher")]
    loggers += [
        logging.getLogger(name) for name in list(logging.root.manager.loggerDict)
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher"))
    ]  # fmt: skip
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
