"""Values for a model that was made without them: each process reads its own rows of each tensor.

    empty(model)       every parameter without values becomes one on torch's `meta` device, which `fully_shard` shards
    fill(places, ...)  the shards get their values, tensor by tensor, in the order of the model

At any time a process holds its shards and the rows of one tensor. Where the files cannot be read by rows, process 0
holds the model and the others one tensor. A value that is not finite is found here, and told by all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.model.hollow import Values
from luthier.model.weights import non_finite_tensors, refuse_non_finite
from luthier.runtime.console import progress
from luthier.runtime.errors import RunFailed
from luthier.runtime.heartbeat import mark
from luthier.train.distributed.local import as_sharded, my_rows

__all__ = ["Place", "empty", "fill"]

_MAPPED_BYTES = 64 << 20  # of a file, before it is opened anew: pages that were read count as memory of the process


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter without values, wherever it is in the model."""

    name: str
    """Of its tensor."""
    owners: tuple[tuple[nn.Module, str], ...]
    """(module, attribute): several for a shared parameter."""

    @property
    def parameter(self) -> Any:
        """What is there now."""
        module, leaf = self.owners[0]
        return getattr(module, leaf)


def empty(model: nn.Module, values: Values) -> list[Place]:
    """Put parameters on `meta` in place of those without values; returns where they are."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    hollow: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in values.names:
                owners.setdefault(id(parameter), []).append((module, leaf))
                hollow[id(parameter)] = parameter
    places = []
    for key, parameter in hollow.items():
        meta = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        fresh = nn.Parameter(meta, requires_grad=parameter.requires_grad)
        for module, leaf in owners[key]:
            setattr(module, leaf, fresh)
        places.append(Place(values.names[key], tuple(owners[key])))
    return places


def fill(places: Sequence[Place], values: Values, device: torch.device, *, to_host: bool) -> None:
    """Read the shards of this process; called by all together, after `fully_shard`.

    Args:
        places: of `empty`.
        values: where they are.
        device: of the passes.
        to_host: shards stay in host memory.

    Raises:
        RunFailed: a tensor holds NaN or infinity: in all processes, with the names that any of them found.
    """
    mark("load weights", watched=False)
    bad: list[str] = []
    rows = _sent(places, values, device) if not values.files else _read(places, values)
    with progress("loading weights", len(places), "tensors") as bar:
        for place, local in rows:
            like = place.parameter
            target = torch.device("cpu") if to_host else device
            shard = local.to(device=target, dtype=like.dtype, copy=True)
            bad += non_finite_tensors({place.name: shard})
            _put(place, as_sharded(shard, like))
            bar.advance()
    _refuse_together(bad, values.where)


def _put(place: Place, sharded: Any) -> None:
    """As torch loads a state dict into a sharded module; FSDP2 pads, pins and keeps what it is given."""
    module, leaf = place.owners[0]
    module.load_state_dict({leaf: sharded}, strict=False, assign=True)
    for other, name in place.owners[1:]:
        setattr(other, name, getattr(module, leaf))


def _read(places: Sequence[Place], values: Values) -> Iterator[tuple[Place, Tensor]]:
    """Own rows of each tensor, as the file has them: a view of the mapped file, to be copied before the next."""
    from safetensors import safe_open

    file: Path | None = None
    stream: Any = None
    read = 0
    for place in places:
        if values.files[place.name] != file or read > _MAPPED_BYTES:
            file, read = values.files[place.name], 0
            stream = safe_open(file, framework="pt")
        first, last = my_rows(place.parameter)
        view = stream.get_slice(place.name)
        local = view[first:last]
        read += local.nbytes
        yield place, local
        del local, view


def _sent(places: Sequence[Place], values: Values, device: torch.device) -> Iterator[tuple[Place, Tensor]]:
    """Own rows of each tensor of process 0, one whole tensor on the device at a time."""
    import torch.distributed as dist

    theirs: list[Any] = [[place.name for place in places]]
    dist.broadcast_object_list(theirs, 0)
    odd = sorted(set(theirs[0]) ^ {place.name for place in places})
    if odd:
        raise RunFailed(
            code="L242", message=f"process 0 and process {dist.get_rank()} made other models: {', '.join(odd[:3])}",
            hint="`distributed.strategy: ddp`; the files and config.json do not agree on what is shared",
        )  # fmt: skip
    for place in places:
        like = place.parameter
        if dist.get_rank() == 0:
            whole = values.held.pop(place.name).to(device=device, dtype=like.dtype)
        else:
            whole = torch.empty(like.shape, dtype=like.dtype, device=device)
        dist.broadcast(whole, 0)
        first, last = my_rows(like)
        yield place, whole[first:last]
        del whole


def _refuse_together(bad: Sequence[str], where: str) -> None:
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, list(bad))
    refuse_non_finite(sorted({name for names in found for name in names}), where=where)
