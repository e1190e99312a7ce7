"""The accelerator of this machine, found without torch: nvidia-smi, else the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from luthier.plan.devices import GIB, Accelerator, find_device, nearest_by_memory
from luthier.runtime.device import cpu_native_bf16, physical_cores
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError

__all__ = ["accelerator_named", "cpu_accelerator", "this_machine", "with_network"]

CPU_CORE_FP32, CPU_CORE_BF16, CPU_CORE_BANDWIDTH = 185e9, 290e9, 10e9
"""Operations and bytes a second of one core, fitted to training on two cores (see `CPU_EFFICIENCY`); bandwidth
assumed. bf16 only where the processor has units for it. Cores differ by a factor of three: the first run calibrates."""


def this_machine() -> tuple[Accelerator, str]:
    """The device a run would use here, and how it was found."""
    if not read_env().force_cpu and (found := _nvidia_smi()):
        name, memory = found
        return accelerator_named(name, memory), f"this machine: {name} by nvidia-smi"
    return cpu_accelerator(), "this machine: no GPU found"


def accelerator_named(name: str, memory_bytes: int) -> Accelerator:
    """The listed device for a driver's `name`, with the memory that was found; an unlisted one takes the rates of
    the listed device with the nearest memory and says so in its name."""
    try:
        known = find_device(name)
    except RecipeError:
        near = nearest_by_memory(memory_bytes)
        return replace(near, name=f"{name} (rates of {near.name} assumed)", memory_bytes=memory_bytes, measured="")
    return replace(known, memory_bytes=memory_bytes)


def cpu_accelerator() -> Accelerator:
    """This machine's processor and memory."""
    cores = physical_cores()
    native = cpu_native_bf16()
    return Accelerator(
        name=f"CPU, {cores} cores", type="cpu", memory_bytes=_host_bytes(),
        bf16_datasheet=CPU_CORE_BF16 * cores if native else 0.0, bf16=CPU_CORE_BF16 * cores if native else 0.0,
        fp8=0.0, fp32=CPU_CORE_FP32 * cores, bandwidth=CPU_CORE_BANDWIDTH * cores, link=CPU_CORE_BANDWIDTH,
        host_link=CPU_CORE_BANDWIDTH,
    )  # fmt: skip


def _host_bytes() -> int:
    """Memory of the host, or of the container where it has a smaller limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _nvidia_smi() -> tuple[str, int] | None:
    """(name, bytes) of the first GPU; None without a driver. /proc is looked at first, for it costs nothing."""
    program = shutil.which("nvidia-smi")
    if program is None or not Path("/proc/driver/nvidia").exists():
        return None
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        name, _, mib = done.stdout.splitlines()[read_env().local_rank].rpartition(",")
        return name.strip(), int(float(mib) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def with_memory(device: Accelerator, gib: float) -> Accelerator:
    """The same device with another amount of memory (a share of it, or a card that is not listed)."""
    return replace(device, memory_bytes=int(gib * GIB))


def with_network(device: Accelerator, gbits: float | None) -> Accelerator:
    """The same device with another adapter to other hosts, in Gbit/s; None: the assumed one.

    Raises:
        RecipeError: not above 0.
    """
    if gbits is None:
        return device
    if not gbits > 0.0:
        raise RecipeError(
            code="L262", message=f"{gbits} Gbit/s between hosts (`--network`, LUTHIER_NETWORK_GBITS)",
            hint="a number above 0",
        )  # fmt: skip
    return replace(device, network=gbits * 1e9 / 8)
