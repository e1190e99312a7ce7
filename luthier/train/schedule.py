"""Learning rate of every step, by the names and formulas of transformers.

The rate of step s (from 0) is `base x factor(s)`. With W warm-up steps and T steps in all,
for s >= W and x = (s - W) / max(1, T - W) (transformers/optimization.py):

    warm-up (s < W)        s / W                     the first step of a warm-up has rate 0
    constant               1                         no warm-up at all
    constant_with_warmup   1
    linear                 1 - x
    cosine                 (1 + cos(pi x)) / 2
    polynomial             ((base - end) (1 - x) + end) / base, end = 1e-7
    inverse_sqrt           1 / sqrt((s + k - W) / k),  k = W or 10,000

The factor depends on s alone, so resuming sets the step and nothing else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from luthier.recipe.schema import TrainSection

if TYPE_CHECKING:
    import torch

__all__ = ["Rising", "Schedule", "warmup_steps"]


def warmup_steps(section: TrainSection, total_steps: int) -> int:
    """`warmup_steps` if given (0 means 0), else the share `warmup_ratio` of the run, rounded up."""
    if section.warmup_steps is not None:
        return section.warmup_steps
    return math.ceil(section.warmup_ratio * total_steps - 1e-9)


class Schedule:
    """Sets the learning rate of every parameter group before each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, name: str, warmup: int, total_steps: int) -> None:
        from transformers import get_scheduler

        self._optimizer = optimizer
        self._scheduler = get_scheduler(
            name, optimizer=optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
        )

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        base, factor = self._scheduler.base_lrs[0], self._scheduler.lr_lambdas[0]
        return float(base * factor(step))

    def set(self, step: int) -> float:
        """Make the optimizer use the rate of step `step`; returns it."""
        rate = self.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate


class Rising(Schedule):
    """The rates of a range test: factor(s) = rise^(s / (steps - 1)), from the optimizer's rates to `rise` times them.

    Groups keep the ratios of their rates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, rise: float, steps: int) -> None:
        if not rise > 1.0 or steps < 2:
            raise ValueError(f"a rise by {rise} in {steps} steps: need more than 1, and two steps")
        self._optimizer = optimizer
        self._low = float(optimizer.defaults["lr"])
        self._lows = [float(group["lr"]) for group in optimizer.param_groups]
        self._rise, self._steps = rise, steps

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        return self._low * self._factor(step)

    def set(self, step: int) -> float:
        """Make the optimizer use the rates of step `step`; returns `rate(step)`."""
        for group, low in zip(self._optimizer.param_groups, self._lows, strict=True):
            group["lr"] = low * self._factor(step)
        return self.rate(step)

    def _factor(self, step: int) -> float:
        return float(self._rise ** (step / (self._steps - 1)))
