"""`luthier eval` on several processes: they meet, share the rows, and wait for process 0, which does the rest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.runtime.console import note
from luthier.runtime.device import pick_device
from luthier.runtime.env import read_env, without_launcher_variables
from luthier.runtime.heartbeat import mark
from luthier.train.distributed.group import Group, join
from luthier.train.distributed.watch import beating

__all__ = ["scoring_together"]


@contextmanager
def scoring_together() -> Iterator[Group]:
    """The processes that a launcher started, as one group that scores; without a launcher a group of one.

    Process 0 may take as long as it likes for what it does alone (tests, a judge): the others wait at the end.

    Raises:
        EnvironmentProblem: more processes on this machine than GPUs.
    """
    if read_env().world_size == 1:
        yield Group()
        return
    with without_launcher_variables():
        with join(pick_device) as group:
            given = _launchers_folder()
            folder = group.from_main("folder", lambda: given or Path(tempfile.mkdtemp(prefix="luthier-eval-")))
            with beating(folder, resumes=False):
                note(f"{group.size} processes share the rows", style="dim")
                mark("scoring", watched=False)
                yield group
                group.from_main("end", lambda: None)
        if group.is_main and given is None:
            shutil.rmtree(folder, ignore_errors=True)


def _launchers_folder() -> Path | None:
    """A folder of `luthier eval`, or where torchrun reads the error of this process; None without either."""
    env = read_env()
    if env.watch_folder is not None:
        return env.watch_folder
    return None if env.error_file is None else env.error_file.parent
