"""What the machine does now: processor, memory, disk, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from luthier.studio.runs.times import iso

__all__ = ["System"]

_QUERY = "index,name,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"
_KEEP_SECONDS = 2.0


class System:
    """Measures at most every two seconds, however many pages ask."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._last: dict[str, Any] = {}
        self._at = 0.0
        self._ticks: tuple[int, int] | None = None
        self._smi = shutil.which("nvidia-smi")

    def now(self) -> dict[str, Any]:
        """The numbers; null for what this system does not tell."""
        with self._lock:
            if time.monotonic() - self._at > _KEEP_SECONDS or not self._last:
                self._last = self._measure()
                self._at = time.monotonic()
            return self._last

    def _measure(self) -> dict[str, Any]:
        load = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
        folder = next(path for path in (self._disk, *self._disk.absolute().parents) if path.exists())
        usage = shutil.disk_usage(folder)
        return {
            "time": iso(time.time()),
            "cpu": {"cores": os.cpu_count() or 1, "percent": self._percent(), "load": list(load)},
            "memory": _memory(),
            "disk": {"path": folder.name or str(folder), "total": usage.total, "free": usage.free},
            "gpus": _gpus(self._smi),
        }

    def _percent(self) -> float | None:
        """Busy share of all processors since the last time, in percent."""
        try:
            words = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        numbers = [int(word) for word in words]
        total, idle = sum(numbers[:8]), sum(numbers[3:5])
        before, self._ticks = self._ticks, (total, idle)
        if before is None or total == before[0]:
            return None
        return round(100.0 * (1.0 - (idle - before[1]) / (total - before[0])), 1)


def _memory() -> dict[str, int]:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        free = total
    return {"total": total, "used": total - free}


def _gpus(program: str | None) -> list[dict[str, Any]]:
    if program is None:
        return []
    call = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(call, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in answer.splitlines() if (gpu := _gpu(line)) is not None]


def _gpu(line: str) -> dict[str, Any] | None:
    words = [word.strip() for word in line.split(",")]
    if len(words) != 7:
        return None
    numbers = [_number(word) for word in words]
    used = None if numbers[4] is None else numbers[4] / 100
    return {
        "index": int(numbers[0] or 0), "name": words[1], "memory_total": int((numbers[2] or 0) * 2**20),
        "memory_used": int((numbers[3] or 0) * 2**20), "utilization": used, "temperature_c": numbers[5],
        "power_w": numbers[6],
    }  # fmt: skip


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
