"""A row or a pack as tokens, from `luthier.data.show`: the records that `luthier data show` colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.data.types import TrainRow
from luthier.report.read import printable

__all__ = ["roles_of", "token_row"]


def token_row(
    rows: Sequence[TrainRow], turns: Sequence[Sequence[Sequence[str]]], tokenizer: Any, *, capacity: int | None = None
) -> dict[str, Any]:
    """Tokens of one row, or of the rows of a pack end to end.

    Args:
        rows: As they are trained.
        turns: Of each row, [role, text, mark].
        tokenizer: Of their model.
        capacity: Tokens that fit into the pack.
    """
    from luthier.data.show import show_rows

    found: dict[str, list[Any]] = {
        name: []
        for name in ("ids", "texts", "kinds", "roles", "positions", "weights", "documents", "refs", "trained_text")
    }
    parts: list[str] | None = None
    for record, own in zip(show_rows(rows, tokenizer), turns, strict=True):
        documents = len(found["refs"])
        for name, key in (("ids", "ids"), ("kinds", "kinds"), ("positions", "positions"), ("weights", "weights")):
            found[name] += record[key]
        found["documents"] += [documents + number for number in record["document"]]
        found["refs"] += [printable(ref.rpartition("/")[2] if ref.startswith("/") else ref) for ref in record["refs"]]
        found["trained_text"] += [printable(text) for text in record["trained_text"]]
        found["texts"] += [printable(text) for text in record["texts"]]
        found["roles"] += roles_of(record["texts"], own)
        if "parts" in record:
            parts = [*(parts or []), *record["parts"]]
    return {**found, "parts": parts, "capacity": capacity}


def roles_of(texts: Sequence[str], turns: Sequence[Sequence[str]]) -> list[str | None]:
    """The role of the turn each token lies in; None for tokens of the template.

    The turns are looked for in the rendered text one after the other. One that the template writes in another way (a
    tool call, trimmed space) is looked for without the space around it, and left out if it is not there.
    """
    whole = "".join(texts)
    spans: list[tuple[int, int, str]] = []
    place = 0
    for turn in turns:
        for text in (turn[1], turn[1].strip()):
            at = whole.find(text, place) if text else -1
            if at >= 0:
                place = at + len(text)
                spans.append((at, place, turn[0]))
                break
    roles: list[str | None] = []
    start = number = 0
    for text in texts:
        end = start + len(text)
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        inside = number < len(spans) and spans[number][0] < max(end, start + 1) and spans[number][1] > start
        roles.append(spans[number][2] if inside else None)
        start = end
    return roles
