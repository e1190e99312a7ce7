"""What a run took, measured: time of each step, time to the first one, memory; and beside it what the plan said.

Medians are over the steps of this session: one slow step (the first, a busy disk) does not move them.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.train.calibrate import Calibration

__all__ = ["Clock", "Measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one session of a run; None for what it had no step for."""

    peak_bytes: int
    """Highest of all processes. Of the allocator on CUDA, of the whole process elsewhere."""
    seconds_to_first_step: float | None
    """From the start of `fit` (model loaded, data prepared) to the end of its first step."""
    seconds_per_step: float | None
    """Median."""
    tokens_per_second: float | None
    trained_tokens_per_second: float | None
    """Medians over the steps, of all processes together."""
    steps: int
    calibration: Calibration | None
    mfu: float | None = None
    """Share of the device's peak rate, by the plan's formula; None without a plan or on a CPU."""
    peak_bytes_by_process: tuple[int, ...] | None = None
    """`peak_bytes` of each, by rank; None with one process."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(slots=True)
class Clock:
    """Times of the steps of this session."""

    started: float = field(default_factory=time.perf_counter)
    first_step: float | None = None
    steps: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds, tokens, trained tokens) of each."""

    def add(self, seconds: float, *, tokens: int, trained_tokens: int) -> None:
        """A step has ended just now."""
        if self.first_step is None:
            self.first_step = time.perf_counter() - self.started
        self.steps.append((max(seconds, 1e-9), tokens, trained_tokens))

    def measured(self, *, peak_bytes: int, calibration: Calibration | None) -> Measured:
        """The record of the session."""
        # Without the first one where there are others: it allocates and compiles.
        steps = self.steps[1:] or self.steps
        return Measured(
            peak_bytes=peak_bytes, seconds_to_first_step=self.first_step,
            seconds_per_step=_median([seconds for seconds, _, _ in steps]),
            tokens_per_second=_median([tokens / seconds for seconds, tokens, _ in steps]),
            trained_tokens_per_second=_median([trained / seconds for seconds, _, trained in steps]),
            steps=len(self.steps), calibration=calibration,
        )  # fmt: skip


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
