"""AdamW over masters and parameters at once: one pass reads the gradient and writes master, moments and parameter.

The state is torch.optim.AdamW's (`step`, `exp_avg`, `exp_avg_sq`), so a checkpoint of one can be
resumed by the other. 16-bit gradients are read as they are; nothing is copied and nothing waits
for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from luthier.fast.kernels.adamw import adamw_
from luthier.train.round_trip import AT_ONCE, AtOnce

__all__ = ["MOMENTS", "Kernel", "MasterAdamW"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of torch's state."""
Kernel = Callable[..., None]


class MasterAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """`step_with` instead of `step`; groups, rates and state as torch's."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step_with(
        self,
        pairs: Sequence[tuple[nn.Parameter, Tensor]],
        live: Mapping[nn.Parameter, nn.Parameter],
        scale: float | Tensor,
        *,
        run: AtOnce = AT_ONCE,
    ) -> None:
        """One step.

        Args:
            pairs: Tensors of the groups, each with its gradient in any floating type.
            live: The parameter that gets each tensor's value rounded; the tensor itself where there is none.
            scale: What the gradients are multiplied by; a tensor on the device is not waited for, and if it is NaN
                no tensor and no moment changes.
            run: How the kernel gets its tensors.
        """
        gradients = dict(pairs)
        for group in self.param_groups:
            alike: dict[tuple[int, Kernel, tuple[str, ...]], list[nn.Parameter]] = {}
            for tensor in group["params"]:
                if tensor in gradients:
                    key = (self._advance(tensor), *self._kernel(tensor))
                    if tensor.numel():  # of a shard there may be nothing here
                        alike.setdefault(key, []).append(tensor)
            for (step, kernel, names), tensors in alike.items():
                lists = [
                    tensors, [live[tensor] for tensor in tensors],
                    [gradients[tensor].contiguous() for tensor in tensors],
                    *([self.state[tensor][name] for tensor in tensors] for name in names),
                ]  # fmt: skip
                run.update(
                    kernel, lists, lr=group["lr"], betas=group["betas"], eps=group["eps"],
                    weight_decay=group["weight_decay"], step=step, grad_scale=scale,
                )  # fmt: skip

    def _advance(self, tensor: nn.Parameter) -> int:
        """Number of this step for the tensor, from 1; its counter is in host memory, as torch keeps it."""
        state = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update(self._fresh(tensor))
        state["step"] += 1
        return int(state["step"])

    def _kernel(self, tensor: Tensor) -> tuple[Kernel, tuple[str, ...]]:
        """What updates the tensor, and the names of the state it takes."""
        return adamw_, MOMENTS

    def _fresh(self, tensor: Tensor) -> dict[str, Tensor]:
        """State before the first step."""
        dense = torch.contiguous_format
        # Not `zeros_like`: pages of host memory that nobody has written are given one by one when they are pinned.
        return {name: torch.empty_like(tensor, memory_format=dense).fill_(0.0) for name in MOMENTS}
