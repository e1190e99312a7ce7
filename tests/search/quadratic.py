"""A problem whose best rate is known: gradient descent on h w^2 / 2.

One step multiplies w by (1 - rate x h), so a constant rate of 1/h is best and one above 2/h diverges. It has the
face of a `Probe`, and real schedules and a real optimizer behind it.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from luthier.train.schedule import Rising, Schedule


class Quadratic:
    """`curvature` is h; `restores` False plants the bug of a start that is not restored."""

    def __init__(self, curvature: float, *, restores: bool = True) -> None:
        self.curvature, self.restores = curvature, restores
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss(self) -> torch.Tensor:
        return self.curvature * self.weight**2 / 2

    @contextmanager
    def from_start(self):
        try:
            yield
        finally:
            if self.restores:
                with torch.no_grad():
                    self.weight.fill_(1.0)

    def walk(self, learning_rate: float, steps: int):
        optimizer = torch.optim.SGD([self.weight], lr=learning_rate)
        return self._steps(optimizer, Schedule(optimizer, name="constant", warmup=0, total_steps=steps), steps)

    def rise(self, low: float, high: float, steps: int):
        optimizer = torch.optim.SGD([self.weight], lr=low)
        return self._steps(optimizer, Rising(optimizer, rise=high / low, steps=steps), steps)

    def _steps(self, optimizer, schedule: Schedule, steps: int):
        for step in range(steps):
            rate = schedule.set(step)
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            yield SimpleNamespace(loss=loss.item(), learning_rate=rate, tokens=1)

    def held_out(self, *, step: int) -> float:
        return self.loss().item()
