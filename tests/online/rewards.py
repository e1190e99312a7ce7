"""Batches of completions for tests of rewards."""

from __future__ import annotations

from array import array
from typing import Any

from luthier.data.prompt_rows import PromptRow
from luthier.data.types import RowRef
from luthier.online.rewards.base import Completions, Reward
from luthier.online.rewards.build import build_rewards
from luthier.recipe.online_schema import GrpoSection


def batch(*texts: str, references: list[str | None] | None = None, tokens: list[int] | None = None) -> Completions:
    count = len(texts)
    return Completions(
        prompts=[[{"role": "user", "content": f"question {n}"}] for n in range(count)], texts=list(texts),
        ids=[[0] * n for n in tokens or [3] * count], references=references or [None] * count,
        columns=[{"answer": n} for n in range(count)], extra={"trainer_state": None},
    )  # fmt: skip


def reward(**spec: Any) -> Reward:
    """One reward, made from the recipe's words."""
    with build_rewards(GrpoSection.model_validate({"rewards": [spec]}), cache_dir=None) as rewards:
        return rewards.rewards[0]


def row(reference: str | None = "72", **columns: Any) -> PromptRow:
    return PromptRow(
        ref=RowRef("rows.jsonl", 5), ids=array("i", [1, 2]), prompt=[{"role": "user", "content": "how many?"}],
        reference=reference, columns=columns,
    )  # fmt: skip
