"""Several processes of a test: started by torchrun from the test, begun and ended alike in each worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from luthier.runtime.console import set_quiet
from luthier.runtime.env import read_env
from luthier.train.processes import make_accelerator

ROOT = Path(__file__).parents[2]


def run_workers(
    module: str, folder: Path, *names: str, processes: int, timeout: float, **variables: str
) -> None:  # fmt: skip
    """Run `python -m MODULE FOLDER NAMES` on so many processes of the CPU; each has to end with 0."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1", **variables,
    }  # fmt: skip
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
        "-m", module, str(folder), *names,
    ]  # fmt: skip
    done = subprocess.run(
        launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def work(run_all: Callable[[Path, int, int, list[str]], None]) -> None:
    """A worker's life: `run_all(folder, processes, rank, names)`, names being those asked for on the command line."""
    torch.set_num_threads(1)
    set_quiet(True)
    make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    run_all(Path(sys.argv[1]), read_env().world_size, read_env().rank, sys.argv[2:])
    # One that leaves while another still talks to it makes that one abort.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
