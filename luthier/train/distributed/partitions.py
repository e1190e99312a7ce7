"""Where DeepSpeed keeps masters and moments of each trained tensor, and which of its numbers this process has.

ZeRO-3 cuts each tensor (its rows end to end, filled up with zeros) into as many parts as there are processes; ZeRO-1
and ZeRO-2 cut all tensors of a group, end to end, so a process has some tensors, parts of two, and nothing of the rest.
A flat tensor of each group holds the masters of this process' numbers; the optimizer's state is under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Partitions", "Span"]

Span = tuple[int, int]
"""First number and the one after the last; equal for nothing."""


class Partitions:
    """Read and written by name; `key` is that of a moment, None stands for the masters."""

    def __init__(self, engine: Any, live: Mapping[str, nn.Parameter], shapes: Mapping[str, torch.Size]) -> None:
        """`live` are the parameters that `engine` trains, `shapes` those of the whole tensors."""
        self.engine, self.shapes = engine, dict(shapes)
        self.stage = int(engine.zero_optimization_stage())
        self._live = dict(live)

    @property
    def state(self) -> Any:
        """Of the optimizer, by flat tensor."""
        return self.engine.optimizer.optimizer.state

    def span(self, name: str) -> Span:
        """Which numbers of a tensor, its rows end to end, this process has."""
        parameter: Any = self._live[name]
        numel = self.shapes[name].numel()
        if self.stage == 3:
            size = parameter.ds_tensor.ds_numel
            first = torch.distributed.get_rank() * size
            return min(first, numel), min(first + size, numel)
        if parameter._hp_mapping is None:
            return 0, 0
        place = parameter._hp_mapping.lp_fragment_address
        return place.start, place.start + place.numel

    def part(self, name: str, key: str | None) -> Tensor:
        """These numbers, on the device."""
        from deepspeed import utils

        parameter, (first, last) = self._live[name], self.span(name)
        if self.stage != 3:
            return self._fragment(name, key).to(self.engine.device)
        held: Tensor
        if key is None:
            held = utils.safe_get_local_fp32_param(parameter)
        else:
            held = utils.safe_get_local_optimizer_state(parameter, key)
        return held[: last - first]

    def put(self, name: str, key: str | None, part: Tensor) -> None:
        """Take these numbers; a moment has to be there (`flat`)."""
        from deepspeed import utils

        parameter: Any = self._live[name]
        if self.stage != 3:
            self._fragment(name, key).copy_(part)
            return
        part = part.to(device=self.engine.device, dtype=torch.float32)
        filled = nn.functional.pad(part, (0, parameter.ds_tensor.ds_numel - part.numel()))
        if key is None:
            utils.safe_set_local_fp32_param(parameter, filled)
        else:
            utils.safe_set_local_optimizer_state(parameter, filled, key)

    def flat(self, name: str) -> Tensor:
        """The flat tensor that a tensor's masters are in, of which the optimizer has state."""
        zero, parameter = self.engine.optimizer, self._live[name]
        flat: Tensor
        if self.stage == 3:
            flat = zero.fp32_partitioned_groups_flat[zero.grad_position[zero.get_param_id(parameter)][0]]
        else:
            flat = next(flat for group, flat in self._groups() if any(p is parameter for p in group))
        return flat

    def link(self) -> None:
        """Show ZeRO-1 and ZeRO-2 where the moments of each parameter are.

        It does so itself in its first step, but for all groups when the first of them has been updated (0.19.8).
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self.stage != 3:
            for group, flat in self._groups():
                lazy_init_hp_params_optimizer_state(group, flat, self.state)

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """(parameters, partition of their masters that this process has) of each group, below ZeRO-3."""
        zero = self.engine.optimizer
        if hasattr(zero, "bf16_groups"):
            return list(zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))

    def _fragment(self, name: str, key: str | None) -> Tensor:
        """Below ZeRO-3: where this process has its numbers of a tensor."""
        parameter: Any = self._live[name]
        flat = self.flat(name)
        held: Tensor = flat if key is None else self.state[flat][key]
        if parameter._hp_mapping is None:
            return held[:0]
        place = parameter._hp_mapping.hp_fragment_address
        return held.narrow(0, place.start, place.numel)
