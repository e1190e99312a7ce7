"""What training came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["TrainResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Record of a finished `fit`."""

    steps: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps announced; more than `steps` only after early stopping."""
    stopped: Literal["finished", "early_stopping"]
    epochs: float
    first_loss: float
    final_loss: float
    """Training loss of the first and the last step."""
    eval_loss: float | None
    """Validation loss after the last step."""
    best_eval_loss: float | None
    best_step: int | None
    weights_from_step: int
    """Step whose weights are in `final`: the last, or the best with `load_best_model_at_end`."""
    tokens: int
    trained_tokens: int
    seconds: float
    """In optimizer steps, over all sessions of the run."""
    tokens_per_second: float
    trained_tokens_per_second: float
    peak_bytes: int
    """Of this session and of the process with the highest peak."""
    processes: int
    resumed_from: int | None
    """Step of the checkpoint this session went on from."""
    checkpoint: str | None
    """Newest checkpoint, relative to the run folder."""
    final: str
    """Folder of the trained weights, relative to the run folder."""
    losses: tuple[tuple[int, float], ...]
    """(step, loss) of every metric line."""

    def to_json(self) -> dict[str, Any]:
        """As plain values, without the list of losses (they are in `metrics.jsonl`)."""
        return {key: value for key, value in asdict(self).items() if key != "losses"}
