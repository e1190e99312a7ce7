"""The tensors the optimizer works on: trained parameters, or fp32 masters of them.

A bfloat16 weight has 8 significant bits: an update below 1/256 of the weight rounds to nothing
(measured: at lr 1e-5 85% of the weights did not move in 20 steps, and no norm weight did). So
every trained parameter in bf16 or fp16 gets an fp32 master: the optimizer updates the master, and
the parameter is the master rounded. fp32 parameters need none and are updated in place, unless
they are a window on a larger matrix (the engine keeps adapters so): fused optimizers write past
the window's rows, so these have a dense master too.

Gradients of parameters with masters, by the number of backward passes of a step:

    one       the 16-bit gradient is the sum: it stays as it is, and the optimizer gets fp32 copies of
              a few tensors at a time (BUCKET_BYTES)                            2 bytes a weight
    several   summed in fp32: after each pass all at once while the 16-bit gradients are small
              (COLLECTED_BYTES), else tensor by tensor during the pass          4 bytes a weight

The sums are the same numbers either way. Memory of a fully trained weight in bf16: 2 + 4 (master)
+ 8 (AdamW's moments; 2 in 8 bits) + 2 or 4 bytes. 8 billion weights on a 141 GB card with 8-bit
moments and one micro-batch a step: 16 + 32 + 16 + 16 = 80 GB, and the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.train import foreach
from luthier.train.master_adamw import MasterAdamW
from luthier.train.round_trip import AT_ONCE, AtOnce

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Weights"]

BUCKET_BYTES = 512 << 20  # of fp32 copies and of one exchange: bound by bandwidth, small beside a model
COLLECTED_BYTES = 2 << 30
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Weights:
    """Trained parameters by name, and what the optimizer sees in their place."""

    sharded = False
    """Each process holds a part of every tensor."""
    in_shards = False
    """The weights themselves are trained, and are in parts: a checkpoint has them in shards, a result is gathered."""
    norm_in_parts = False
    """`norm` is that of this process' parts."""
    copies = 1
    """Processes that hold the same parts."""
    run: AtOnce = AT_ONCE
    """How an update of ours gets its tensors: `RoundTrip` where they are in host memory, beside a GPU."""

    def __init__(self, model: nn.Module, live: Mapping[str, nn.Parameter] | None = None) -> None:
        """`live`: what stands for the trained parameters of `model`, where that is not they themselves."""
        if live is None:
            live = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.live: dict[str, nn.Parameter] = dict(live)
        self.tensors: dict[str, nn.Parameter] = {}
        """What the optimizer updates: the master where there is one, else the parameter itself."""
        self.whole_updates = False
        """The optimizer counts its calls, so one step must be one call: fp32 copies of all gradients at once."""
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._keeps = False
        for name, parameter in self.live.items():
            values = self.master_of(parameter)
            if values is not None:
                master = nn.Parameter(values)
                self.tensors[name] = master
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._moves_to(name, master)))
            else:
                self.tensors[name] = parameter
        small = sum(self.live[name].nbytes for name in self.masters) <= COLLECTED_BYTES
        self._collects = small

    def master_of(self, parameter: nn.Parameter) -> Tensor | None:
        """Values that the optimizer works on in place of a parameter's; None: on the parameter itself."""
        if parameter.dtype not in LOW_PRECISION and parameter.is_contiguous():
            return None
        return parameter.detach().to(torch.float32, copy=True).contiguous()

    @property
    def masters(self) -> dict[str, nn.Parameter]:
        """The fp32 masters alone; empty when every trained parameter is fp32."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor is not self.live[name]}

    # -- gradients of one step

    def begin(self, *, passes: int, processes: int) -> None:
        """Before the first of `passes` backward passes of a step on each of `processes` processes."""
        self._keeps = passes == 1 and processes == 1

    def collect(self) -> None:
        """After each backward pass: add what is still in 16 bits to the fp32 sums, unless it is the only pass."""
        if self._keeps:
            return
        held = [(master, self.live[name]) for name, master in self.masters.items()]
        fresh = [(master, live.grad) for master, live in held if live.grad is not None]
        first = [(master, gradient) for master, gradient in fresh if master.grad is None]
        later = [(master.grad, gradient) for master, gradient in fresh if master.grad is not None]
        foreach.add_fp32_([total for total, _ in later], [grad for _, grad in later], most_bytes=BUCKET_BYTES)
        for (master, _), copy in zip(first, foreach.to_fp32([gradient for _, gradient in first]), strict=True):
            master.grad = copy
        for _, live in held:
            live.grad = None

    def backward(self, loss: Tensor) -> None:
        """One backward pass."""
        loss.backward()

    def norm(self) -> Tensor | None:
        """L2 norm of the gradients there are, on the device; None without any."""
        gradients = self.gradients()
        return self.run.norm(gradients) if gradients else None

    def gradients(self) -> list[Tensor]:
        """The gradients there are, in the order of the names."""
        return [gradient for _, gradient in self._pairs()]

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """(what the optimizer updates, its gradient): the master's, or the 16-bit one of the only pass."""
        found = ((tensor, _gradient(tensor, self.live[name])) for name, tensor in self.tensors.items())
        return [(tensor, gradient) for tensor, gradient in found if gradient is not None]

    def average_over_processes(self, accelerator: Accelerator) -> None:
        """Average all gradients over processes, in fp32, many tensors in one exchange.

        A process always has a gradient for every trained parameter, because every process runs
        every micro-batch.
        """
        if accelerator.num_processes == 1:
            return
        for bucket in foreach.buckets(self._pairs(), BUCKET_BYTES):
            gradients = [gradient for _, gradient in bucket]
            assert all(gradient.dtype.itemsize >= 4 for gradient in gradients), "16-bit sums are for one process"
            flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
            parts = flat.split([gradient.numel() for gradient in gradients])
            foreach.copy_(gradients, [part.view_as(gradient) for gradient, part in zip(gradients, parts, strict=True)])

    # -- the update

    def applies_ahead(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether `apply` takes a scale that is still being computed on the device."""
        return isinstance(optimizer, MasterAdamW)

    def apply(self, optimizer: torch.optim.Optimizer, *, scale: float | Tensor) -> None:
        """One step of the optimizer with the gradients times `scale`; then no gradient is left.

        A tensor is for optimizers that `applies_ahead` names; if it is NaN, weights and moments stay as they are.
        """
        if isinstance(optimizer, MasterAdamW):
            optimizer.step_with(self._pairs(), self._written_at_once(), scale, run=self.run)
            self._publish([name for name in self.masters if not self.live[name].is_contiguous()])
            self.zero_grad()
            return
        assert isinstance(scale, float), "this optimizer waits for the scale"
        pairs = self._pairs()
        if self.whole_updates:
            dense = foreach.to_fp32([gradient for _, gradient in pairs])
            self._step([(tensor, copy) for (tensor, _), copy in zip(pairs, dense, strict=True)], optimizer, scale)
            self.publish()
            self.zero_grad()
            return
        summed = [(tensor, gradient) for tensor, gradient in pairs if gradient is tensor.grad]
        kept = [(tensor, gradient) for tensor, gradient in pairs if gradient is not tensor.grad]
        self._step(summed, optimizer, scale)
        # Optimizers pass over tensors without a gradient, so a step may come in parts.
        for bucket in foreach.buckets(kept, BUCKET_BYTES):
            copies = foreach.to_fp32([gradient for _, gradient in bucket])
            self._step([(tensor, copy) for (tensor, _), copy in zip(bucket, copies, strict=True)], optimizer, scale)
        self.publish()
        self.zero_grad()

    def _step(self, pairs: list[tuple[nn.Parameter, Tensor]], optimizer: torch.optim.Optimizer, scale: float) -> None:
        if not pairs:
            return
        foreach.scale_([gradient for _, gradient in pairs], scale)
        for tensor, gradient in pairs:
            tensor.grad = gradient
        optimizer.step()
        for tensor, _ in pairs:
            tensor.grad = None

    def _written_at_once(self) -> dict[nn.Parameter, nn.Parameter]:
        """The parameter that the optimizer's kernel writes beside each tensor: none that is a window."""
        pairs = ((tensor, self.live[name]) for name, tensor in self.tensors.items())
        return {tensor: live if live.is_contiguous() else tensor for tensor, live in pairs}

    def publish(self) -> None:
        """Round the masters into the parameters."""
        self._publish(list(self.masters))

    def _publish(self, names: list[str]) -> None:
        with torch.no_grad():
            foreach.copy_([self.live[name] for name in names], [self.tensors[name] for name in names])

    def result(self, *, keep: bool) -> dict[str, Tensor]:
        """fp32 masters by name, as `save_trained` takes them: what is written where the parameters are not it. Not of
        weights `in_shards`. Called by all processes together; for those that do not `keep` it may be empty.
        """
        return dict(self.masters)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take saved values (of exactly these names and shapes) and publish them."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])
        self.publish()

    def zero_grad(self) -> None:
        """Free all gradients."""
        for name, tensor in self.tensors.items():
            tensor.grad = None
            self.live[name].grad = None

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _moves_to(self, name: str, master: nn.Parameter) -> Callable[[Tensor], None]:
        """A hook that moves a fresh gradient into the master's and frees it: never two copies of all of them."""

        def move(parameter: Tensor) -> None:
            if self._keeps or self._collects:
                return
            assert parameter.grad is not None
            if master.grad is None:
                master.grad = parameter.grad.to(torch.float32).contiguous()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

        return move


def _gradient(tensor: nn.Parameter, live: nn.Parameter) -> Tensor | None:
    return live.grad if tensor.grad is None else tensor.grad
