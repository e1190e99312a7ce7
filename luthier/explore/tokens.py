"""Tokens of rows, small enough for a page: lengths and runs of kinds; the text is put together from the turns.

A rendered row is the texts of its turns with the template around them. Texts that stand in it as they are in the row
are referred to by their number, so the page holds each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from luthier.data.describe import token_parts, token_texts
from luthier.data.encode import Encoder
from luthier.data.types import TrainRow
from luthier.explore.turns import Turn

__all__ = ["KINDS", "TokenPacker", "unpack_text"]

KINDS = ("context", "trained", "special", "chosen", "rejected")


class TokenPacker:
    """Packs rows of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.encoder = Encoder(tokenizer)
        self._texts: dict[int, str] = {}

    def pack(self, row: TrainRow, turns: Sequence[Turn]) -> dict[str, Any]:
        """Keys: `p` (pieces of the rendered text: a text, or the number of a turn), `l` (length of each token in
        UTF-16 units, as JavaScript counts), `k` (runs: number of a kind in `KINDS`, tokens, ...)."""
        texts: list[str] = []
        kinds: list[int] = []
        control = self.encoder.control_ids
        for name, ids, weights in token_parts(row):
            texts += token_texts(ids, self.encoder, self._texts)
            counts = KINDS.index("trained" if name == "row" else name if name in KINDS else "context")
            kinds += [
                counts if weight else 2 if token in control else 0 for token, weight in zip(ids, weights, strict=True)
            ]
        text = "".join(texts)
        lengths = list(map(len, texts)) if text.isascii() else [_units(piece) for piece in texts]
        runs = [number for kind, run in groupby(kinds) for number in (kind, sum(1 for _ in run))]
        return {"p": _pieces(text, turns), "l": lengths, "k": runs}


def unpack_text(packed: dict[str, Any], turns: Sequence[str]) -> str:
    """The rendered text of a packed row, from the texts of its turns: what the page does."""
    return "".join(piece if isinstance(piece, str) else turns[piece] for piece in packed["p"])


def _pieces(text: str, turns: Sequence[Turn]) -> list[str | int]:
    pieces: list[str | int] = []
    place = 0
    for number, turn in enumerate(turns):
        found = text.find(turn.text, place) if turn.text else -1
        if found < 0:
            continue
        if found > place:
            pieces.append(text[place:found])
        pieces.append(number)
        place = found + len(turn.text)
    return [*pieces, text[place:]] if place < len(text) else pieces


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
