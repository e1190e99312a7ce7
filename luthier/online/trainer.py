"""TRL's GRPOTrainer with our prompts, our rewards and our records. Overrides, no patches.

    _tokenize_prompts      ids from our template instead of rendering again
    _generate              as TRL's, timed
    _calculate_rewards     as TRL's, timed; held-out answers are kept
    _generate_and_score_completions   as TRL's; samples are kept
    training_step          as TRL's; a loss that is not finite ends the run
    _save_checkpoint       as TRL's, then sealed (`checkpoint.py`) when every process has written its part
    _load_rng_state        as TRL's; fresh generators where another number of processes goes on
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
from accelerate.utils import gather_object
from transformers import set_seed
from trl import GRPOTrainer

from luthier.data.prompt_rows import PromptRow
from luthier.model.quiet import quiet_libraries
from luthier.online.held_out import Answered, HeldOut, is_filling
from luthier.online.rewards.base import Completions, Reward
from luthier.online.rewards.shared import AskedByMain
from luthier.runtime.errors import RunFailed
from luthier.runtime.heartbeat import mark

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
        asked = [index for index, name in enumerate(prompts) if not is_filling(name)]
        if not asked and not isinstance(self.reward, AskedByMain):
            return [0.0] * len(prompts)
        rows = [self.rows[prompts[index]] for index in asked]
        batch = Completions(
            prompts=[row.prompt for row in rows], texts=[completions[index] for index in asked],
            ids=[completion_ids[index] for index in asked], references=[row.reference for row in rows],
            columns=[row.columns for row in rows], extra=extra,
        )  # fmt: skip
        mark(f"reward {self.reward.label}", watched=not isinstance(self.reward, AskedByMain))
        scored = dict(zip(asked, self.reward.score(batch), strict=True))
        mark("gather rewards", exchange=True)
        return [scored.get(index, 0.0) for index in range(len(prompts))]


def reward_functions(rewards: Sequence[Reward], rows: Mapping[str, PromptRow]) -> list[Callable[..., Any]]:
    """What TRL is given, in the same order; each is logged under its label."""
    return [_Function(reward, rows) for reward in rewards]


class OnlineTrainer(GRPOTrainer):  # type: ignore[misc]
    """See the module text.

    Args:
        rows: prompts by name.
        seal: called in process 0 with the folder of each checkpoint that all have written.
        reseed: of this process' generators where a checkpoint of another number of processes is gone on from.
        arguments: of GRPOTrainer.
    """

    def __init__(
        self, *, rows: Mapping[str, PromptRow], seal: Callable[[Path], None], reseed: int | None = None,
        **arguments: Any,
    ) -> None:  # fmt: skip
        self.rows = rows
        self.seal = seal
        self.reseed = reseed
        self.times = Times()
        self.samples: list[Sample] = []
        """First group of each process' part of the latest completions in training."""
        self.unscored = 0.0
        """Share of the latest completions about which no reward said anything."""
        super().__init__(**arguments)
        self.held_out = HeldOut(self.reward_func_names, self.reward_weights.tolist())

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.rows[name].ids) for name in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        started = time.perf_counter()
        mark("sample completions", step=self.state.global_step)
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
        else:
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            mine = [
                (name, len(ids), ids[-1] not in ends) for name, ids in zip(prompts, completion_ids_list, strict=True)
            ]
            self.held_out.add([
                Answered(name=name, rewards=tuple(row), tokens=tokens, clipped=clipped)
                for (name, tokens, clipped), row in zip(gather_object(mine), values.tolist(), strict=True)
            ])  # fmt: skip
        return values

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        found = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.samples = self._first_groups()
            mark("update", step=self.state.global_step)
        return found

    def _first_groups(self) -> list[Sample]:
        """Of what TRL keeps of all processes' completions, in their order."""
        size, logs = self.num_generations, self._logs
        groups, parts = len(logs["prompt"]) // size, self.accelerator.num_processes
        firsts = sorted({part * groups // parts for part in range(parts)})
        return [self._sample(slice(group * size, (group + 1) * size)) for group in firsts]

    def _sample(self, place: slice) -> Sample:
        logs = self._logs
        texts = list(logs["completion"])[place]
        scores = {name: list(logs["rewards"][name])[place] for name in self.reward_func_names}
        rewards = [
            {name: None if values[index] != values[index] else values[index] for name, values in scores.items()}
            for index in range(len(texts))
        ]
        return Sample(self.rows[list(logs["prompt"])[place.start]], texts, rewards)

    def anywhere(self, flag: bool) -> bool:
        """Whether it is so in some process. Called by all."""
        if self.accelerator.num_processes == 1:
            return flag
        mark("agree on going on", exchange=True)
        return bool(self.accelerator.gather(torch.tensor([int(flag)], device=self.accelerator.device)).any())

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
        step = self.state.global_step - 1
        mark("write a checkpoint", step=step, watched=False)
        with quiet_libraries():
            super()._save_checkpoint(model, trial)
        mark("meet at the checkpoint", step=step, exchange=True, watched=False)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
            self.seal(folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.reseed is None:
            super()._load_rng_state(checkpoint)
        else:
            set_seed(self.reseed)

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """None is written."""
