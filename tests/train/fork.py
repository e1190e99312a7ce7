"""Run a function in a forked child: it may limit, signal or kill itself without harm to the tests.

The child has torch loaded already, so a test can afford dozens of them.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.runtime.errors import LuthierError


@dataclass
class Ended:
    """How a child ended."""

    signal: int
    """That killed it, or 0."""
    exit_code: int
    value: Any = None
    error: LuthierError | None = None
    crash: str = ""


def forked(child: Callable[[], Any]) -> Ended:
    """Run `child` in a forked process, wait, and say how it ended; only test data crosses the pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        value, error, crash = None, None, ""
        try:
            value = child()
        except LuthierError as problem:
            error = (type(problem), tuple(problem.problems))
        except BaseException:  # noqa: BLE001 - told to the parent
            crash = traceback.format_exc()
        with os.fdopen(write, "wb") as stream:
            stream.write(pickle.dumps((value, error, crash)))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    if not content:
        return Ended(killed, code)
    value, error, crash = pickle.loads(content)
    assert not crash, crash
    return Ended(killed, code, value, error[0](problems=error[1]) if error else None)
