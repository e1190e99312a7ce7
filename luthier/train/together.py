"""Several optimizers as one: the same groups, one state, one `step`. And Muon with AdamW, made so.

Muon (https://kellerjordan.github.io/posts/muon/; scaled as arXiv:2502.16982, equation 4) makes every update of a
matrix nearly orthogonal. It is for the hidden matrices of a network; embeddings, head, norms and biases are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.recipe.schema import TrainSection

__all__ = ["Together", "make_muon"]


class Together(torch.optim.Optimizer):  # type: ignore[misc]
    """Optimizers that step one after the other; groups and state are theirs, in their order."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer], *, learning_rate: float) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {"lr": learning_rate})
        self._share()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; every part then has its groups and the state again."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on these very groups and this very state."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end


def make_muon(
    hidden: Sequence[Mapping[str, Any]], rest: Sequence[Mapping[str, Any]], section: TrainSection, *,
    learning_rate: float,
) -> torch.optim.Optimizer:  # fmt: skip
    """Muon over the groups `hidden` (matrices), AdamW over `rest`; each group has its own `lr` and `weight_decay`.

    The update of a matrix (N, K) is scaled by 0.2 sqrt(max(N, K)), so that its size is AdamW's and one learning rate
    serves both (`optim_args.adjust_lr_fn: match_rms_adamw`, our default; `original` is sqrt(max(1, N / K))).
    """
    settings = {"adjust_lr_fn": "match_rms_adamw", **section.optim_args}
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        parts.append(torch.optim.Muon([dict(group) for group in hidden], lr=learning_rate, **settings))
    if rest:
        betas = (section.adam_beta1, section.adam_beta2)
        groups = [dict(group) for group in rest]
        parts.append(torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=section.adam_epsilon))
    return Together(parts, learning_rate=learning_rate)
