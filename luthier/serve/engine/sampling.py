"""Choose the next token of every row: one pass over (R, V) logits, one seeded generator a row.

A row's choice depends on its own logits and its own generator only. A uniform number u from the
row's generator picks the first token whose cumulated probability exceeds u.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from luthier.serve.engine.grammar import GrammarState
from luthier.serve.engine.request import Sampling, TokenInfo

__all__ = ["Chooser", "choose", "choose_free"]

# `top_p` looks at so many likeliest tokens first; sorting a whole vocabulary costs milliseconds a row.
NUCLEUS_TOKENS = 1_024


class Chooser:
    """The state of one row: its generator, what it has said, what its grammar allows."""

    def __init__(self, sampling: Sampling, grammar: GrammarState | None = None) -> None:
        self.sampling, self.grammar = sampling, grammar
        self.said: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(seed % (1 << 63))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen as it is."""
        return self.sampling.temperature == 0 and not self.sampling.logit_bias and self.free

    @property
    def free(self) -> bool:
        """Whether the next token can be chosen before the last one is known to the host."""
        settings = self.sampling
        penalties = settings.presence_penalty or settings.frequency_penalty
        return self.grammar is None and not penalties and settings.logprobs is None

    def uniform(self) -> float:
        """The next number of the row's generator, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def accept(self, token: int) -> None:
        """The row has said this token."""
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self.said[token] += 1
        if self.grammar is not None:
            self.grammar.accept(token)


def choose(logits: Tensor, rows: Sequence[Chooser]) -> tuple[list[int | None], list[TokenInfo | None]]:
    """The next token of each row (None: its logits are not finite), and its log-probability where asked for.

    Args:
        logits: (R, V) float32; changed in place.
        rows: State of each row; `accept` is left to the caller.
    """
    broken = torch.isnan(logits.amax(dim=-1)).tolist()
    asked = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
    log_probs = torch.log_softmax(logits[asked], dim=-1) if asked else None
    tokens = _choose(logits, rows, [index for index in range(len(rows)) if not broken[index]])
    infos: list[TokenInfo | None] = [None] * len(rows)
    chosen = tokens.tolist()
    if log_probs is not None:
        for place, index in enumerate(asked):
            if not broken[index]:
                infos[index] = _info(log_probs[place], chosen[index], rows[index].sampling.logprobs or 0)
    return [None if bad else token for token, bad in zip(chosen, broken, strict=True)], infos


def choose_free(logits: Tensor, rows: Sequence[Chooser]) -> Tensor:
    """The next token of each row on the logits' device, -1 where they are not finite. All rows must be `free`.

    Args:
        logits: (R, V) float32; changed in place.
        rows: State of each row.
    """
    broken = torch.isnan(logits.amax(dim=-1))
    return _choose(logits, rows, range(len(rows))).masked_fill(broken, -1)


def _choose(logits: Tensor, rows: Sequence[Chooser], sound: Iterable[int]) -> Tensor:
    _adjust(logits, rows)
    tokens = logits.argmax(dim=-1)
    drawn = [index for index in sound if rows[index].sampling.temperature > 0]
    for nucleus in (False, True):
        part = [index for index in drawn if (rows[index].sampling.top_p < 1.0) == nucleus]
        if part:
            tokens[part] = _draw(logits[part], [rows[index] for index in part], nucleus=nucleus)
    return tokens


def _adjust(logits: Tensor, rows: Sequence[Chooser]) -> None:
    """Penalties, biases and grammars."""
    where: list[int] = []
    ids: list[int] = []
    change: list[float] = []
    for index, row in enumerate(rows):
        settings = row.sampling
        for token, count in row.said.items():
            where.append(index)
            ids.append(token)
            change.append(-settings.presence_penalty - settings.frequency_penalty * count)
        for token, bias in settings.logit_bias.items():
            where.append(index)
            ids.append(token)
            change.append(bias)
    if where:
        device = logits.device
        places = (torch.tensor(where, device=device), torch.tensor(ids, device=device))
        logits.index_put_(places, torch.tensor(change, dtype=logits.dtype, device=device), accumulate=True)
    for index, row in enumerate(rows):
        if row.grammar is not None:
            row.grammar.mask(logits[index])


def _draw(logits: Tensor, rows: Sequence[Chooser], *, nucleus: bool) -> Tensor:
    """Sampled tokens, (R,)."""
    heat = torch.tensor([row.sampling.temperature for row in rows], dtype=torch.float64, device=logits.device)
    # The largest logit is moved to 0 first: a temperature near 0 must not overflow.
    probabilities = torch.softmax((logits.double() - logits.amax(dim=-1, keepdim=True)) / heat[:, None], dim=-1)
    order = None
    if nucleus:
        probabilities, order = _nucleus(probabilities, rows)
    cumulated = probabilities.cumsum(dim=-1)
    numbers = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=logits.device)
    found = torch.searchsorted(cumulated, numbers[:, None] * cumulated[:, -1:], right=True)
    # Rounding can lead behind the last token with any probability.
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    found = torch.minimum(found, last)
    return (found if order is None else order.gather(-1, found))[:, 0]


def _nucleus(probabilities: Tensor, rows: Sequence[Chooser]) -> tuple[Tensor, Tensor]:
    """Probabilities in descending order with 0 outside of `top_p`, and the ids they belong to."""
    share = torch.tensor([row.sampling.top_p for row in rows], dtype=torch.float64, device=probabilities.device)
    size = min(NUCLEUS_TOKENS, probabilities.shape[-1])
    best, order = probabilities.topk(size, dim=-1)
    if size < probabilities.shape[-1] and bool((best.sum(dim=-1) < share).any()):
        best, order = probabilities.sort(dim=-1, descending=True)
    before = best.cumsum(dim=-1) - best
    outside = before >= share[:, None]
    outside[:, 0] = False
    return best.masked_fill(outside, 0.0), order


def _info(log_probs: Tensor, token: int, count: int) -> TokenInfo:
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = log_probs.topk(min(count, log_probs.shape[-1]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenInfo(token, float(log_probs[token]), top)
