"""A frozen 4-bit matrix as one parameter that FSDP2 or DeepSpeed can shard, move and put together again.

    weight   [ two weights a byte | scales of the blocks of 64, one byte each ] seen as fp32, one axis

Integer parameters break `fully_shard` up to torch 2.11 (pytorch/pytorch#177844), so the bytes are looked at as numbers;
nobody computes with them: `fully_shard` copies, and mixed precision stays off. The scales' own scales (fp32, one for
256 blocks: 0.002 bits a weight) and the table of the 16 values stay whole on every process.

Why fp32 and not the model's bfloat16: `fully_shard` copies into its buffer with `torch._foreach_copy_`, which on CUDA
takes 16-bit floats through fp32 and back, and that makes every NaN the same NaN. Bytes like 0x7F 0x81 are one. fp32 is
copied as it is, and beside parameters of another type torch gathers all of them as bytes.

Under DeepSpeed they are seen as int32 (`WHOLE`): its engine casts every float parameter to the type of the training.

NF4, double quantisation: arXiv:2305.14314. Bytes as floats for FSDP: answer.ai, "You can now train a 70b language model
at home", 2024 (`bnb_4bit_quant_storage`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ALIGN", "STORAGE", "WHOLE", "PackedLinear", "as_storage", "bytes_of", "pack_linears"]

STORAGE, WHOLE = torch.float32, torch.int32
ALIGN = 16
"""Bytes to whose multiples each part is padded."""


def as_storage(*parts: Tensor, storage: torch.dtype = STORAGE) -> Tensor:
    """The bytes of some tensors one after the other, each padded to a multiple of `ALIGN`, as a `storage` vector."""
    found = []
    for part in parts:
        flat = part.detach().contiguous().view(-1).view(torch.uint8)
        found += [flat, flat.new_zeros(-flat.numel() % ALIGN)]
    return torch.cat(found).view(storage)


def bytes_of(storage: Tensor, *sizes: int) -> list[Tensor]:
    """The parts of `as_storage`, as bytes; `sizes` in bytes."""
    raw = storage.detach().view(torch.uint8)
    found, start = [], 0
    for size in sizes:
        found.append(raw[start : start + size])
        start += size + -size % ALIGN
    return found


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """x W^T + bias with W unpacked for each of the two passes, not kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: PackedLinear) -> Tensor:
        ctx.module = module
        return nn.functional.linear(x, module.unpacked(), module.bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.module.unpacked(), None


class PackedLinear(nn.Module):  # type: ignore[misc]
    """In the place of bitsandbytes' `Linear4bit`, with the same values; see the head of this file."""

    def __init__(self, linear: Any, device: torch.device, *, storage: torch.dtype = STORAGE) -> None:
        """From a `Linear4bit`; one that was not quantised yet is, on `device`. Its bytes are seen as `storage`."""
        super().__init__()
        self.in_features, self.out_features = int(linear.in_features), int(linear.out_features)
        packed = linear.weight.to(device)
        state = packed.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise RuntimeError("this 4-bit matrix was rearranged for CPU inference by a forward pass; load it again")
        self.sizes = (packed.data.numel() * packed.data.element_size(), state.absmax.numel())
        """Bytes of the packed weights, number of blocks."""
        self.scale_dtype = state.absmax.dtype
        self.weight = nn.Parameter(as_storage(packed.data, state.absmax, storage=storage), requires_grad=False)
        self.bias = linear.bias
        self.compute_dtype: torch.dtype = getattr(linear, "compute_dtype", None) or state.dtype
        self.state = copy.copy(state)
        """bitsandbytes' quantisation state without the scales, which are in `weight`."""
        self.state.absmax = None

    def unpacked(self) -> Tensor:
        """(N, K): the values that bitsandbytes computes with, in the type of the quantisation state."""
        import bitsandbytes.functional as bnb

        packed, blocks = self.sizes
        codes, scales = bytes_of(self.weight, packed, blocks * self.scale_dtype.itemsize)
        state = copy.copy(self.state)
        state.absmax = scales.view(self.scale_dtype)
        unpacked: Tensor = bnb.dequantize_4bit(codes.view(-1, 1), state)
        return unpacked

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias."""
        y: Tensor = _Product.apply(x.to(self.compute_dtype), self)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"{self.in_features}, {self.out_features}, {self.state.quant_type}"


def pack_linears(
    module: nn.Module, device: torch.device, *, keep_unpacked: bool = False, storage: torch.dtype = STORAGE,
    rests_on: torch.device | None = None,
) -> int:  # fmt: skip
    """Replace all `Linear4bit` inside `module`, on `device`, by what can be sharded; returns their number.

    Args:
        module: for instance a decoder layer, in host memory or on the device.
        device: where those that are not quantised yet are quantised.
        storage: what packed bytes are seen as.
        rests_on: where they wait for their part in the sharding (None: `device`).
        keep_unpacked: put plain matrices of the unpacked values there instead (`model.dequantize_base: true`).
    """
    found = [(name, child) for name, child in module.named_modules() if type(child).__name__ == "Linear4bit"]
    # PEFT's wrapper has that name too; it holds one.
    linears = [(name, child) for name, child in found if isinstance(child, nn.Linear)]
    for name, child in linears:
        packed: nn.Module = PackedLinear(child, device, storage=storage)
        if keep_unpacked:
            assert isinstance(packed, PackedLinear)
            packed = _plain(packed)
        if rests_on is not None:
            packed.to(rests_on)
        module.set_submodule(name, packed)
    return len(linears)


def _plain(packed: PackedLinear) -> nn.Linear:
    linear = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(packed.unpacked().to(packed.compute_dtype), requires_grad=False)
    linear.bias = packed.bias
    return linear
