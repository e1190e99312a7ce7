"""TRL's GRPOTrainer with our prompts, our rewards and our records. Overrides, no patches.

    _tokenize_prompts      ids from our template instead of rendering again
    _generate              as TRL's, timed
    _calculate_rewards     as TRL's, timed; a sample is kept
    training_step          as TRL's; a loss that is not finite ends the run
    _save_checkpoint       as TRL's, then sealed (`checkpoint.py`)
    _send_telemetry        nothing of a run leaves the machine
    create_model_card      none: a checkpoint is no publication

A row of TRL's data set holds only the name of a prompt (`t12`, `v3`); tables lead from it to the row. So no value of
the data goes through a column type, and a prompt is encoded once, by us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from luthier.data.prompt_rows import PromptRow
from luthier.model.quiet import quiet_libraries
from luthier.online.rewards.base import Completions, Reward
from luthier.runtime.errors import RunFailed

__all__ = ["OnlineTrainer", "Sample", "Times", "name_prompts", "reward_functions"]


@dataclass(slots=True)
class Times:
    """Seconds since the last reading."""

    generation: float = 0.0
    rewards: float = 0.0

    def take(self) -> Times:
        """Read, and start over."""
        taken = Times(self.generation, self.rewards)
        self.generation = self.rewards = 0.0
        return taken


@dataclass(frozen=True, slots=True)
class Sample:
    """One group: a prompt with all its completions."""

    row: PromptRow
    texts: Sequence[str]
    rewards: Sequence[Mapping[str, float | None]]
    """By label, of each completion."""


def name_prompts(rows: Sequence[PromptRow], letter: str) -> dict[str, PromptRow]:
    """Rows by the names that TRL's data set holds."""
    return {f"{letter}{index}": row for index, row in enumerate(rows)}


@dataclass(slots=True)
class _Function:
    """A reward as TRL calls it: names of prompts become rows, completions are texts."""

    reward: Reward
    rows: Mapping[str, PromptRow]
    __name__: str = field(init=False)

    def __post_init__(self) -> None:
        self.__name__ = self.reward.label

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **extra: Any
    ) -> list[float | None]:
        rows = [self.rows[name] for name in prompts]
        batch = Completions(
            prompts=[row.prompt for row in rows], texts=completions, ids=completion_ids,
            references=[row.reference for row in rows], columns=[row.columns for row in rows], extra=extra,
        )  # fmt: skip
        return self.reward.score(batch)


def reward_functions(rewards: Sequence[Reward], rows: Mapping[str, PromptRow]) -> list[Callable[..., Any]]:
    """What TRL is given, in the same order; each is logged under its label."""
    return [_Function(reward, rows) for reward in rewards]


class OnlineTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module text.

    Args:
        rows: prompts by name.
        seal: called with the folder of each checkpoint that TRL has written.
        arguments: of GRPOTrainer.
    """

    def __init__(self, *, rows: Mapping[str, PromptRow], seal: Callable[[Path], None], **arguments: Any) -> None:
        self.rows = rows
        self.seal = seal
        self.times = Times()
        self.sample: Sample | None = None
        """First group of the latest completions in training."""
        self.unscored = 0.0
        """Share of the latest completions about which no reward said anything."""
        super().__init__(**arguments)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.rows[name].ids) for name in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        started = time.perf_counter()
        try:
            return super()._generate(prompts)
        except RuntimeError as error:
            # What torch.multinomial says on a CPU; on CUDA it is an assertion of the device.
            if "probability tensor contains" not in str(error) and "device-side assert" not in str(error):
                raise
            step = self.state.global_step
            message = f"the model's probabilities are not finite after step {step}: its weights have blown up"
            hint = "lower `train.learning_rate`; checkpoints of earlier steps are there"
            raise RunFailed(code="T410", message=message, hint=hint) from error
        finally:
            self.times.generation += time.perf_counter() - started

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[str], completions: list[str], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        started = time.perf_counter()
        values: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.times.rewards += time.perf_counter() - started
        if self.model.training:
            self.unscored = float(torch.isnan(values).all(dim=1).float().mean())
            first = slice(0, self.num_generations)
            names = self.reward_func_names
            scored = [
                {name: None if value != value else value for name, value in zip(names, row, strict=True)}
                for row in values[first].tolist()
            ]
            self.sample = Sample(self.rows[prompts[0]], completions[first], scored)
        return values

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """One micro-batch, forward and backward.

        Raises:
            RunFailed: its loss is not finite.
        """
        loss: torch.Tensor = super().training_step(*arguments, **named)
        if not torch.isfinite(loss):
            step = self.state.global_step
            message = f"the loss of step {step + 1} is not finite; stopped before the update"
            hint = "lower `train.learning_rate`, or check the base weights"
            raise RunFailed(code="T410", message=message, hint=hint)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with quiet_libraries():
            super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        self.seal(folder)

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """None is written."""
