"""Where a run is: everything besides weights and optimizer that the next step depends on.

Saved in `state.json` and restored from it, so counters of early stopping, the best checkpoint
and half-filled metric windows survive a kill.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.train.split import MicroBatchSize

if TYPE_CHECKING:
    from luthier.train.step import Update

__all__ = ["Best", "Progress", "Window"]


@dataclass(frozen=True, slots=True)
class Best:
    """The lowest validation loss so far."""

    step: int
    loss: float


@dataclass(slots=True)
class Window:
    """Sums over the steps since the last metric line."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Of `counts.py`."""
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Progress:
    """Position and counters of a run. Mutable: the loop advances it."""

    step: int = 0
    """Finished optimizer steps."""
    tokens: int = 0
    """Tokens seen, over all processes; padding does not exist."""
    trained_tokens: int = 0
    """Supervised targets seen."""
    seconds: float = 0.0
    """Time in optimizer steps (no validation, no saving), over all sessions of the run."""
    first_loss: float | None = None
    last_loss: float | None = None
    """Loss per unit of weight of the first and the latest step."""
    eval_loss: float | None = None
    eval_step: int = 0
    """Latest validation loss, and after which step."""
    best: Best | None = None
    evaluations_since_best: int = 0
    window: Window = field(default_factory=Window)
    size: MicroBatchSize | None = None
    """Of a micro-batch, where memory ran out with the recipe's."""

    def to_json(self) -> dict[str, Any]:
        """As plain values; floats survive exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        best, size, window = value["best"], value.get("size"), dict(value["window"])
        if "correct" in window:  # of a checkpoint before there were other objectives
            window["sums"] = {"correct": float(window.pop("correct"))}
        parts = {
            "best": Best(**best) if best else None, "window": Window(**window),
            "size": MicroBatchSize(**size) if size else None,
        }  # fmt: skip
        return cls(**{**value, **parts})

    def add(self, done: Update, seconds: float) -> None:
        """Count a step that took so long."""
        self.tokens += done.tokens
        self.trained_tokens += done.trained_tokens
        self.seconds += seconds
        self.first_loss = done.loss if self.first_loss is None else self.first_loss
        self.last_loss = done.loss
        window = self.window
        window.loss_sum += done.loss_sum
        window.weight_sum += done.weight_sum
        for name, value in done.sums.items():
            window.sums[name] = window.sums.get(name, 0.0) + value
        window.tokens += done.tokens
        window.trained_tokens += done.trained_tokens
        window.seconds += seconds

    def judge(self, loss: float, *, threshold: float) -> bool:
        """Take a validation loss of the present step; returns whether it is a new best.

        `threshold` is how much lower than the best so far it must be.
        """
        self.eval_loss, self.eval_step = loss, self.step
        better = self.best is None or loss < self.best.loss - threshold
        if better:
            self.best, self.evaluations_since_best = Best(self.step, loss), 0
        else:
            self.evaluations_since_best += 1
        return better
