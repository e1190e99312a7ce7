"""What happens in TRL's trainer, in our words: metrics.jsonl, samples.jsonl, events, the bar, the stop.

| ours                       | TRL's                               |
|----------------------------|-------------------------------------|
| `reward`, `reward_std`     | the same: the weighted sum          |
| `reward/LABEL`             | `rewards/LABEL/mean`                |
| `completion_tokens`        | `completions/mean_length`           |
| `clipped_completions`      | `completions/clipped_ratio`         |
| `equal_groups`             | `frac_reward_zero_std`              |
| `clip_ratio`               | `clip_ratio/region_mean`            |
| `kl`, `entropy`, `loss`, `grad_norm`, `learning_rate` | the same |

`loss` is the clipped surrogate of the policy: near 0 by construction on the completions of the present model, and no
measure of progress. Progress is `reward`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from luthier.endpoint.client import Endpoint
from luthier.online.arguments import Schedule
from luthier.online.trainer import OnlineTrainer, Times
from luthier.runs.folder import RunFolder
from luthier.runtime.console import Bar, note, progress
from luthier.runtime.errors import RunFailed
from luthier.runtime.signals import Stop

__all__ = ["Recorder"]

_NAMES = {
    "loss": "loss", "reward": "reward", "reward_std": "reward_std", "kl": "kl", "entropy": "entropy",
    "completions/mean_length": "completion_tokens", "completions/clipped_ratio": "clipped_completions",
    "frac_reward_zero_std": "equal_groups", "clip_ratio/region_mean": "clip_ratio", "cispo_clip_ratio": "clip_ratio",
    "grad_norm": "grad_norm", "learning_rate": "learning_rate",
}  # fmt: skip
_STALE_STEPS = 20


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Watches a trainer; `attach` it before training.

    Args:
        run: folder that is written to.
        schedule: of the run.
        stop: raised by a signal, in any process; the run then saves and stops, in all, at the next step where a resumed
            run can go on exactly.
        logging_steps: as in the recipe.
        seconds: spent by earlier sessions of the run.
        judge: whose cost is recorded.
        writes: this process writes the run's files; the others count and stop with it.
    """

    def __init__(
        self, *, run: RunFolder, schedule: Schedule, stop: Stop, logging_steps: int, seconds: float,
        judge: Endpoint | None, writes: bool = True,
    ) -> None:  # fmt: skip
        self.run, self.schedule, self.stop, self.judge, self.writes = run, schedule, stop, judge, writes
        self.logging_steps = logging_steps
        self.seconds = seconds
        self.tokens = 0
        self.stopped_at: int | None = None
        self.evaluated_at: int | None = None
        self.steps: list[tuple[float, Times]] = []
        """(seconds, of which) of each step of this session."""
        self.bar: Bar | None = None
        self._trainer: OnlineTrainer | None = None
        self._began = 0.0
        self._window = (0.0, 0)
        self._stale = 0
        self._say = ""
        self._checking: tuple[ExitStack, Bar] | None = None

    def attach(self, trainer: OnlineTrainer, bar: Bar) -> None:
        """The trainer that calls back, and where progress is shown."""
        self._trainer, self.bar = trainer, bar

    # -- called by transformers

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Counts go on from the checkpoint's."""
        self._window = (self.seconds, state.num_input_tokens_seen)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The clock of a step."""
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Gradients are looked at before they move a weight.

        Raises:
            RunFailed: one is not finite.
        """
        gradients = [p.grad for p in named["model"].parameters() if p.grad is not None]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]) if gradients else None
        if norms is not None and not bool(torch.isfinite(norms).all()):
            message = f"a gradient of step {state.global_step + 1} is not finite; stopped before the update"
            raise RunFailed(code="T410", message=message, hint="lower `train.learning_rate`, or raise `beta`")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Count, keep a sample, decide whether to stop."""
        seconds = time.perf_counter() - self._began
        self.seconds += seconds
        trainer = self._trainer
        assert trainer is not None
        self.steps.append((seconds, trainer.times.take()))
        step, total = state.global_step, self.schedule.steps
        if len(self.steps) == 1:
            self._first(seconds, total - step)
        if step == total:
            control.should_save = control.should_log = True
        elif step % self.schedule.num_iterations == 0 and trainer.anywhere(self.stop.requested):
            control.should_save = control.should_log = control.should_training_stop = True
            self.stopped_at = step
        if step % self.logging_steps == 0 or control.should_log:
            self._keep_samples(step)
        if self.bar is not None:
            self.bar.advance(say=self._say)
        return control

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One line of metrics."""
        logs = logs or {}
        if "loss" in logs:
            self._train_line(logs, state)
        elif "eval_reward" in logs:
            self._eval_line(state.global_step)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is there."""
        if self.writes:
            self.run.event("checkpoint_saved", step=state.global_step)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **_: Any
    ) -> None:
        """Some held-out prompts were answered."""
        if self._checking is None:
            stack = ExitStack()
            self._checking = stack, stack.enter_context(progress("held-out prompts", len(eval_dataloader), "batches"))
        self._checking[1].advance()

    # -- lines

    def _metric(self, line: Mapping[str, Any]) -> None:
        if self.writes:
            self.run.metric(**line)

    def _train_line(self, logs: Mapping[str, Any], state: TrainerState) -> None:
        step = state.global_step
        seconds, tokens = self._window
        self.tokens = state.num_input_tokens_seen
        self._window = (self.seconds, self.tokens)
        recent = [times for _, times in self.steps[-self.logging_steps :]]
        line: dict[str, Any] = {"step": step, "epoch": self.schedule.epochs_after(step)}
        line |= {ours: _finite(logs[name]) for name, ours in _NAMES.items() if name in logs}
        line |= _by_label(logs, "rewards/", "reward/")
        line |= {
            "tokens": self.tokens, "seconds": self.seconds,
            "tokens_per_second": (self.tokens - tokens) / max(self.seconds - seconds, 1e-9),
            "generation_seconds": sum(times.generation for times in recent),
            "reward_seconds": sum(times.rewards for times in recent),
        }  # fmt: skip
        trainer = self._trainer
        if trainer is not None and trainer.unscored:
            line["unscored_completions"] = trainer.unscored
        if self.judge is not None:
            line["judge_cost_usd"] = self.judge.usage().cost_usd
        self._metric(line)
        self._warn_if_stale(line, step)
        if "reward" in line:
            self._say = f"reward {_shown(line.get('reward'))}  {_shown(line.get('completion_tokens'))} tokens an answer"

    def _eval_line(self, step: int) -> None:
        trainer = self._trainer
        assert trainer is not None
        line: dict[str, Any] = {"step": step, **trainer.held_out.take()}
        trainer.times.take()  # not of a training step
        if self._checking is not None:
            self._checking[0].close()
            self._checking = None
        self.evaluated_at = step
        self._metric(line)
        note(f"  step {step}: reward of held-out prompts {_shown(line.get('eval_reward'))}")

    def _keep_samples(self, step: int) -> None:
        trainer = self._trainer
        if trainer is None:
            return
        samples, trainer.samples = trainer.samples, []  # none: a further iteration on the same completions
        for sample in samples if self.writes else ():
            self.run.append(
                "samples.jsonl", step=step, row=str(sample.row.ref), prompt=_plain(sample.row.prompt),
                reference=sample.row.reference,
                completions=[
                    {"text": text, "rewards": dict(rewards)}
                    for text, rewards in zip(sample.texts, sample.rewards, strict=True)
                ],
            )  # fmt: skip

    def _first(self, seconds: float, left: int) -> None:
        """What no plan could know: how long a step takes."""
        times = self.steps[0][1]
        share = f"{times.generation:.1f} s sampling, {times.rewards:.1f} s rewards"
        minutes = seconds * left / 60
        note(f"  first step: {seconds:.1f} s ({share}); {left:,} more at this pace: {minutes:.0f} min")

    def _warn_if_stale(self, line: Mapping[str, Any], step: int) -> None:
        """Groups whose rewards are all equal teach nothing; told once when it lasts."""
        self._stale = self._stale + 1 if line.get("equal_groups") == 1.0 else 0
        if self._stale == _STALE_STEPS:
            note(
                f"warning: in the last {_STALE_STEPS} logged steps every group had equal rewards, so nothing is "
                f"learned (step {step}); see samples.jsonl",
                style="yellow",
            )


def _by_label(logs: Mapping[str, Any], prefix: str, ours: str) -> dict[str, Any]:
    labels = [name.removeprefix(prefix).removesuffix("/mean") for name in logs if name.startswith(prefix)]
    return {
        f"{ours}{label}": _finite(logs[f"{prefix}{label}/mean"]) for label in labels if f"{prefix}{label}/mean" in logs
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
