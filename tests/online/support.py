"""Runs of online RL on the tiny model: a folder with model and rows, and recipes for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.pipeline.run import RunResult, run_recipe
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import Recipe
from tests.support.tiny import conversations, save_tiny

REWARDS = '''\
"""Rewards that a random model can learn in a few steps: which half of the vocabulary it samples from."""
import os
import signal


def low(prompts, completions, completion_ids, **columns):
    return [sum(token < 300 for token in ids) / len(ids) for ids in completion_ids]


def high(completion_ids, **columns):
    return [1 - value for value in low(None, None, completion_ids)]


def stops(completion_ids, trainer_state, **columns):
    """As `low`; in the third step Ctrl-C is pressed, once."""
    if trainer_state is not None and trainer_state.global_step == 2 and not os.path.exists(__file__ + ".pressed"):
        open(__file__ + ".pressed", "w").close()
        os.kill(os.getpid(), signal.SIGINT)
    return low(None, None, completion_ids)
'''


@dataclass(frozen=True)
class World:
    """A tiny model, 24 rows, the rewards above."""

    folder: Path

    @staticmethod
    def make(folder: Path) -> World:
        save_tiny(folder / "model")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(24)))
        (folder / "rewards.py").write_text(REWARDS)
        return World(folder)

    def python(self, name: str, **more: Any) -> dict[str, Any]:
        """A reward of the file above."""
        return {"python": f"{self.folder / 'rewards.py'}:{name}", **more}

    def recipe(
        self, run: Path, *, rewards: list[dict[str, Any]] | None = None, grpo: dict[str, Any] | None = None,
        **sections: Any,
    ) -> Recipe:  # fmt: skip
        """Full tuning, 4 prompts x 8 completions of at most 8 tokens a step."""
        own = {"rewards": rewards or [self.python("low")], "num_generations": 8, "max_completion_length": 8}
        value: dict[str, Any] = {
            "model": {"name_or_path": str(self.folder / "model"), "dtype": "float32"},
            "data": {"train": [{"path": str(self.folder / "rows.jsonl")}], "max_length": 64},
            "method": {"name": "full"},
            "objective": {"name": "grpo", "grpo": {**own, **(grpo or {})}},
            "train": {
                "max_steps": 6, "learning_rate": 0.01, "lr_scheduler_type": "constant",
                "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "save_steps": None,
            },
            "export": {"merge": False},
            "output_dir": str(run),
        }  # fmt: skip
        for key, change in sections.items():
            value[key] = {**value.get(key, {}), **change} if isinstance(change, dict) else change
        return recipe_from_dict(value, origin="test")


def train(recipe: Recipe, **more: Any) -> RunResult:
    """Data and training alone."""
    return run_recipe(recipe, only=("data", "train"), command=["test"], **more)


def metrics(run: Path, *, clock: bool = False) -> list[dict[str, Any]]:
    """Metric lines, by default without what depends on the clock."""
    timed = {"seconds", "tokens_per_second", "generation_seconds", "reward_seconds"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return lines if clock else [{key: item for key, item in line.items() if key not in timed} for line in lines]


def rewards_of(run: Path, key: str = "reward") -> list[float]:
    return [line[key] for line in metrics(run) if key in line]
