"""Which processes there are: a worker for each GPU, or as many as a cluster may have jobs of ours; and the clerk."""

from __future__ import annotations

import shutil
import subprocess

from luthier.jobs.worker.settings import WorkerSettings
from luthier.runtime.env import read_env, read_visible_devices

__all__ = ["CLERK", "SETTINGS", "find_gpus", "places"]

CLERK = "clerk"
SETTINGS = "worker.json"
"""Where in the home the processes read their settings."""


def places(settings: WorkerSettings) -> list[tuple[str, dict[str, str]]]:
    """Name and variables of each process: the workers, then the clerk."""
    launch = settings.launch
    workers: list[tuple[str, dict[str, str]]]
    if launch.kind != "local":
        workers = [(f"{launch.kind}-{index}", {}) for index in range(launch.slots)]
    else:
        devices = find_gpus() if settings.workers.devices is None else settings.workers.devices
        variables = [{"CUDA_VISIBLE_DEVICES": device} for device in devices]
        workers = [(f"gpu-{index}", one) for index, one in enumerate(variables)] or [("cpu-0", {})]
    return [*workers, (CLERK, {"CUDA_VISIBLE_DEVICES": ""})]


def find_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one a GPU; no torch: nvidia-smi is asked."""
    given = read_visible_devices()
    if read_env().force_cpu:
        return []
    if given is not None:
        return [device.strip() for device in given.split(",") if device.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    call = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("GPU-")]
