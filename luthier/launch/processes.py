"""One command on several processes of this machine, started and watched by torch's elastic agent (what torchrun is).

Each process is `python -m luthier run RECIPE ...` with a rank. The first prints; what the others print goes into files
of the run folder. When one fails, the agent ends the rest (SIGTERM, SIGKILL after 30 s), and the error that was the
cause is found here, so it is the last thing a user reads (`attempts.py`, across machines).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.launch.attempts import Ended
from luthier.launch.control import Nodes
from luthier.launch.here import PARENT
from luthier.runtime.env import variable
from luthier.runtime.errors import (
    ERRORS_BY_EXIT_CODE,
    EnvironmentProblem,
    Interrupted,
    LuthierError,
    RecipeError,
    RunFailed,
)
from luthier.runtime.failure import Failure, read_failure
from luthier.train.distributed.watch import FOLDER, forget_beats, read_beats

__all__ = ["Nodes", "choose_processes", "launch_processes", "stopped_by"]

MEET_SECONDS = 600
"""For torch's agents, whose launchers have met before."""


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


def launch_processes(
    arguments: Sequence[str], *, processes: int, cpu: bool, run: Path, nodes: Nodes, unshared: bool = False
) -> Ended:
    """Run `luthier ARGUMENTS` on `processes` processes here; how they ended, when all have.

    Args:
        arguments: Of each process.
        processes: Of this machine.
        cpu: They compute on the CPU.
        run: Folder of the run.
        nodes: All machines; with several, `rendezvous` is where torch's agents and their processes meet.
        unshared: The machines do not see one run folder.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = run / FOLDER / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    forget_beats(run)
    # What processes print is of process 0; on a machine without it all have files.
    redirected = range(0 if nodes.rank else 1, processes)
    config = LaunchConfig(
        min_nodes=nodes.count, max_nodes=nodes.count, nproc_per_node=processes, run_id=uuid.uuid4().hex[:8]
        if nodes.count == 1 else "luthier", max_restarts=0, rdzv_backend="c10d" if nodes.count == 1 else "static",
        rdzv_endpoint=nodes.rendezvous, rdzv_configs={"timeout": MEET_SECONDS, "rank": nodes.rank},
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(redirected, Std.ALL)),
    )  # fmt: skip
    before = {*logs.iterdir()}
    failed: dict[int, Any] = {}
    stopped: signal.Signals | None = None
    with _child_environment(cpu=cpu, unshared=unshared), _quiet_agent():
        try:
            elastic_launch(config, sys.executable)("-m", "luthier", *arguments)
            return Ended()
        except ChildFailedError as error:
            failed = dict(error.failures)
        except SignalException as error:
            stopped = error.sigval
        except RuntimeError as error:  # torch's agents lost each other's store
            lost = RunFailed(code="L141", message=f"the launcher lost the others: {error}")
            return Ended(error=lost)
    mine = [folder for folder in logs.iterdir() if folder not in before]
    places = [place / "error.json" for folder in mine for place in folder.glob("attempt_*/*")]
    said = [found for file in places if (found := read_failure(file))]
    cause = _cause(said, failed, stopped, run=run, logs=mine)
    return Ended(error=cause, signal=stopped.name if stopped else None)


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
    if said and stopped is None:
        return _as_error(min(said, key=lambda one: one.time))
    return stopped_by(stopped.name if stopped else "a signal", run)


def stopped_by(name: str, run: Path) -> Interrupted:
    """The error of a signal after which no process saved."""
    what = f"stopped by {name} before a process could save " + ("more" if _has_checkpoint(run) else "anything")
    return Interrupted(code="L144", message=what, hint=_how_to_go_on(run))


def _has_checkpoint(run: Path) -> bool:
    folder = run / "checkpoints"
    return any(folder.glob("step-*")) or any(folder.glob("checkpoint-*/luthier.json"))  # of online RL, when sealed


def _how_to_go_on(run: Path) -> str:
    if _has_checkpoint(run):
        return "the newest checkpoint is whole: the same command goes on from it"
    return "the same command starts it again"


def _as_error(failure: Failure) -> LuthierError:
    first, *rest = failure.problems
    stopped = failure.exit_code == Interrupted(code="L144").exit_code
    named = first if stopped else replace(first, message=f"process {failure.rank}: {first.message}")
    return ERRORS_BY_EXIT_CODE.get(failure.exit_code, RunFailed)(problems=[named, *rest])


def _killed(rank: int, failure: Any, *, run: Path, logs: Sequence[Path]) -> LuthierError:
    code = int(failure.exitcode)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    doing = [beat.what() for beat in read_beats(run / FOLDER) if (beat.rank, beat.pid) == (rank, failure.pid)]
    where = f" in {doing[0]}" if doing else ""
    said = f"; it said: {last}" if (last := "" if code == -signal.SIGKILL else _last_words(rank, logs)) else ""
    hint = _how_to_go_on(run)
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
def _child_environment(*, cpu: bool, unshared: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(variable("LUTHIER_LAUNCHED", "1"))
        stack.enter_context(variable(PARENT, str(os.getpid())))
        stack.enter_context(variable("LUTHIER_LAUNCH_COMMAND", json.dumps(sys.argv)))
        if cpu:
            stack.enter_context(variable("LUTHIER_FORCE_CPU", "1"))
        if unshared:
            stack.enter_context(variable("LUTHIER_UNSHARED", "1"))
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
