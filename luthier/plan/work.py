"""What there is to train on: number and lengths of documents, and how they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.runtime.errors import DataError

__all__ = ["Documents", "assumed_documents", "documents_from_lengths", "documents_from_manifest"]

MEAN_TOKENS = 300
"""Assumed tokens of a document when nothing is known: a chat turn or two."""
ROWS = 10_000
SUPERVISED = 0.6
PACK_FILL = 0.97
"""Share of a pack that is filled: 98% at 1,024 tokens on GSM8K (shared/research/perf.md, f)."""
SPREAD = 1.35
"""Mean of n^2 over squared mean of n, for chat data: a coefficient of variation of 0.6; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Training rows of one epoch."""

    rows: int
    tokens: int
    squares: float
    """Sum of n^2 over documents: what attention costs."""
    supervised: float
    """Share of the tokens with a loss."""
    sequences: int
    """Packs; rows without packing."""
    longest_sequence: int
    """Tokens of the largest pack or row."""
    how: str
    """How this is known."""

    @property
    def mean_tokens(self) -> float:
        """Of a document."""
        return self.tokens / self.rows

    @property
    def sequence_tokens(self) -> float:
        """Mean of a sequence."""
        return self.tokens / self.sequences

    @property
    def squares_per_token(self) -> float:
        """Sum of n^2 by sum of n: the length a token sees, on average."""
        return self.squares / self.tokens

    def with_how(self, how: str) -> Documents:
        """The same with another account of how it is known."""
        return replace(self, how=how)


def assumed_documents(
    *, max_length: int, packing: bool, mean_tokens: int | None, rows: int | None, how: str | None = None,
    supervised: float = SUPERVISED,
) -> Documents:  # fmt: skip
    """Documents of an assumed mean length; what is not given is an assumption that `how` states."""
    mean = min(mean_tokens or MEAN_TOKENS, max_length)
    count = rows or ROWS
    given = [
        f"{count:,} rows" + ("" if rows else " (assumed)"),
        f"{mean:,} tokens a row" + ("" if mean_tokens else " (assumed)"),
    ]
    longest = max_length if packing else min(max_length, round(2.5 * mean))
    sequences = _sequences(count, count * mean, max_length) if packing else count
    return Documents(
        rows=count, tokens=count * mean, squares=count * min(SPREAD * mean * mean, mean * max_length),
        supervised=supervised, sequences=sequences, longest_sequence=longest,
        how=how or f"{', '.join(given)}, {supervised:.0%} of the tokens trained (assumed)",
    )  # fmt: skip


def documents_from_lengths(
    lengths: Sequence[tuple[int, int, float]], *, max_length: int, packing: bool, overlong: str, how: str
) -> Documents:
    """From (tokens, trained tokens, how often) of rows; rows above `max_length` are dropped, or cut for `truncate`.

    Raises:
        DataError: no row is left.
    """
    kept = [(min(total, max_length), trained, times) for total, trained, times in lengths if total <= max_length]
    if overlong == "truncate":
        kept += [
            (max_length, max(1, trained * max_length // total), n)
            for total, trained, n in lengths
            if total > max_length
        ]
    tokens = round(sum(total * times for total, _, times in kept))
    if not tokens:
        raise DataError(code="D225", message=f"every row looks longer than {max_length} tokens")
    rows = max(1, round(sum(times for _, _, times in kept)))
    return Documents(
        rows=rows, tokens=tokens, squares=sum(total * total * times for total, _, times in kept),
        supervised=min(1.0, sum(trained * times for _, trained, times in kept) / tokens),
        sequences=_sequences(rows, tokens, max_length) if packing else rows,
        longest_sequence=min(max_length, tokens) if packing else max(total for total, _, _ in kept), how=how,
    )  # fmt: skip


def _sequences(rows: int, tokens: int, max_length: int) -> int:
    """Packs of `max_length` tokens that best-fit packing makes."""
    return max(1, min(rows, max(round(tokens / (PACK_FILL * max_length)), -(-tokens // max_length))))


def documents_from_manifest(manifest: dict[str, object], *, max_length: int, packing: bool, how: str) -> Documents:
    """From `data/manifest.json` of a finished data stage: exact counts, squares from the histogram of lengths."""
    lengths = manifest["lengths"]
    assert isinstance(lengths, dict)
    rows, tokens = int(str(manifest["rows_used"])), int(str(manifest["tokens"]))
    histogram = [(low, high, count) for low, high, count in lengths["histogram"]]
    raw = sum(count * ((low + high - 1) / 2) ** 2 for low, high, count in histogram)
    linear = sum(count * (low + high - 1) / 2 for low, high, count in histogram)
    squares = raw * (tokens / linear) if linear else float(tokens)
    longest = int(str(manifest.get("pack_capacity", max_length))) if packing else int(lengths["max"])
    return Documents(
        rows=rows, tokens=tokens, squares=max(squares, tokens * tokens / rows),
        supervised=float(str(manifest["trained_fraction"])), sequences=int(str(manifest["packs"])),
        longest_sequence=min(longest, tokens), how=how,
    )  # fmt: skip
