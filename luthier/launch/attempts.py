"""Start the processes of this machine, agree with the other machines on how that ended, and start again if asked to.

Every launcher says how its own processes ended; machine 0 finds the cause among all, and tells it to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from luthier.launch.control import Control
from luthier.runtime.console import note
from luthier.runtime.errors import ERRORS_BY_EXIT_CODE, LuthierError, MachineLost, Problem, RunFailed
from luthier.runtime.failure import FOLLOW_UPS

__all__ = ["Ended", "run_attempts"]

AGREE_SECONDS = 60.0
"""Longer than a torch agent takes to end its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the processes of one machine ended."""

    machine: int = 0
    error: LuthierError | None = None
    signal: str | None = None
    """That its launcher got."""
    made_to_end: bool = False
    """Its launcher ended them, because of another machine."""

    @property
    def follows(self) -> bool:
        """Its processes failed because others did."""
        codes = [] if self.error is None else [one.code for one in self.error.problems]
        return self.made_to_end or (bool(codes) and all(code in FOLLOW_UPS for code in codes))

    def to_json(self) -> dict[str, Any]:
        """For the other machines."""
        problems = [] if self.error is None else [one.to_dict() for one in self.error.problems]
        code = 0 if self.error is None else self.error.exit_code
        return {"machine": self.machine, "problems": problems, "exit_code": code, "signal": self.signal,
                "made_to_end": self.made_to_end}  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ended:
        """What `to_json` gave."""
        problems = [Problem(**one) for one in value["problems"]]
        error = ERRORS_BY_EXIT_CODE.get(value["exit_code"], RunFailed)(problems=problems) if problems else None
        return cls(machine=value["machine"], error=error, signal=value["signal"], made_to_end=value["made_to_end"])


def run_attempts(
    start: Callable[[int], Ended], *, max_restarts: int, control: Control | None = None, say: bool = True
) -> None:
    """Start the processes until they end well, or may not be started again.

    Args:
        start: Runs the processes of an attempt, numbered from 0.
        max_restarts: Attempts after the first.
        control: The other machines, if there are any.
        say: Tell of a restart.

    Raises:
        LuthierError: what ended the last attempt, on whichever machine.
    """
    for attempt in range(max_restarts + 1):
        with control.attempt(attempt) if control is not None else nullcontext():
            mine = start(attempt)
        left = max_restarts - attempt
        error, again = _agree(mine, attempt, left, control) if control else (mine.error, _may_restart(mine.error, left))
        if error is None:
            return
        if not again:
            raise error
        if say:
            note(f"restart {attempt + 1} of {max_restarts}, from the newest checkpoint: {error}", style="yellow")


def _may_restart(error: LuthierError | None, left: int) -> bool:
    """A failure that need not come again: no wrong recipe, no wrong rows, no stop, and no machine is lost."""
    return error is not None and left > 0 and error.exit_code == 1


def _agree(mine: Ended, attempt: int, left: int, control: Control) -> tuple[LuthierError | None, bool]:
    key, rank = f"verdict/{attempt}", control.nodes.rank
    mine = replace(mine, made_to_end=control.made_to_end)
    if mine.error is not None and 0 not in control.lost:
        with suppress(RuntimeError):
            control.set(f"failing/{attempt}", True)
    if rank == 0:
        ended = _collect(mine, attempt, control)
        error = find_cause(ended, control)
        again = _may_restart(error, left)
        verdict = Ended(error=error).to_json()
        control.set(key, {**verdict, "again": again})
        return error, again
    try:
        if 0 in control.lost:  # a call over a cut network may never come back
            raise control.lost_error(0)
        control.set(f"ended/{attempt}/{rank}", replace(mine, machine=rank).to_json())
        verdict = control.wait(key, 0, "how the run ended there")
    except (MachineLost, RuntimeError):
        control.lost.setdefault(0, "its store is gone")
        return find_cause([replace(mine, machine=rank)], control), False
    return Ended.from_json(verdict).error, bool(verdict["again"])


def _collect(mine: Ended, attempt: int, control: Control) -> list[Ended]:
    """What all machines say that are not lost; a machine whose processes failed does not wait for long."""
    found = [replace(mine, machine=0)]
    until = time.monotonic() + AGREE_SECONDS if mine.error is not None else float("inf")
    for rank in control.others:
        try:
            said = control.wait(
                f"ended/{attempt}/{rank}", rank, "its processes end", until=lambda: time.monotonic() > until
            )
        except MachineLost:
            continue
        if said is not None:
            found.append(Ended.from_json(said))
    return found


def find_cause(ended: Sequence[Ended], control: Control) -> LuthierError | None:
    """What ended the run: a lost machine, an error of its own, a machine that was told to stop, what followed."""
    failed = [one for one in ended if one.error is not None]
    stopped = [one for one in failed if one.error is not None and one.error.exit_code == 130]
    own = [one for one in failed if not one.follows and one not in stopped]
    if control.lost and (failed or len(ended) < control.nodes.count):
        saved = next((one.error.problems[0].message for one in stopped if one.error is not None), "")
        return control.lost_error(min(control.lost), f"; {saved}" if saved else "")
    for one in [*own, *sorted(stopped, key=lambda one: one.signal is None), *failed]:
        assert one.error is not None
        first, *rest = one.error.problems
        how = f" got {one.signal}" if one.signal else ""
        named = replace(first, message=f"{control.name(one.machine)}{how}: {first.message}")
        return type(one.error)(problems=[named, *rest])
    return None
