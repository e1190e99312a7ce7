"""Run a cluster's program: an argument list, a time limit, one clear error."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["call"]

SECONDS = 60


def call(arguments: Sequence[str], *, text: str | None = None, may_fail: bool = False) -> str | None:
    """Standard output of a program; None if it failed and may.

    Args:
        arguments: Program and arguments.
        text: For its standard input.
        may_fail: An exit code other than 0 is an answer.

    Raises:
        EnvironmentProblem: the program is missing, takes longer than a minute, or fails.
    """
    program = arguments[0]
    try:
        done = subprocess.run(
            list(arguments), input=text, capture_output=True, text=True, check=False, timeout=SECONDS,
            stdin=None if text is not None else subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            code="L160", message=f"`{program}` is not installed here",
            hint="run the server where the cluster's programs are, or set `launch.kind: local`",
        ) from error  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            code="L161", message=f"`{program}` gave no answer within {SECONDS} s", hint="is the cluster's control up?"
        ) from error
    if done.returncode == 0:
        return done.stdout
    if may_fail:
        return None
    said = " ".join(done.stderr.split())[:500] or f"exit code {done.returncode}"
    raise EnvironmentProblem(
        code="L162", message=f"`{program} {' '.join(arguments[1:2])}` failed: {said}", hint="see its message"
    )
