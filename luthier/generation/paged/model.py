"""A model with a paged cache: slots for rows, reading prompts, one step of decoding for many rows.

The last token, the length and the pages of each slot live on the device, so a step needs nothing from the host but
the numbers of the slots (when they change) and new pages (once in 64 tokens a row). A caller may start the next step
before it has seen the tokens of the last one: `Handed` brings them over meanwhile.

    loop:   step n+1 is started  ->  tokens of step n arrive  ->  text, stops, rows that leave and enter

On a GPU a step is recorded as a CUDA graph for a few numbers of rows, and replayed with the rest filled up by rows
that write to nobody's page.

Legend: R rows, N new tokens, S slots, W pages a slot can have, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton
from luthier.generation.paged.attention import NAME, Step, register
from luthier.generation.paged.graphs import Graphs
from luthier.generation.paged.kernels import Look
from luthier.generation.paged.norms import fused_norms
from luthier.generation.paged.pool import PAGE_TOKENS, NoPages, PagePool, pages_for

__all__ = ["Handed", "PagedModel", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Keys and values of a model."""

    layers: int
    heads: int
    head_size: int


class Handed:
    """Numbers on their way from the device; the stream goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = numbers.clone()

    def wait(self) -> list[int]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        found: list[int] = self._host.tolist()
        return found


class PagedModel:
    """Slots of one model.

    Args:
        inner: A model that `support.shape_of` accepts, in eval mode.
        shape: From there.
        slots: Most rows at once.
        tokens: Tokens that the pages hold together.
        context: Most tokens of one row.
        graphs: Record steps on a GPU.
    """

    def __init__(self, inner: Any, shape: Shape, *, slots: int, tokens: int, context: int, graphs: bool = True) -> None:
        self.inner, self.device = inner, inner.device
        self.slots, self.context = slots, context
        self.pool = PagePool(
            layers=shape.layers, heads=shape.heads, head_size=shape.head_size, pages=max(1, tokens // PAGE_TOKENS),
            dtype=inner.dtype, device=self.device,
        )  # fmt: skip
        # Slot number `slots` is nobody's: it fills up batches and owns page 0 only.
        self.last = torch.zeros(slots + 1, dtype=torch.long, device=self.device)
        self.sizes = torch.zeros(slots + 1, dtype=torch.int32, device=self.device)
        self.tables = torch.zeros(slots + 1, pages_for(context), dtype=torch.int32, device=self.device)
        self.lengths = [0] * slots
        """Tokens of each slot, those of a step that was only started included."""
        self.pages: list[list[int]] = [[] for _ in range(slots)]
        self._free = list(range(slots - 1, -1, -1))
        self._new_pages: list[tuple[int, int, int]] = []
        self._counting = torch.arange(slots + 65, dtype=torch.int32, device=self.device)
        self._chosen: tuple[list[int], Tensor] | None = None
        self.logits: Tensor
        """(R, V) of the last `decode`, in the model's dtype; overwritten by the next."""
        self.graphs = Graphs(self._step, slots, self.device) if graphs and self.device.type == "cuda" else None

    # --- slots ----------------------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """Slots that can be opened."""
        return len(self._free)

    def open(self) -> int:
        """An empty slot."""
        return self._free.pop()

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """Let an empty slot begin with full pages of others."""
        self.pool.share(pages)
        self.pages[slot] = list(pages)
        self._new_pages += [(slot, place, page) for place, page in enumerate(pages)]
        self.lengths[slot] = len(pages) * PAGE_TOKENS

    def close(self, slot: int) -> None:
        """Give a slot and its pages back. Steps that were started before may still write there: they come first."""
        self.pool.release(self.pages[slot])
        self.pages[slot], self.lengths[slot] = [], 0
        self._free.append(slot)

    def missing(self, slot: int, new: int = 1) -> int:
        """Pages that `new` more tokens of a slot need."""
        return max(0, pages_for(self.lengths[slot] + new) - len(self.pages[slot]))

    def full_pages(self, slot: int, tokens: int) -> list[int]:
        """Pages that hold nothing but the first `tokens` tokens of a slot."""
        return self.pages[slot][: tokens // PAGE_TOKENS]

    def _grow(self, slot: int, new: int) -> None:
        count = self.missing(slot, new)
        if count:
            taken = self.pool.take(count)
            self._new_pages += [(slot, len(self.pages[slot]) + place, page) for place, page in enumerate(taken)]
            self.pages[slot] += taken

    def _send_pages(self) -> None:
        if self._new_pages:
            slot, place, page = self._sent(list(zip(*self._new_pages, strict=True)))
            self.tables[slot, place] = page.int()
            self._new_pages = []

    def _sent(self, numbers: Any, dtype: torch.dtype = torch.long) -> Tensor:
        """Numbers on the device, without waiting for it."""
        made = torch.tensor(numbers, dtype=dtype)
        return made.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else made

    # --- forwards -------------------------------------------------------------------------------------------------

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Models call the paged attention meanwhile; afterwards everything is as it was."""
        register()
        configs = {id(m.config): m.config for m in self.inner.modules() if hasattr(m, "config")}.values()
        own = [(config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")]
        try:
            with fused_norms(self.inner) if uses_triton(self.pool.data) else nullcontext():
                for config, _ in own:
                    config._attn_implementation = NAME
                yield
        finally:
            for config, name in own:
                config._attn_implementation = name
            if self.graphs is not None:
                self.graphs.clear()

    def read(self, parts: Sequence[tuple[int, Sequence[int]]], seen: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Read new tokens of some slots; (R,) the likeliest next ones as in `decode`, and their (R, V) logits.

        Args:
            parts: Slot and tokens.
            seen: Takes the layers' numbers.

        Raises:
            NoPages: nothing was read then.
        """
        if sum(self.missing(slot, len(tokens)) for slot, tokens in parts) > self.pool.free:
            raise NoPages
        ids: list[int] = []
        positions: list[int] = []
        at: list[int] = []
        starts = [0]
        for slot, tokens in parts:
            self._grow(slot, len(tokens))
            before, pages = self.lengths[slot], self.pages[slot]
            ids += tokens
            places = range(before, before + len(tokens))
            positions += places
            at += [pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS for place in places]
            starts.append(len(ids))
        fresh = all(not self.lengths[slot] for slot, _ in parts)
        for slot, tokens in parts:
            self.lengths[slot] += len(tokens)
        self._send_pages()
        numbers = [slot for slot, _ in parts]
        slots, lengths = self._sent([numbers, [self.lengths[slot] for slot in numbers]])
        look = Look(
            slots, self.tables, lengths.int(), self._sent(starts, torch.int32), max(len(tokens) for _, tokens in parts)
        )
        packed = self._sent([ids, positions, at])
        logits = self.inner(
            input_ids=packed[:1], position_ids=packed[1:2], use_cache=False,
            logits_to_keep=self._sent([end - 1 for end in starts[1:]]),
            luthier_step=Step(self.pool, look, packed[2], fresh, seen),
        ).logits[0]  # fmt: skip
        tokens, finite = _likeliest(logits)
        self.sizes[slots] = look.lengths
        self.last[slots] = tokens
        return finite, logits

    def decode(self, slots: Sequence[int], variant: Hashable = None) -> Tensor:
        """Read the last token of each slot; (R,) the likeliest next ones (-1: not finite), which become the last.

        Copy what is returned, and `logits`, before the next call.

        Args:
            slots: Rows.
            variant: Whatever else the forward depends on, beside tensors that stay where they are (adapters).

        Raises:
            NoPages: nothing was done then.
        """
        if sum(map(self.missing, slots)) > self.pool.free:
            raise NoPages
        for slot in slots:
            self._grow(slot, 1)
            self.lengths[slot] += 1
        self._send_pages()
        replayed = self.graphs is not None and self.graphs.replay(slots, variant)
        if replayed:
            tokens, self.logits = replayed
        else:
            if self._chosen is None or self._chosen[0] != list(slots):
                self._chosen = (list(slots), self._sent(list(slots)))
            tokens, self.logits = self._step(self._chosen[1])
        return tokens

    def set_last(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Tokens that were chosen instead of the likeliest; negative ones (not finite) are taken for 0."""
        self.last[self._sent(list(slots))] = tokens.clamp(min=0).to(self.device)

    def _step(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """A step of decoding, on device data only: this is what graphs record."""
        rows = slots.shape[0]
        before = self.sizes[slots].long()
        page = self.tables[slots, before // PAGE_TOKENS].long()
        lengths = (before + 1).int()
        look = Look(slots, self.tables, lengths, self._counting[: rows + 1], 1)
        step = Step(self.pool, look, page * PAGE_TOKENS + before % PAGE_TOKENS, fresh=False)
        logits = self.inner(
            input_ids=self.last[slots][:, None], position_ids=before[:, None], use_cache=False, luthier_step=step
        ).logits[:, -1]
        tokens, finite = _likeliest(logits)
        self.sizes[slots] = lengths
        self.last[slots] = tokens
        self.sizes[self.slots :].zero_()
        return finite, logits


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) tokens, and the same with -1 where logits are not finite."""
    best, tokens = logits.max(dim=-1)
    return tokens, torch.where(best.isfinite(), tokens, -1)
