"""What online RL came to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.online.arguments import Schedule
from luthier.online.record import Recorder
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json

__all__ = ["OnlineResult", "make_result", "write_measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineResult:
    """Record of a finished `fit_online`."""

    steps: int
    total_steps: int
    stopped: str
    """`finished`."""
    epochs: float
    """Passes over the prompts."""
    first_reward: float | None
    final_reward: float | None
    """Mean reward of the first and of the last tenth of the logged steps (at least one line)."""
    eval_reward: float | None
    """Mean reward of held-out prompts after the last step, one sampled completion each."""
    final_loss: float | None
    """Of the last logged step; no measure of progress (`record.py`)."""
    completions: int
    """Sampled for training, over all sessions."""
    tokens: int
    """Of prompts and completions, over all sessions."""
    tokens_per_second: float
    seconds: float
    """In optimizer steps, sampling included, over all sessions."""
    generation_share: float
    reward_share: float
    """Of the seconds of this session's steps."""
    peak_bytes: int
    """Of the process that had most in use."""
    resumed_from: int | None
    judge: dict[str, Any] | None
    """Requests, tokens and cost of this session's judge."""
    final: str
    rewards: dict[str, float | None]
    """Mean of each reward in the last tenth of the logged steps."""
    processes: int
    wrapper: str
    """Class that the trained model was called through."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def make_result(
    run: RunFolder, recorder: Recorder, schedule: Schedule, *, num_generations: int, peak_bytes: int,
    resumed_from: int | None, wrapper: str,
) -> OnlineResult:  # fmt: skip
    """From the metrics on disk and the times of this session."""
    logged = [line for line in run.read_lines("metrics.jsonl") if "tokens" in line]
    lines = [line for line in logged if "reward" in line]
    checks = [line["eval_reward"] for line in run.read_lines("metrics.jsonl") if "eval_reward" in line]
    count = max(1, len(lines) // 10)
    last = lines[-count:]
    labels = [name for name in (lines[-1] if lines else {}) if name.startswith("reward/")]
    tokens = logged[-1]["tokens"] if logged else 0
    spent = sum(seconds for seconds, _ in recorder.steps)
    return OnlineResult(
        steps=schedule.steps, total_steps=schedule.steps, stopped="finished",
        epochs=schedule.epochs_after(schedule.steps),
        first_reward=_mean([line["reward"] for line in lines[:count]]),
        final_reward=_mean([line["reward"] for line in last]),
        eval_reward=checks[-1] if checks else None, final_loss=logged[-1].get("loss") if logged else None,
        completions=schedule.batches * schedule.prompts_per_batch * num_generations, tokens=tokens,
        tokens_per_second=tokens / max(recorder.seconds, 1e-9), seconds=recorder.seconds,
        generation_share=sum(times.generation for _, times in recorder.steps) / max(spent, 1e-9),
        reward_share=sum(times.rewards for _, times in recorder.steps) / max(spent, 1e-9),
        peak_bytes=peak_bytes, resumed_from=resumed_from,
        judge=recorder.judge.usage().to_json() if recorder.judge is not None else None, final="final",
        rewards={name.removeprefix("reward/"): _mean([line.get(name) for line in last]) for name in labels},
        processes=schedule.processes, wrapper=wrapper,
    )  # fmt: skip


def write_measured(run: RunFolder, recorder: Recorder, *, peak_bytes: int) -> None:
    """`measured.json`: means over this session's steps, the first one left out where there are others.

    Means, not medians: with `num_iterations` above 1 only some steps sample.
    """
    steps = recorder.steps[1:] or recorder.steps
    write_json(
        run.path / "measured.json",
        {
            "peak_bytes": peak_bytes,
            "seconds_per_step": _mean([seconds for seconds, _ in steps]),
            "generation_seconds_per_step": _mean([times.generation for _, times in steps]),
            "reward_seconds_per_step": _mean([times.rewards for _, times in steps]),
            "tokens_per_second": recorder.tokens / max(recorder.seconds, 1e-9),
            "steps": len(recorder.steps),
            "predicted": None,
        },
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
