"""A judge on several processes: process 0 asks for all, so that no answer is paid twice and one budget holds.

The others wait for its scores as long as it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from luthier.online.processes import Processes
from luthier.online.rewards.base import Completions, Value
from luthier.online.rewards.judge import JudgeReward

__all__ = ["AskedByMain"]


@dataclass(slots=True)
class AskedByMain:
    """A judge's reward. Every process calls it as often as the others."""

    reward: JudgeReward
    processes: Processes
    calls: int = field(default=0, init=False)

    @property
    def label(self) -> str:
        """Name in metrics."""
        return self.reward.label

    @property
    def weight(self) -> float:
        """Factor in the sum."""
        return self.reward.weight

    def unusable(self, reference: str | None) -> str | None:
        """None is."""
        return self.reward.unusable(reference)

    def score(self, batch: Completions) -> list[Value]:
        """Scores of this process' completions.

        Raises:
            LuthierError: in process 0 as `JudgeReward.score`; elsewhere, that process 0 failed.
        """
        from accelerate.utils import gather_object

        self.calls += 1
        mine = replace(batch, extra={}, columns=[{} for _ in batch.texts], ids=[() for _ in batch.texts])
        parts: list[Completions] = gather_object([mine])
        name = f"scores of reward {self.label}, {self.calls}"
        values = self.processes.from_main(name, lambda: self.reward.score(_joined(parts)))
        start = sum(len(part) for part in parts[: self.processes.rank])
        return values[start : start + len(batch)]


def _joined(parts: list[Completions]) -> Completions:
    return Completions(
        prompts=[item for part in parts for item in part.prompts],
        texts=[item for part in parts for item in part.texts],
        ids=[item for part in parts for item in part.ids],
        references=[item for part in parts for item in part.references],
        columns=[item for part in parts for item in part.columns],
    )  # fmt: skip
