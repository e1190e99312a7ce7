"""`luthier eval` and `luthier data synth` on several processes of this machine.

There is no run folder: logs and heartbeats get a folder of their own. It stays only if something failed, and another
process than the first had printed something.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from luthier.launch.processes import Nodes, launch_processes
from luthier.runtime.console import note
from luthier.runtime.env import variable
from luthier.train.distributed.watch import FOLDER

__all__ = ["launch_scoring"]


def launch_scoring(arguments: Sequence[str], *, processes: int, cpu: bool) -> None:
    """Run `luthier ARGUMENTS` on `processes` processes.

    Raises:
        LuthierError: what ended them.
    """
    folder = Path(tempfile.mkdtemp(prefix="luthier-processes-"))
    with variable("LUTHIER_WATCH_FOLDER", str(folder)):
        ended = launch_processes(arguments, processes=processes, cpu=cpu, run=folder, nodes=Nodes())
    printed = [file for file in (folder / FOLDER / "logs").rglob("*.log") if file.stat().st_size]
    if ended.error is None or not printed:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        note(f"what the other processes printed: {folder / FOLDER / 'logs'}", style="dim")
    if ended.error is not None:
        raise ended.error
