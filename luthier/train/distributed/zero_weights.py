"""Trained weights whose gradients, masters and moments are DeepSpeed's (ZeRO-1, ZeRO-2, ZeRO-3).

DeepSpeed averages the gradients of a pass over the processes and adds up the passes in its partitions; its step clips
by the norm of all and updates them. What leaves them are tensors under our names, one at a time: in FSDP2's shards
for checkpoints of weights (`zero_rows.py`), whole for those of adapters. What enters is read from any checkpoint, by
each process the rows that its partitions are of. So any number of processes and any strategy goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.runtime.errors import RunFailed
from luthier.train import foreach
from luthier.train.distributed.mesh import make_mesh
from luthier.train.distributed.partitions import Partitions
from luthier.train.distributed.zero import let_gradients_through
from luthier.train.distributed.zero_rows import Rows
from luthier.train.masters import Weights
from luthier.train.optim_state import require_trained
from luthier.train.saved import SavedTensors, numbers_of

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
        self.in_shards = not hasattr(model, "peft_config")
        self._partitions = Partitions(engine, self.live, self.shapes)
        self._mesh: Any = None
        self._stage = self._partitions.stage
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

    def rows(self) -> Rows:
        """Masters and the optimizer's state for a sharded checkpoint; called by all processes together."""
        if self._mesh is None:
            self._mesh = make_mesh(self.engine.device.type, 1)
        moments = {f"{name}/{key}": None if parted else value for name, key, value, parted in self._state()}
        return Rows(self._partitions, moments, self._mesh)

    def result(self, *, keep: bool) -> dict[str, Tensor]:
        """See `Weights.result`."""
        return dict(self.masters_whole(keep=keep))

    def masters_whole(self, *, keep: bool) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 tensor in host memory), one after the other; nothing where it is not to be kept."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.live.items():
            whole = safe_get_full_fp32_param(parameter)
            if keep:
                yield name, whole.to("cpu", copy=True).view(self.shapes[name])

    def state_whole(self, *, keep: bool) -> dict[str, Tensor]:
        """The optimizer's state as `PARAMETER/KEY`, whole and in host memory; called by all processes together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        self._partitions.link()
        for name, key, value, parted in self._state():
            whole = safe_get_full_optimizer_state(self.live[name], key) if parted else value
            if keep:
                held = whole.detach().to("cpu", copy=True)
                found[f"{name}/{key}"] = held.view(self.shapes[name]) if parted else held
        return found

    def _state(self) -> Iterator[tuple[str, str, Tensor, bool]]:
        """(name, key, tensor, whether it is this process' part) of the optimizer's state; counters are all of it."""
        for name in self.live:
            flat = self._partitions.flat(name)
            for key, value in self._partitions.state.get(flat, {}).items():
                if isinstance(value, Tensor):
                    yield name, key, value, value.shape == flat.shape

    # -- what is restored

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take saved values into the partitions and the weights; each process reads the rows that it needs."""
        import deepspeed

        first_process = torch.distributed.get_rank() == 0
        with torch.no_grad():
            for name, parameter in self.live.items():
                self._partitions.put(name, None, numbers_of(tensors, name, *self._partitions.span(name)))
                if self._stage != 3:
                    parameter.data.copy_(tensors[name])
                    continue
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    if first_process:  # the others get it from there
                        parameter.data.copy_(tensors[name])

    def load_state(self, optimizer: torch.optim.Optimizer, held: SavedTensors) -> None:
        """Take a saved state of the optimizer, tensors under `PARAMETER/KEY`; each process reads the rows it needs.

        Raises:
            RunFailed: the state is of other parameters.
        """
        require_trained([full_name.rpartition("/")[0] for full_name in held], self.shapes)
        state = self._partitions.state
        fused = any(group.get("fused") for group in optimizer.param_groups)
        for full_name, shape in held.shapes.items():
            name, _, key = full_name.rpartition("/")
            flat = self._partitions.flat(name)
            if shape and shape != self.shapes[name]:
                raise RunFailed(code="T433", message=f"`{full_name}` has shape {tuple(shape)}, `{name}` another")
            if not shape:
                where = flat.device if fused else torch.device("cpu")
                state[flat][key] = held[full_name].to(where, copy=True)
                continue
            if key not in state[flat]:
                state[flat][key] = torch.zeros_like(flat)
            self._partitions.put(name, key, held.numbers(full_name, *self._partitions.span(name)))
        self._partitions.link()
