"""Scoring and sampling on several processes: they meet, share the rows, and wait for process 0, which does the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from luthier.runtime.console import note
from luthier.runtime.device import pick_device
from luthier.runtime.env import read_env, without_launcher_variables
from luthier.runtime.heartbeat import mark
from luthier.train.distributed.group import Group, join
from luthier.train.distributed.watch import beating

__all__ = ["scoring_together"]


@contextmanager
def scoring_together() -> Iterator[Group]:
    """The processes that a launcher started, as one group that scores or samples; without a launcher a group of one.

    Process 0 may take as long as it likes for what it does alone (tests, a judge): the others wait at the end.

    Raises:
        EnvironmentProblem: more processes on this machine than GPUs.
    """
    if read_env().world_size == 1:
        yield Group()
        return
    with without_launcher_variables(), _watched(), join(pick_device) as group:
        note(f"{group.size} processes share the rows", style="dim")
        mark("scoring", watched=False)
        yield group
        group.from_main("end", lambda: None)


def _watched() -> AbstractContextManager[None]:
    """Heartbeats, where the processes are of one machine and its launcher left them a folder: ours, or torchrun's."""
    env = read_env()
    folder = env.watch_folder
    if folder is None and env.error_file is not None:
        folder = env.error_file.parents[1]  # .../attempt_0/RANK/error.json
    if folder is None or env.local_world_size < env.world_size:
        return nullcontext()
    return beating(folder, resumes=False)
