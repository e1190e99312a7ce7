"""The range test: one walk with a rate that rises exponentially, until the loss diverges (arXiv:1506.01186).

It only says where to look. For fine-tuning its reading misleads by itself: the rate at which the loss falls
fastest within some steps may be a hundred times the one that serves best with a schedule.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from luthier.runtime.console import progress
from luthier.runtime.errors import RunFailed
from luthier.search.curve import Curve, Judge, Point

if TYPE_CHECKING:
    from luthier.train.probe import Probe

__all__ = ["NOT_FINITE", "range_test"]

NOT_FINITE = ("T410", "T412")
"""Codes of a step and of a validation whose loss is not finite."""


def range_test(probe: Probe, *, low: float, high: float, steps: int, seconds: float = math.inf) -> Curve:
    """Walk from the start with rates from `low` to `high` for at most `seconds`, then go back to the start.

    Raises:
        RunFailed: anything but divergence.
    """
    end = time.monotonic() + seconds
    curve, judge = Curve(low=low, high=high, steps=steps), Judge()
    with probe.from_start(), progress("range test", steps, "steps") as bar:
        try:
            for done in probe.rise(low, high, steps):
                curve.stopped = judge.add(done.loss)
                if curve.stopped:
                    curve.stopped_at = done.learning_rate
                    break
                curve.points.append(Point(done.learning_rate, done.loss, judge.smoothed))
                if time.monotonic() > end:
                    curve.stopped = "the time for it was over"
                    break
                bar.advance(say=f"lr {done.learning_rate:.1e}  loss {judge.smoothed:.4f}")
        except RunFailed as error:
            if error.problems[0].code not in NOT_FINITE:
                raise
            curve.stopped = error.problems[0].message
            curve.stopped_at = low * (high / low) ** (len(curve.points) / (steps - 1))
    return curve
