"""Lines of a run folder as what OpenAI's clients read: events, checkpoints, measured numbers. Pure.

Only what the line holds is told. A number that the run did not measure is left out, never made up:

    train_loss, train_mean_token_accuracy     of the logged steps, over trained tokens; accuracy of SFT only
    valid_loss, full_valid_loss               the same number: validation always covers all held-out rows
    valid_mean_token_accuracy and its full_   likewise; SFT only
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Told", "of_event", "of_metrics"]

STAGES = {
    "data": "Reading the training data", "baseline": "Scoring the untouched model", "train": "Training",
    "evaluate": "Scoring the tuned model", "compare": "Comparing before and after", "merge": "Merging the adapter",
    "gguf": "Writing GGUF files", "push": "Pushing to the Hub", "report": "Writing the report",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event to be added, if none with its mark is there."""

    mark: str
    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Measured, by OpenAI's names."""
    step: int | None = None
    total_steps: int | None = None
    checkpoint: str | None = None
    """Folder that a server can load, relative to the run folder."""
    gone: bool = False
    """The checkpoint of the step was removed."""


def of_metrics(line: Mapping[str, Any], *, total_steps: int | None) -> Told | None:
    """A line of `metrics.jsonl`: of training or of validation."""
    step = line.get("step")
    if not isinstance(step, int):
        return None
    if "eval_loss" in line:
        loss, accuracy, kind = line["eval_loss"], line.get("eval_token_accuracy"), "valid"
        numbers = {"valid_loss": loss, "full_valid_loss": loss}
        if accuracy is not None:
            numbers |= {"valid_mean_token_accuracy": accuracy, "full_valid_mean_token_accuracy": accuracy}
    elif "loss" in line:
        loss, accuracy, kind = line["loss"], line.get("token_accuracy"), "train"
        numbers = {"train_loss": loss, **({"train_mean_token_accuracy": accuracy} if accuracy is not None else {})}
    else:
        return None
    of = f"/{total_steps}" if total_steps else ""
    word = "validation" if kind == "valid" else "training"
    extra = {key: value for key, value in line.items() if key in ("learning_rate", "grad_norm", "tokens_per_second")}
    extra |= {key: value for key, value in line.items() if key.removeprefix("eval_").startswith("rewards/")}
    total = {"total_steps": total_steps} if total_steps else {}
    return Told(
        mark=f"{kind}-{step}", message=f"Step {step}{of}: {word} loss={loss:.4f}", type="metrics", numbers=numbers,
        data={"step": step, **total, **numbers, **extra}, step=step,
    )  # fmt: skip


def of_event(line: Mapping[str, Any]) -> Told | None:
    """A line of `events.jsonl`; None for those that are no news to a client."""
    kind, step = line.get("event"), line.get("step")
    if kind == "stage_started":
        stage = str(line.get("stage"))
        return Told(mark=f"stage-{stage}", message=STAGES.get(stage, f"Stage {stage}"), data={"stage": stage})
    if kind == "training_started" and isinstance(line.get("total_steps"), int):
        total = line["total_steps"]
        at = step if isinstance(step, int) else 0
        message = f"Training goes on after step {at} of {total}" if at else f"Training begins: {total} steps"
        return Told(mark=f"training-{at}", message=message, data={"step": at, "total_steps": total}, total_steps=total)
    if not isinstance(step, int):
        return None
    if kind == "checkpoint_served":
        return Told(
            mark=f"checkpoint-{step}", message=f"Checkpoint created at step {step}", data={"step": step}, step=step,
            checkpoint=str(line.get("path")),
        )  # fmt: skip
    if kind == "checkpoint_unserved":
        return Told(
            mark=f"checkpoint-gone-{step}", message=f"Checkpoint of step {step} removed: newer ones took its place",
            data={"step": step}, step=step, gone=True,
        )  # fmt: skip
    if kind == "checkpoint_refused":
        problems = "; ".join(map(str, line.get("problems", [])))
        return Told(
            mark=f"refused-{step}", level="warn", data={"step": step},
            message=f"Checkpoint of step {step} is damaged and passed over: {problems}",
        )  # fmt: skip
    return None
