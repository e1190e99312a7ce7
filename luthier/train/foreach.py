"""Operations over many tensors in few launches: one each would cost more than the work on a small model.

On CUDA a `_foreach` operation is a launch for hundreds of tensors; elsewhere it is a loop inside
torch. Results are those of the single operations, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["add_fp32_", "buckets", "copy_", "norms", "scale_", "to_fp32", "total_norm"]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, fp32 scalar on their device; squares are summed in fp32."""
    return torch.linalg.vector_norm(torch.stack(norms(gradients)))


def norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Of each tensor, in their order."""
    found: dict[int, Tensor] = {}
    for kind in {gradient.dtype: None for gradient in gradients}:
        places = [place for place, gradient in enumerate(gradients) if gradient.dtype == kind]
        same = [gradients[place] for place in places]
        wide = torch.promote_types(kind, torch.float32)
        found |= dict(zip(places, torch._foreach_norm(same, 2.0, dtype=wide), strict=True))
    return [found[place] for place in range(len(gradients))]


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """target = source, rounded to the target's dtype."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def scale_(tensors: Sequence[Tensor], factor: float) -> None:
    """tensor *= factor."""
    if tensors and factor != 1.0:
        torch._foreach_mul_(list(tensors), factor)


def to_fp32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Dense fp32 copies."""
    dense = torch.contiguous_format
    copies = [torch.empty_like(tensor, dtype=torch.float32, memory_format=dense) for tensor in tensors]
    copy_(copies, tensors)
    return copies


def add_fp32_(totals: Sequence[Tensor], tensors: Sequence[Tensor], *, most_bytes: int) -> None:
    """total (fp32) += tensor, with fp32 copies of at most `most_bytes` at a time."""
    for bucket in buckets(list(zip(totals, tensors, strict=True)), most_bytes):
        torch._foreach_add_([total for total, _ in bucket], to_fp32([tensor for _, tensor in bucket]))


def buckets(pairs: Sequence[tuple[Tensor, Tensor]], most_bytes: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Neighbouring pairs in groups of at most `most_bytes` of their first tensors (a larger one is alone)."""
    bucket: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pair in pairs:
        if bucket and size + pair[0].nbytes > most_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(pair)
        size += pair[0].nbytes
    if bucket:
        yield bucket
