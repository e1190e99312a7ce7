"""Trained weights whose gradients, masters and moments are DeepSpeed's (ZeRO-1, ZeRO-2, ZeRO-3).

DeepSpeed averages the gradients of a pass over the processes and adds up the passes in its partitions; its step clips
by the norm of all and updates them. What leaves and enters a checkpoint are whole tensors under our names, one at a
time, so any number of processes and any strategy goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.train import foreach
from luthier.train.distributed.zero import gather_zero, let_gradients_through
from luthier.train.masters import Weights

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ZeroWeights"]


class ZeroWeights(Weights):
    """`Weights` in DeepSpeed's partitions."""

    sharded = True
    norm_in_parts = False

    def __init__(self, model: nn.Module, engine: Any, shapes: Mapping[str, torch.Size]) -> None:
        """`shapes` of the trained parameters, by name, as they were before `engine` was made."""
        super().__init__(model, {})
        self.engine = engine
        self.shapes = dict(shapes)
        self.live = {name: parameter for name, parameter in model.named_parameters() if name in self.shapes}
        self.tensors = dict(self.live)
        self._stage = int(engine.zero_optimization_stage())
        self._in_16_bits = hasattr(engine.optimizer, "bf16_groups")
        """Under ZeRO-1 DeepSpeed has an optimizer of its own (BF16_Optimizer) for weights in bf16."""
        self._passes = self._done = 0
        if self._stage == 3:
            self._hooks += let_gradients_through(model)

    # -- gradients of one step

    def begin(self, *, passes: int, processes: int) -> None:
        """DeepSpeed is told which pass is the last of its step."""
        self._passes, self._done = passes, 0
        self.engine.set_gradient_accumulation_boundary(passes == 1)

    def backward(self, loss: Tensor) -> None:
        """The gradients of one pass, averaged over processes while the pass runs."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def collect(self) -> None:
        """DeepSpeed has added the pass to its partitions."""
        self._done += 1
        self.engine.set_gradient_accumulation_boundary(self._done + 1 >= self._passes)

    def average_over_processes(self, accelerator: Accelerator) -> None:
        """Done by DeepSpeed in the backward pass."""

    def norm(self) -> Tensor | None:
        """L2 norm of the whole gradient: the same on all processes; not finite if some gradient is not."""
        from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm

        optimizer = self.engine.optimizer
        if self._stage == 3:
            found = combine_grad_norm_groups(optimizer._get_norm_groups())
        elif self._in_16_bits:
            return foreach.total_norm(optimizer.get_grads_for_norm(for_clipping=True))
        else:
            found = optimizer.scaled_global_norm()
        found = torch.as_tensor(found)
        # DeepSpeed's norm of what is not finite is -1.
        return torch.full_like(found, torch.nan) if is_invalid_grad_norm(found) else found

    def applies_ahead(self, optimizer: torch.optim.Optimizer) -> bool:
        """The host must know that the step is finite before DeepSpeed takes it."""
        return False

    def apply(self, optimizer: torch.optim.Optimizer, *, scale: float | Tensor) -> None:
        """DeepSpeed's step. `scale` is the same as its own clipping: `gradient_clipping` is `train.max_grad_norm`."""
        self.engine.step()

    def zero_grad(self) -> None:
        """Forget the gradients of the passes since the last step."""
        self.engine.optimizer.zero_grad()
        if self._in_16_bits:
            return
        if self._stage != 3:
            from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

            self.engine.optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        self.engine.optimizer.averaged_gradients.clear()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        super().close()
        self.engine.destroy()

    # -- what is saved

    def result(self, model: nn.Module, *, keep: bool) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """See `Weights.result`."""
        if hasattr(model, "peft_config"):
            return (dict(self.masters_whole(keep=keep)), None)
        return {}, gather_zero(model, keep=keep)

    def masters_whole(self, *, keep: bool) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 tensor in host memory), one after the other; nothing where it is not to be kept."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.live.items():
            whole = safe_get_full_fp32_param(parameter)
            if keep:
                yield name, whole.to("cpu", copy=True).view(self.shapes[name])

    def state_whole(self, optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Tensor]:
        """The optimizer's state as `PARAMETER/KEY`, whole and in host memory; called by all processes together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        self._link(optimizer)
        for name, parameter in self.live.items():
            flat = self._flat(parameter)
            for key, value in optimizer.state.get(flat, {}).items():
                if not isinstance(value, Tensor):
                    continue
                parted = value.shape == flat.shape
                whole = safe_get_full_optimizer_state(parameter, key) if parted else value
                if keep:
                    held = whole.detach().to("cpu", copy=True)
                    found[f"{name}/{key}"] = held.view(self.shapes[name]) if parted else held
        return found

    # -- what is restored

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take whole saved values into the partitions and the weights."""
        import deepspeed

        with torch.no_grad():
            for name, parameter in self.live.items():
                whole = tensors[name]  # which may read it
                self._set(parameter, whole, key=None)
                parts = [parameter] if hasattr(parameter, "ds_id") else []
                with deepspeed.zero.GatheredParameters(parts, modifier_rank=0):
                    parameter.data.copy_(whole)

    def load_state(self, optimizer: torch.optim.Optimizer, held: Mapping[str, Tensor]) -> None:
        """Take a saved state of the optimizer, whole tensors under `PARAMETER/KEY`."""
        by_name: dict[str, dict[str, str]] = {name: {} for name in self.live}  # `held` may read at each access
        for full_name in held:
            name, _, key = full_name.rpartition("/")
            by_name[name][key] = full_name
        for group in optimizer.param_groups:
            fused = bool(group.get("fused"))
        for name, parameter in self.live.items():
            flat = self._flat(parameter)
            for key, full_name in by_name[name].items():
                if key in optimizer.state[flat]:
                    continue
                value = held[full_name]
                parted = value.shape == self.shapes[name] and value.ndim > 0
                where = flat.device if parted or fused else torch.device("cpu")
                optimizer.state[flat][key] = torch.zeros_like(flat) if parted else value.to(where, copy=True)
        self._link(optimizer)
        for name, parameter in self.live.items():
            for key, full_name in by_name[name].items():
                value = held[full_name]
                if value.shape == self.shapes[name] and value.ndim > 0:
                    self._set(parameter, value, key=key)

    def _link(self, optimizer: torch.optim.Optimizer) -> None:
        """Show ZeRO-1 and ZeRO-2 where the moments of each parameter are.

        It does so itself in its first step, but for all groups when the first of them has been updated (0.19.8).
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self._stage != 3:
            for group, flat in self._groups():
                lazy_init_hp_params_optimizer_state(group, flat, optimizer.state)

    def _flat(self, parameter: nn.Parameter) -> Tensor:
        """The partition of this process that `parameter` is part of."""
        optimizer = self.engine.optimizer
        flat: Tensor
        if self._stage == 3:
            flat = optimizer.fp32_partitioned_groups_flat[optimizer.grad_position[optimizer.get_param_id(parameter)][0]]
        else:
            flat = next(flat for group, flat in self._groups() if any(p is parameter for p in group))
        return flat

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """(parameters, partition of their masters that this process has) of each group, below ZeRO-3."""
        zero = self.engine.optimizer
        if self._in_16_bits:
            return list(zip(zero.bf16_groups, zero.fp32_groups_flat_partition, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))

    def _set(self, parameter: Any, whole: Tensor, *, key: str | None) -> None:
        """This process' part of a whole tensor into the masters (`key` None) or a moment."""
        from deepspeed import utils

        whole = whole.to(device=self.engine.device, dtype=torch.float32)
        if self._stage != 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # DeepSpeed's setter of whole tensors does not take one whose size the processes do not divide.
        size = parameter.ds_tensor.ds_numel
        padded = nn.functional.pad(whole.flatten(), (0, size * self.engine.dp_world_size - whole.numel()))
        part = padded.narrow(0, size * torch.distributed.get_rank(), size)
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)
