"""What this machine computes with: device, native types, threads. torch is imported inside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.runtime.env import read_env

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "cpu_flags", "cpu_native_bf16", "physical_cores", "pick_device", "set_threads"]

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device a process computes on, and the reasons for how it is used."""

    type: str
    """`cuda`, `mps` or `cpu`."""
    index: int
    name: str
    memory_bytes: int
    """Of the device; of the host for a CPU."""
    native_bf16: bool
    reason: str

    @property
    def torch_device(self) -> torch.device:
        """As torch wants it."""
        import torch

        return torch.device(self.type, self.index) if self.type == "cuda" else torch.device(self.type)


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the processor (Linux); empty where unknown."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def cpu_native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; without, it was measured 8 times slower than float32."""
    return bool(_BF16_FLAGS & cpu_flags())


def physical_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device() -> Device:
    """CUDA if there is one, then MPS, then the CPU; `LUTHIER_FORCE_CPU=1` forces the CPU."""
    import torch

    env = read_env()
    if not env.force_cpu and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(env.local_rank)
        return Device(
            type="cuda", index=env.local_rank, name=properties.name, memory_bytes=properties.total_memory,
            native_bf16=properties.major >= 8, reason="a CUDA device is available",
        )  # fmt: skip
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not env.force_cpu and torch.backends.mps.is_available():
        return Device(
            type="mps",
            index=0,
            name="Apple GPU",
            memory_bytes=host_bytes,
            native_bf16=True,
            reason="Metal is available",
        )
    native = cpu_native_bf16()
    why = "LUTHIER_FORCE_CPU is set" if env.force_cpu else "no accelerator found"
    return Device(type="cpu", index=0, name="CPU", memory_bytes=host_bytes, native_bf16=native, reason=why)


def set_threads() -> tuple[int, str]:
    """Use every core this process may use, divided among local ranks, unless OMP_NUM_THREADS says otherwise.

    Returns the number of threads and the reason.
    """
    import torch

    env = read_env()
    if env.omp_num_threads is not None:
        torch.set_num_threads(env.omp_num_threads)
        return env.omp_num_threads, "OMP_NUM_THREADS"
    threads = max(1, physical_cores() // max(1, env.local_world_size))
    torch.set_num_threads(threads)
    return threads, "cores this process may use / local processes"
