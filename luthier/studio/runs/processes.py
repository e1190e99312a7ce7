"""Which process owns a run folder. Nothing is locked to find out: a run that starts meanwhile must not be refused."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Locks", "alive", "born", "held_locks", "holder"]

Locks = frozenset[tuple[int, int]] | None
"""(process, inode) of every file lock on this machine; None where the system does not tell."""


def held_locks() -> Locks:
    """All `flock`s, from /proc/locks (Linux)."""
    try:
        text = Path("/proc/locks").read_text("ascii", errors="replace")
    except OSError:
        return None
    found = set()
    for line in text.splitlines():
        # 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234567 0 EOF
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[4].lstrip("-").isdigit():
            inode = words[5].rpartition(":")[2]
            found.add((int(words[4]), int(inode) if inode.isdigit() else -1))
    return frozenset(found)


def holder(folder: Path, locks: Locks) -> int | None:
    """The process that holds a run folder (`RunFolder.lock`); None if none does."""
    file = folder / ".lock"
    try:
        text = file.read_bytes()[:32].decode("ascii", "replace").strip()
        inode = file.stat().st_ino
    except OSError:
        return None
    if not text.isdigit():
        return None
    pid = int(text)
    if locks is None:
        return pid if alive(pid) else None
    return pid if (pid, inode) in locks else None


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def born(pid: int) -> str:
    """When a process started, as the system counts it; empty if it is gone or the system does not tell."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else "?"


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name (which may hold anything): state is 0, start time is 19."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
