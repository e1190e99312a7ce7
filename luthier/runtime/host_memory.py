"""Memory of this host that is free for us."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["free_memory_bytes"]


def free_memory_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping: `MemAvailable` of Linux, less where the container has a smaller limit.

    Elsewhere half of the memory that is built in. Pages of files, which a container is charged for, are free: after a
    checkpoint was written they may be most of it.
    """
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    except OSError:
        found = None
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit, used = ((group / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        files = re.findall(r"^(?:in)?active_file (\d+)$", (group / "memory.stat").read_text("ascii"), re.MULTILINE)
    except OSError:
        return free
    return max(0, min(free, int(limit) - int(used) + sum(map(int, files)))) if limit.isdigit() else free
