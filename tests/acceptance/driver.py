"""`luthier` with an accident built in: `python driver.py PLAN_JSON ARGUMENT...`.

The plan names the file operations to count and what to do at the n-th of them. Operations are the
audit events of Python (`open` for writing, `os.rename`, `os.remove`) and calls of `os.fsync`:

    {"after_metrics": 4, "under": "checkpoints", "at": 3, "do": "kill"}

counts operations on paths that contain `checkpoints` once four lines were begun in metrics.jsonl, and
kills the process (SIGKILL) instead of the third. `do` may be `kill` or `term` (SIGTERM, then the
operation goes on). Without `at` nothing happens, and `log` names a file for the list of operations.
Nothing of luthier is touched: it meets the accident as it would meet a power cut.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}


def install(plan: dict[str, Any]) -> None:
    """Count file operations from now on, and act at the planned one."""
    state = {"metrics": 0, "operations": 0}
    real_fsync = os.fsync

    def happened(operation: str, path: str) -> None:
        if operation == "open" and path.endswith("metrics.jsonl"):
            state["metrics"] += 1
        if plan["under"] not in path or state["metrics"] < plan.get("after_metrics", 0):
            return
        if state["metrics"] > plan.get("until_metrics", 1 << 30):
            return
        state["operations"] += 1
        if "log" in plan:
            handle = os.open(plan["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(handle, f"{state['operations']} {operation} {Path(path).name}\n".encode())
            os.close(handle)
        if state["operations"] == plan.get("at"):
            os.kill(os.getpid(), SIGNALS[plan["do"]])

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and os.fspath(arguments[0]) != plan.get("log"):
                happened("open", os.fspath(arguments[0]))
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            happened(event.removeprefix("os."), str(arguments[-3] if event == "os.rename" else arguments[0]))

    def fsync(handle: int) -> None:
        happened("fsync", str(Path(f"/proc/self/fd/{handle}").readlink()))
        real_fsync(handle)

    os.fsync = fsync
    sys.addaudithook(audit)


def main() -> None:
    """Entry point of a process of its own."""
    install(json.loads(sys.argv[1]))
    sys.argv = ["luthier", *sys.argv[2:]]
    from luthier.cli.main import main as luthier

    luthier()


if __name__ == "__main__":
    main()
