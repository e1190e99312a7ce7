"""Run the source of a `python` grader in a process of its own, with limits.

time         wall clock (killed from outside), CPU seconds; always
memory       address space of each process; always
writing      files up to a size; always. Only into a folder that is removed afterwards: with Landlock (Linux 5.13)
reading      Python, its packages and system libraries only: with Landlock
network      a network namespace without a device: where user namespaces are allowed
processes    those it starts end with it (a process namespace): as the network
environment  empty, so that no key is in it; always

It is a fence for mistakes and for the odd answer of a model, not for attackers: the kernel is shared, memory is
limited a process and not in all, and code that `grade` itself runs can forge the reward. Which walls stood is in
`Outcome.walls`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Limits", "Outcome", "run_python"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
MAX_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one call."""

    seconds: float = 10.0
    """Wall clock, start of the interpreter included; as many CPU seconds, rounded up."""
    memory_bytes: int = 2 << 30
    """Address space of each process."""
    file_bytes: int = 16 << 20
    """Largest file it may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call came to."""

    value: float | None
    error: str | None
    """What went wrong, in words; then there is no value."""
    walls: tuple[str, ...] = ()
    """Which of network, processes, files, tcp and signals were fenced off."""


def run_python(
    source: str, *, sample: Mapping[str, Any], item: Mapping[str, Any], limits: Limits | None = None
) -> Outcome:
    """Call `grade(sample, item)` of a source.

    Args:
        source: Python that defines `grade`.
        sample: The `sample` namespace.
        item: The `item` namespace.
        limits: Of time, memory and files.
    """
    bounds = limits or Limits()
    work = {
        "source": source, "sample": sample, "item": item, "memory_bytes": bounds.memory_bytes,
        "cpu_seconds": int(bounds.seconds) + 1, "file_bytes": bounds.file_bytes,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="luthier-grader-") as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(work, default=str).encode("ascii"))
        stdin.seek(0)
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_CHILD), str(writing)],
            stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(writing,), cwd=folder,
            env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        try:
            data, late = _read(reading, time.monotonic() + bounds.seconds)
        finally:
            os.close(reading)
            _kill(process)
    if late:
        return Outcome(value=None, error=f"it took longer than {bounds.seconds:g} s")
    return _outcome(data, process.returncode)


def _read(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """What comes until the other end is closed, and whether time ran out before that."""
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            break
        block = os.read(descriptor, 1 << 14)
        data += block
        if not block or len(data) > MAX_ANSWER:
            return data, False
    return data, True


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(data: bytes, status: int) -> Outcome:
    try:
        answer = json.loads(data)
        walls = tuple(answer["walls"])
    except (ValueError, KeyError, TypeError):
        return Outcome(
            value=None, error=f"its process ended without an answer (status {status}): out of memory or time?"
        )
    value = answer.get("value")
    if isinstance(value, float):
        return Outcome(value=value, error=None, walls=walls)
    return Outcome(value=None, error=str(answer.get("error")), walls=walls)
