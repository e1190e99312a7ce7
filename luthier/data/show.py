"""Rows and packs as the trainer sees them: for JSON and in colour.

Everything comes from the prepared examples themselves, never from a second tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.describe import token_texts
from luthier.data.encode import Encoder
from luthier.data.types import Example

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.data.prepare import Prepared

__all__ = ["IGNORED", "packed_records", "row_records", "row_text", "show_rows"]

IGNORED = -100
"""Label of a token that is not trained, as everywhere in this field."""

_STYLES = {"trained": "bold green", "special": "dim cyan", "context": ""}


def row_records(prepared: Prepared, tokenizer: Any, *, start: int = 0, count: int = 3) -> list[dict[str, Any]]:
    """Training rows [start, start + count), one record each; see `show_rows`."""
    return show_rows(prepared.train[start : start + count], tokenizer, first=start)


def show_rows(examples: Sequence[Example], tokenizer: Any, *, first: int = 0) -> list[dict[str, Any]]:
    """One JSON record per example.

    Keys: `row`, `refs`, `ids`, `labels` (the id where trained, else -100; not shifted), `weights`,
    `positions`, `document`, `texts` and `kinds` (trained | context | special) of the tokens, the
    `trained_text` of each document, and `notes` (what was cut or altered).
    """
    encoder = Encoder(tokenizer)
    return [_record([example], encoder) | {"row": first + place} for place, example in enumerate(examples)]


def packed_records(prepared: Prepared, tokenizer: Any, *, start: int = 0, count: int = 3) -> list[dict[str, Any]]:
    """Packs [start, start + count): as `show_rows`, several documents in one record, positions restarting in each."""
    encoder = Encoder(tokenizer)
    return [
        _record([prepared.train[row] for row in item.examples], encoder)
        | {"pack": start + place, "rows": list(item.examples)}
        for place, item in enumerate(prepared.packs[start : start + count])
    ]


def _record(examples: Sequence[Example], encoder: Encoder) -> dict[str, Any]:
    record: dict[str, Any] = {"refs": [str(example.ref) for example in examples]}
    names = ("ids", "labels", "weights", "positions", "document", "texts", "kinds")
    record |= {name: [] for name in names}
    record |= {"trained_text": [], "notes": []}
    for document, example in enumerate(examples):
        ids, weights = [int(token) for token in example.ids], [float(weight) for weight in example.weights]
        record["ids"] += ids
        record["labels"] += [token if weight else IGNORED for token, weight in zip(ids, weights, strict=True)]
        record["weights"] += weights
        record["positions"] += range(len(ids))
        record["document"] += [document] * len(ids)
        record["texts"] += token_texts(ids, encoder)
        record["kinds"] += [
            "trained" if weight else "special" if token in encoder.control_ids else "context"
            for token, weight in zip(ids, weights, strict=True)
        ]
        record["trained_text"].append(encoder.decode([t for t, w in zip(ids, weights, strict=True) if w]))
        record["notes"].append(list(example.notes))
    return record


def row_text(record: dict[str, Any], tokenizer: Any = None) -> Text:
    """A record in colour: trained green, special cyan, context plain; each document under its place in the data.

    The text of rows is data: markup in it is not interpreted, and control characters that a
    terminal would obey are shown as symbols.
    """
    from rich.text import Text

    text = Text()
    previous = -1
    for piece, kind, document, weight in zip(
        record["texts"], record["kinds"], record["document"], record["weights"], strict=True
    ):
        if document != previous:
            notes = record["notes"][document]
            extra = f"  ({'; '.join(notes)})" if notes else ""
            trained = sum(1 for d, w in zip(record["document"], record["weights"], strict=True) if d == document and w)
            size = record["document"].count(document)
            lead = "" if previous < 0 else "\n"
            text.append(f"{lead}-- {record['refs'][document]}: {size} tokens, {trained} trained{extra}\n", "bold")
            previous = document
        style = _STYLES[kind]
        text.append(_visible(piece), f"{style} underline" if weight not in (0.0, 1.0) else style)
    return text


def _visible(piece: str) -> str:
    """Control characters other than line feed and tab as their Unicode pictures."""
    return "".join(
        character
        if character in "\n\t" or not (ord(character) < 32 or 127 <= ord(character) < 160)
        else chr(0x2400 + ord(character)) if ord(character) < 32 else "\ufffd"
        for character in piece
    )  # fmt: skip
