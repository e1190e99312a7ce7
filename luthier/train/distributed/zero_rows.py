"""DeepSpeed's partitions as the shards that a checkpoint holds: rows of each tensor, as FSDP2 cuts them.

    a matrix of 5 x 3, two processes     ZeRO-3           numbers 0 to 7 | 8 to 14 and a zero
                                         ZeRO-1, ZeRO-2   any part of it: a group's weights are cut end to end
                                         a checkpoint     rows 0 to 2 | 3 and 4: numbers 0 to 8 | 9 to 14

Each process sends the others those of its numbers that lie in their rows (`exchange`): nothing where DeepSpeed cuts
between rows as FSDP2 does, which ZeRO-3 does wherever the number of processes divides the rows. A tensor is never whole
anywhere. Bits stay what they are: nothing is added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.runtime.errors import RunFailed
from luthier.train.distributed.local import as_sharded
from luthier.train.distributed.partitions import Partitions, Span

__all__ = ["Rows", "exchange", "rows_of"]


@dataclass(frozen=True)
class _Like:
    """Shape and placement of a tensor in shards, as `as_sharded` asks for it."""

    shape: torch.Size
    device_mesh: Any
    placements: tuple[Any, ...]

    def stride(self) -> tuple[int, ...]:
        """Of a tensor whose rows lie end to end."""
        return tuple(self.shape[axis + 1 :].numel() for axis in range(len(self.shape)))


class Rows(Mapping[str, Any]):
    """Masters and moments under the names of a sharded checkpoint, as DTensors in host memory.

    Each access makes one, together with all other processes, which must ask for the same.
    """

    def __init__(self, parts: Partitions, moments: Mapping[str, Tensor | None], mesh: Any) -> None:
        """`moments`: by `NAME/KEY`, a tensor that is the same for all, or None for one that is in parts; `mesh` is of
        all processes. Called by all of them together.

        Raises:
            RunFailed: the processes do not hold each number once, in their order.
        """
        self._parts, self._mesh = parts, mesh
        self._plain = {f"optimizer/{name}": tensor for name, tensor in moments.items() if tensor is not None}
        self._keys: dict[str, tuple[str, str | None]] = {f"trainable/{name}": (name, None) for name in parts.shapes}
        for full_name, tensor in moments.items():
            if tensor is None:
                name, _, key = full_name.rpartition("/")
                self._keys[f"optimizer/{full_name}"] = (name, key)
        mine = {name: parts.span(name) for name in parts.shapes}
        listed: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(listed, (mine, [*moments]))
        self._spans = {name: [spans[name] for spans, _ in listed] for name in parts.shapes}
        odd = [name for name, spans in self._spans.items() if not _make(spans, parts.shapes[name].numel())]
        if odd or any(others != [*moments] for _, others in listed):
            spans = self._spans[odd[0]] if odd else "other moments on other processes"
            what = odd[0] if odd else "the optimizer's state"
            raise RunFailed(
                code="L317", message=f"DeepSpeed holds {what} in another way than this version reads: {spans}",
                hint="use a version of DeepSpeed that pyproject.toml allows, or `distributed.strategy: fsdp2`",
            )  # fmt: skip

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of a process' share of each; the same on all."""
        shares = {name: -(-4 * self._parts.shapes[key[0]].numel() // len(self._spans[key[0]]))
                  for name, key in self._keys.items()}  # fmt: skip
        return {**shares, **{name: tensor.nbytes for name, tensor in self._plain.items()}}

    def __getitem__(self, name: str) -> Any:
        """Exchanged when it is asked for."""
        from torch.distributed.tensor import Shard

        if name in self._plain:
            return self._plain[name].detach().to("cpu", copy=True)  # safetensors takes none that share memory
        own, key = self._keys[name]
        shape, spans = self._parts.shapes[own], self._spans[own]
        found = exchange(self._parts.part(own, key), have=spans, want=rows_of(shape, len(spans)))
        like = _Like(shape, self._mesh, (Shard(0),))
        return as_sharded(found.cpu().view(-1, *shape[1:]), like)

    def __contains__(self, name: object) -> bool:
        """Without making it."""
        return name in self._keys or name in self._plain

    def __iter__(self) -> Iterator[str]:
        yield from self._keys
        yield from self._plain

    def __len__(self) -> int:
        return len(self._keys) + len(self._plain)


def rows_of(shape: torch.Size, processes: int) -> list[Span]:
    """The numbers of each process' rows, as torch cuts the first axis (`torch.chunk`: the last ones may have none)."""
    width, most = shape[1:].numel(), -(-shape[0] // processes)
    edges = [min(rank * most, shape[0]) * width for rank in range(processes + 1)]
    return list(pairwise(edges))


def exchange(part: Tensor, *, have: Sequence[Span], want: Sequence[Span]) -> Tensor:
    """This process' `want` of a tensor of which it has `part`; called by all processes together.

    Both lists are by process; each is the tensor's numbers in their order, and none twice.
    """
    if list(have) == list(want):
        return part
    rank = dist.get_rank()
    give, take = ([_shared(one, other) for one, other in pairs] for pairs in (
        [(have[rank], wanted) for wanted in want], [(held, want[rank]) for held in have],
    ))  # fmt: skip
    found = part.new_empty(sum(take))
    dist.all_to_all_single(found, part.contiguous(), take, give)
    return found


def _shared(one: Span, other: Span) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _make(spans: Sequence[Span], numel: int) -> bool:
    """Whether they are all numbers in their order, and none twice."""
    held = [span for span in spans if span[1] > span[0]]
    edges = [0, *(last for _, last in held)]
    return all(first == edge for (first, _), edge in zip(held, edges, strict=False)) and edges[-1] == numel
