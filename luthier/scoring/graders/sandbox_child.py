"""The process of a `python` grader. Run as a script; imports nothing of Luthier.

stdin: {"source", "sample", "item", "memory_bytes", "cpu_seconds", "file_bytes"}; argv[1]: descriptor for the answer,
{"value": number} or {"error": text}, with the walls that stood under "walls".
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

_NEWNET, _NEWIPC, _NEWPID, _NEWUSER = 0x40000000, 0x08000000, 0x20000000, 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_FIRST_RIGHTS = (1 << 13) - 1
# On these the system calls have the numbers above; elsewhere Landlock is left out.
_MACHINES = ("x86_64", "aarch64", "riscv64")


def main() -> None:
    """Read the work, build the walls, run it, answer."""
    answer_to = int(sys.argv[1])
    work = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    walls = []
    linux = sys.platform == "linux"
    if linux and libc.unshare(_NEWUSER | _NEWNET | _NEWIPC | _NEWPID) == 0:
        # Process 1 of its own world: when it ends, so does all that it started.
        walls += ["network", "processes"]
        child = os.fork()
        if child:
            os.close(answer_to)
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if linux:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(work)
    walls += _landlock(libc)
    answer = {**_run(work), "walls": walls}
    with os.fdopen(answer_to, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(answer))


def _limit(work: dict[str, Any]) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, work["memory_bytes"]),
        (resource.RLIMIT_CPU, work["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, work["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _landlock(libc: Any) -> list[str]:
    """Read nothing but Python and its packages, write only into the working folder; names of what stands now."""
    if sys.platform != "linux" or os.uname().machine not in _MACHINES:
        return []
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return []
    rights = _FIRST_RIGHTS | ((1 << 13) if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    fields = [rights, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        return []
    read = _EXECUTE | _READ_FILE | _READ_DIR
    folders = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sys.path, "/usr", "/lib", "/lib64")}
    for path in sorted(path for path in folders if Path(path).is_dir()):
        _allow(libc, ruleset, path, read)
    _allow(libc, ruleset, str(Path.cwd()), rights & ~_EXECUTE)
    done = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)
    if done != 0:
        return []
    return ["files", *(["tcp"] if version >= 4 else []), *(["signals"] if version >= 6 else [])]


def _allow(libc: Any, ruleset: int, path: str, rights: int) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, handle), 0)
        os.close(handle)


def _run(work: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "grader"}
    try:
        exec(compile(work["source"], "<grader>", "exec"), names)
        value = names["grade"](work["sample"], work["item"])
    except MemoryError:
        return {"error": "MemoryError: it needs more memory than it may have"}
    except BaseException as error:  # noqa: BLE001  whatever the grader raises is its answer
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error} (line {last.lineno})"[:2_000]}
    if isinstance(value, (int, float)) and value == value and value not in (float("inf"), float("-inf")):
        return {"value": float(value)}
    return {"error": f"grade returned {value!r:.100}, not a finite number"}


main()
