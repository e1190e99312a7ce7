"""What a task of lm-evaluation-harness computes with the model, dealt to the processes of a run.

Process 0 alone runs the harness: it makes the requests and scores the answers. The forward passes of each batch of
requests are shared. The harness' own way with several processes (`LM.world_size`) deals documents: it draws worked
examples from one generator, document after document, so each process would draw others than one process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.evaluate.harness.likelihood import Pair, log_likelihoods
from luthier.generation.generate import Generation, generate, token_capacity
from luthier.runtime.spread import Spread

__all__ = ["Computing"]


class Computing:
    """A model, here or in several processes.

    Args:
        model: Causal language model, with or without adapters.
        tokenizer: Its tokenizer.
        stop_ids: Tokens that end an answer.
        batch_size: Most rows at once, in a process.
        label: Name of the task.
        spread: The processes that have the model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, stop_ids: list[int], batch_size: int, label: str,
        spread: Spread | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self.batch_size, self.label, self.spread = batch_size, label, spread or Spread()
        self._batch = 0

    def answers(self, prompts: list[list[int]], size: int) -> list[Generation]:
        """Greedy answers of at most `size` tokens; process 0 calls it."""
        found: list[Generation] = self._ask(prompts, size)
        return found

    def likelihoods(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, greedy) of continuations; process 0 calls it."""
        found: list[tuple[float, bool]] = self._ask(pairs, None)
        return found

    def done(self) -> None:
        """Process 0 needs no more help with this task."""
        self._next(None)

    def help(self) -> None:
        """Compute parts of what process 0 asks for, until it is done; called by the others."""
        while (order := self._next(None)) is not None:
            self._together(*order)

    def _ask(self, items: list[Any], size: int | None) -> list[Any]:
        self._next((items, size))
        return self._together(items, size)

    def _next(self, order: Any) -> Any:
        """What process 0 asks for next."""
        self._batch += 1
        return self.spread.exchange(f"{self.label}, batch {self._batch}: asked", order)[0]

    def _together(self, items: list[Any], size: int | None) -> list[Any]:
        return self.spread.map(
            f"{self.label}, batch {self._batch}: {'log-likelihoods' if size is None else 'answers'}", items,
            lambda part: self._compute(part, size),
        )  # fmt: skip

    def _compute(self, items: Sequence[Any], size: int | None) -> list[Any]:
        if size is None:
            return log_likelihoods(self.model, items, batch_size=self.batch_size, label=self.label)
        return generate(
            self.model, self.tokenizer, items, max_new_tokens=size, stop_ids=self.stop_ids,
            batch_size=self.batch_size, max_batch_tokens=token_capacity(self.model), label=self.label,
        )  # fmt: skip
