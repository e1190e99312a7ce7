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
    cosine_with_restarts   (1 + cos(pi (n x mod 1))) / 2, n = num_cycles
    cosine_with_min_lr     m + (1 - m) cosine, m = min_lr_rate; cosine_warmup_with_min_lr: one step earlier
    warmup_stable_decay    1, then over the last num_decay_steps from 1 to min_lr_ratio (arXiv:2404.06395)

The factor depends on s alone, so resuming sets the step and nothing else. Two schedules follow the validation loss
instead and have a state (`Schedule.state`): reduce_lr_on_plateau (torch) and greedy (arXiv:2512.14527).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.recipe.schedules import FEEDBACK
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    import torch

__all__ = ["Rising", "Schedule", "warmup_steps"]


def warmup_steps(section: TrainSection, total_steps: int) -> int:
    """`warmup_steps` if given (0 means 0), else the share `warmup_ratio` of the run, rounded up."""
    if section.warmup_steps is not None:
        return section.warmup_steps
    return math.ceil(section.warmup_ratio * total_steps - 1e-9)


class Schedule:
    """Sets the learning rate of every parameter group before each step.

    Each group has a peak rate of its own (its `lr` when this is made) and all have the same factors.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, name: str, warmup: int, total_steps: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`settings` is `train.lr_scheduler_kwargs`, checked against `recipe/schedules.py`.

        Raises:
            RecipeError: warm-up, stable part and decay of `warmup_stable_decay` are longer than the run.
        """
        from transformers import get_scheduler

        settings = dict(settings or {})
        if name == "warmup_stable_decay":
            _require_room(settings, warmup=warmup, total_steps=total_steps)
        self._optimizer = optimizer
        self._base = float(optimizer.defaults["lr"])
        self._feedback = name in FEEDBACK
        self._scheduler = get_scheduler(
            name, optimizer=optimizer, num_warmup_steps=warmup, num_training_steps=total_steps,
            scheduler_specific_kwargs=settings,
        )  # fmt: skip
        self._peaks = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._seen = False

    def rate(self, step: int) -> float:
        """What `train.learning_rate` is at step `step` (from 0); for a schedule that follows losses, at present."""
        return self._base * self._factor(step)

    def set(self, step: int) -> float:
        """Make the optimizer use the rates of step `step`; returns `rate(step)`."""
        if not self._feedback:
            factor = self._factor(step)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
        return self.rate(step)

    def observe(self, eval_loss: float) -> None:
        """Tell a schedule that follows the validation loss the newest one; others do not listen."""
        if self._feedback:
            self._scheduler.step(eval_loss)
            self._seen = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON: empty where the rate depends on the step alone."""
        if not self._seen:
            return {}
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        return {"rates": rates, "scheduler": _finite(self._scheduler.state_dict())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if not state:
            return
        self._seen = True
        self._scheduler.load_state_dict(_back(state["scheduler"]))
        for group, rate in zip(self._optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate

    def _factor(self, step: int) -> float:
        if self._feedback:
            return float(self._optimizer.param_groups[0]["lr"]) / self._peaks[0]
        return float(self._scheduler.lr_lambdas[0](step))


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


def _require_room(settings: Mapping[str, Any], *, warmup: int, total_steps: int) -> None:
    """transformers would make the stable part negative without a word."""
    needed = warmup + settings["num_decay_steps"] + settings.get("num_stable_steps", 0)
    if needed > total_steps:
        raise RecipeError(
            code="T476",
            message=f"warmup_stable_decay: {warmup} steps of warm-up and {needed - warmup} of flat rate and decay are "
            f"more than the {total_steps} steps of the run",
            hint="lower `train.lr_scheduler_kwargs.num_decay_steps`",
        )


def _finite(value: Any) -> Any:
    """JSON has no infinity: as text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _back(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_back(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
