"""The part of a sharded tensor (DTensor, sharded on its first axis) that this process holds. The tensor may be there
several times (`mesh.py`): each copy is in as many parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_sharded", "copies_of", "local", "my_rows", "parts_of", "whole"]


def local(tensor: Any) -> Tensor:
    """The part itself, without gradient."""
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def parts_of(tensor: Any) -> int:
    """How many processes hold one copy together."""
    sizes = [tensor.device_mesh.size(axis) for axis, how in enumerate(tensor.placements) if how.is_shard()]
    return math.prod(sizes)


def copies_of(tensor: Any) -> int:
    """How many processes hold the same part."""
    return int(tensor.device_mesh.size()) // parts_of(tensor)


def my_rows(tensor: Any) -> tuple[int, int]:
    """First row and the one after the last; equal where there are fewer rows than processes."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    first = min(offset[0], tensor.shape[0])
    return first, first + shape[0]


def as_sharded(part: Tensor, like: Any) -> Any:
    """The sharded tensor of the shape and placement of `like` of which this process holds `part`, where it is now.

    torch's `DTensor.from_local` would move a part in host memory to the device.
    """
    from torch.distributed.tensor import DTensor

    if part.device.type != like.device_mesh.device_type:
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

        meta = TensorMeta(like.shape, like.stride(), part.dtype)
        return DTensor(part, DTensorSpec(like.device_mesh, like.placements, tensor_meta=meta), requires_grad=False)
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Any) -> Tensor:
    """All parts together, on the device; called by all processes. A plain tensor is what it is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        plain: Tensor = tensor.detach()
        return plain
    part = local(tensor.detach())
    if part.device.type != tensor.device_mesh.device_type:  # offloaded: only the device's parts can be exchanged
        tensor = as_sharded(part.to(_device_of(tensor.device_mesh)), tensor)
    full: Tensor = tensor.detach().full_tensor()
    return full


def _device_of(mesh: Any) -> torch.device:
    if mesh.device_type != "cuda":
        return torch.device(mesh.device_type)
    return torch.device("cuda", torch.cuda.current_device())
