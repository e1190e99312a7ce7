"""What training came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.runs.folder import RunFolder
from luthier.train.measure import Measured
from luthier.train.order import Order
from luthier.train.progress import Progress
from luthier.train.split import MicroBatchSize

__all__ = ["TrainResult", "make_result"]


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
    """Both over the whole run; medians of this session's steps are in `measured`."""
    peak_bytes: int
    """Of this session and of the process with the highest peak."""
    measured: Measured
    """Time and memory of this session."""
    micro_batch: MicroBatchSize | None
    """What a micro-batch was in the end, where memory ran out with the recipe's."""
    processes: int
    wrapper: str
    """Class of what the loss ran through: an exit code does not say how the model was divided."""
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


def make_result(
    run: RunFolder, position: Progress, order: Order, measured: Measured, *,
    stopped: Literal["finished", "early_stopping"], weights_from: int, processes: int, wrapper: str,
    resumed_from: int | None,
) -> TrainResult:  # fmt: skip
    """The record of a finished run from where it ended."""
    seconds = max(position.seconds, 1e-9)
    assert position.first_loss is not None and position.last_loss is not None
    return TrainResult(
        steps=position.step, total_steps=order.total_steps, stopped=stopped,
        epochs=order.epochs_after(position.step), first_loss=position.first_loss,
        final_loss=position.last_loss, eval_loss=position.eval_loss,
        best_eval_loss=position.best.loss if position.best else None,
        best_step=position.best.step if position.best else None, weights_from_step=weights_from,
        tokens=position.tokens, trained_tokens=position.trained_tokens, seconds=position.seconds,
        tokens_per_second=position.tokens / seconds, trained_tokens_per_second=position.trained_tokens / seconds,
        peak_bytes=measured.peak_bytes, measured=measured, micro_batch=position.size, processes=processes,
        wrapper=wrapper, resumed_from=resumed_from, checkpoint=f"checkpoints/step-{position.step}", final="final",
        losses=tuple((line["step"], line["loss"]) for line in run.read_lines("metrics.jsonl") if "loss" in line),
    )  # fmt: skip
