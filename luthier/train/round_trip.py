"""Updates of tensors in host memory by the device's kernel: they go there in pieces and come back (`offload`).

    up      masters and moments of the next piece    a stream of its own
    update  this piece, by the kernel                the device's current stream
    down    masters and moments of the last piece    a stream of its own

Both ways are used at once, so a step takes max(up, down) of the bytes over the link, not the time of a CPU update
(ZeRO-Offload, arXiv:2101.06840, has the CPU update; a link of 50 GB/s carries 12 bytes a weight faster than the memory
of most hosts serves an update of 28). The numbers are those of an update on the device, bit for bit.

Host memory that takes part is pinned where it is (`cudaHostRegister`: torch's own pinned memory is rounded up to powers
of two) when it is first seen, and released with the object, or by `release`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.fast.kernels.maps8 import BLOCK
from luthier.runtime.console import note
from luthier.train import foreach

__all__ = ["AT_ONCE", "PIECE", "AtOnce", "RoundTrip"]

PIECE = 32 << 20
"""Elements of one piece: 384 MiB of fp32 masters and moments."""
SAID = 4 << 30
"""Bytes from which pinning is said: it takes seconds."""
IN_FLIGHT = 2
"""Pieces on the device beside the one at work."""
Kernel = Callable[..., None]
Lists = Sequence[Sequence[Tensor]]


class AtOnce:
    """All tensors where they are."""

    def update(self, kernel: Kernel, lists: Lists, **settings: Any) -> None:
        """`kernel` on (masters, live parameters, gradients, states...)."""
        kernel(*lists, **settings)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Euclidean norm of all together."""
        return foreach.total_norm(gradients)

    def release(self) -> None:
        """Let go of tensors that were updated; those that come again are taken up again."""


AT_ONCE = AtOnce()


@dataclass(slots=True)
class _Piece:
    """Part of the work: for each tensor its number and the elements from `first` to `last`."""

    parts: list[tuple[int, int, int]]
    there: list[list[Tensor]]
    """The lists' tensors of these parts, on the device."""
    arrived: Any = None
    gone: Any = None


class RoundTrip(AtOnce):
    """Of tensors that are on `device` nothing moves; of others masters, parameters and states come back changed."""

    def __init__(self, device: torch.device, *, piece: int = PIECE) -> None:
        """`piece`: elements of masters that travel together, a multiple of a block of 8-bit moments (256)."""
        assert piece % BLOCK == 0, "pieces are whole blocks"
        self.device, self.piece = device, piece
        self._cuda, self._refused = device.type == "cuda", False
        self._up, self._down = (torch.cuda.Stream(device) if self._cuda else None for _ in range(2))
        self._seen: dict[int, Tensor] = {}
        self._pinned: list[Tensor] = []
        if self._cuda:
            weakref.finalize(self, _release, self._pinned).atexit = False

    def update(self, kernel: Kernel, lists: Lists, **settings: Any) -> None:
        """As `AtOnce.update`; when it returns, host memory holds the new values."""
        if self._cuda:
            self._pin([one for tensors in (lists[0], *lists[3:]) for one in tensors])
        try:
            self._travel(kernel, lists, settings)
        finally:  # also after an error: nothing is under way when memory of a piece or of the host is used again
            for stream in (self._up, self._down):
                if stream is not None:
                    stream.synchronize()

    def _travel(self, kernel: Kernel, lists: Lists, settings: dict[str, Any]) -> None:
        pieces = self._pieces([tensor.numel() for tensor in lists[0]])
        leaving: deque[_Piece] = deque()
        # A scale on the device may be NaN: then the kernel writes nothing, and what goes back is what came.
        whole = isinstance(settings.get("grad_scale"), Tensor)
        coming = self._bring(next(pieces, None), lists, whole=whole)
        while coming is not None:
            here = coming
            if len(leaving) == IN_FLIGHT:
                self._forget(leaving.popleft())
            coming = self._bring(next(pieces, None), lists, whole=whole)
            if here.arrived is not None:
                torch.cuda.current_stream(self.device).wait_event(here.arrived)
            kernel(*here.there, **settings)
            self._send(here, lists)
            leaving.append(here)
        while leaving:
            self._forget(leaving.popleft())

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """As `AtOnce.norm`, on the device: a CPU takes longer to add the squares than the link to carry them."""
        norms: list[Tensor] = []
        for bucket in foreach.buckets([(gradient, gradient) for gradient in gradients], 4 * self.piece):
            norms += foreach.norms([one.to(self.device, non_blocking=True) for one, _ in bucket])
        return torch.linalg.vector_norm(torch.stack(norms))

    def release(self) -> None:
        """As `AtOnce.release`: the pages of all of them are the host's again."""
        _release(self._pinned)
        self._seen.clear()

    # -- pieces

    def _pieces(self, sizes: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
        """Parts of all tensors, in order, `piece` elements at a time."""
        parts: list[tuple[int, int, int]] = []
        room = self.piece
        for number, size in enumerate(sizes):
            first = 0
            while first < size:
                # A block of 8-bit moments is never cut.
                last = min(size, first + room)
                parts.append((number, first, last))
                room -= -(-(last - first) // BLOCK) * BLOCK
                first = last
                if room <= 0:
                    yield parts
                    parts, room = [], self.piece
        if parts:
            yield parts

    def _bring(self, parts: list[tuple[int, int, int]] | None, lists: Lists, *, whole: bool) -> _Piece | None:
        """Begin to bring a piece to the device; parameters, which the kernel only writes, too if it is `whole`."""
        if parts is None:
            return None
        piece = _Piece(parts, [[] for _ in lists])
        waiting: list[tuple[Tensor, Tensor]] = []
        for number, first, last in parts:
            master = lists[0][number]
            for role, tensors in enumerate(lists):
                source = _part(tensors[number], master.numel(), first, last)
                if role == 1 and tensors[number] is master:
                    there = piece.there[0][-1]
                elif self._stays(source):
                    there = source
                else:
                    there = torch.empty_like(source, device=self.device)
                    if role != 1 or whole:
                        waiting.append((there, source))
                piece.there[role].append(there)
        self._copy(waiting, self._up)
        if self._up is not None:
            piece.arrived = self._up.record_event()
        return piece

    def _send(self, piece: _Piece, lists: Lists) -> None:
        """Begin to bring a piece back."""
        waiting = []
        for place, (number, first, last) in enumerate(piece.parts):
            master = lists[0][number]
            for role, tensors in enumerate(lists):
                target, there = tensors[number], piece.there[role][place]
                same = role == 1 and target is master
                if role != 2 and not same and not self._stays(target):
                    waiting.append((_part(target, master.numel(), first, last), there))
        self._copy(waiting, self._down)
        if self._down is not None:
            piece.gone = self._down.record_event()

    def _copy(self, pairs: Sequence[tuple[Tensor, Tensor]], stream: Any) -> None:
        """Copies behind all that the device was told so far."""
        if stream is None:
            for target, source in pairs:
                target.copy_(source)
            return
        stream.wait_event(torch.cuda.current_stream(self.device).record_event())
        with torch.cuda.stream(stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def _forget(self, piece: _Piece) -> None:
        """Its memory on the device may be used again."""
        if piece.gone is not None:
            torch.cuda.current_stream(self.device).wait_event(piece.gone)
        piece.there.clear()

    def _stays(self, tensor: Tensor) -> bool:
        return bool(tensor.device.type == self.device.type)

    # -- host memory

    def _pin(self, tensors: Sequence[Tensor]) -> None:
        fresh = [one for one in tensors if not self._stays(one) and one.data_ptr() not in self._seen]
        if (size := sum(one.nbytes for one in fresh)) > SAID:
            note(f"  offload: {size / 2**30:,.1f} GiB of host memory are pinned, once, at a few GiB a second")
        for one in fresh:
            tensor = one.detach()  # holds these pages, also if the parameter gets others
            self._seen[tensor.data_ptr()] = tensor
            if tensor.is_pinned():
                continue
            error = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
            if not error:
                self._pinned.append(tensor)
                continue
            _clear_error(self.device)
            if not self._refused:
                self._refused = True
                note(f"  offload: host memory could not be pinned (CUDA error {error}): copies wait for one another")


def _release(pinned: list[Tensor]) -> None:
    """Give the pages back; the tensors are held until then, so no address is another's."""
    for tensor in pinned:
        torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
    pinned.clear()


def _clear_error(device: torch.device) -> None:
    """A call that was refused leaves its error to the next kernel that torch launches: here, to one for nothing."""
    with suppress(RuntimeError):
        torch.ones((), device=device).add_(1)


def _part(tensor: Tensor, elements: int, first: int, last: int) -> Tensor:
    """Elements `first` to `last`, flat; of a tensor with a number for each block of `elements`, those blocks'."""
    flat = tensor.detach().view(-1)
    if flat.numel() == elements:
        return flat[first:last]
    assert flat.numel() == -(-elements // BLOCK), "a number for each element, or for each block"
    return flat[first // BLOCK : -(-last // BLOCK)]
