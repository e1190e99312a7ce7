"""Rows and packs as the trainer sees them: for JSON and in colour.

Everything comes from the prepared examples themselves, never from a second tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.describe import token_parts, token_records
from luthier.data.encode import Encoder
from luthier.data.types import Branched, TrainRow

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.data.prepare import Prepared

__all__ = ["IGNORED", "packed_records", "row_records", "row_text", "show_rows"]

IGNORED = -100
"""Label of a token that is not trained, as everywhere in this field."""

_STYLES = {
    "trained": "bold green",
    "chosen": "bold green",
    "rejected": "bold red",
    "special": "dim cyan",
    "context": "",
}


def row_records(prepared: Prepared, tokenizer: Any, *, start: int = 0, count: int = 3) -> list[dict[str, Any]]:
    """Training rows [start, start + count), one record each; see `show_rows`."""
    return show_rows(prepared.train[start : start + count], tokenizer, first=start)


def show_rows(examples: Sequence[TrainRow], tokenizer: Any, *, first: int = 0) -> list[dict[str, Any]]:
    """One JSON record per example.

    Keys: `row`, `refs`, `ids`, `labels` (the id where trained, else -100; not shifted), `weights`,
    `positions`, `document`, `texts` and `kinds` (trained | context | special) of the tokens, the
    `trained_text` of each document, and `notes` (what was cut or altered). Of preferences each answer is a document,
    the first one with the prompt in front; kinds are chosen | rejected | context | special; and two more keys: `parts`
    (prompt | chosen | rejected) of the tokens, and `rows_of` with `ref`, `label` and `margin` of each row.
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


def _record(rows: Sequence[TrainRow], encoder: Encoder) -> dict[str, Any]:
    record: dict[str, Any] = {"refs": [], "notes": []}
    names = ("ids", "labels", "weights", "positions", "document", "texts", "kinds")
    record |= {name: [] for name in names} | {"trained_text": []}
    if any(isinstance(row, Branched) for row in rows):
        record |= {"parts": [], "rows_of": []}
    for row in rows:
        if isinstance(row, Branched):
            _add_preference(record, row, encoder)
        else:
            _add_document(record, row, token_records(row, encoder), range(len(row)), encoder)
    return record


def _add_preference(record: dict[str, Any], row: Branched, encoder: Encoder) -> None:
    """As `collate_branched` lays it out: the second answer is a document of its own, at the positions of the first."""
    tokens = token_records(row, encoder)
    shared, end = len(row.prompt), len(row.prompt) + len(row.answers[0])
    _add_document(record, row, tokens[:end], range(end), encoder)
    record["parts"] += ["prompt"] * shared
    for answer in row.answers[1:]:
        _add_document(record, row, tokens[end:], range(shared, shared + len(answer)), encoder)
    names = [name for name, _, _ in token_parts(row)[1:]]
    record["parts"] += [name for name, answer in zip(names, row.answers, strict=True) for _ in answer]
    record["rows_of"].append({"ref": str(row.ref), "label": row.label, "margin": row.margin, "documents": names})


def _add_document(
    record: dict[str, Any], row: TrainRow, tokens: Sequence[dict[str, Any]], positions: range, encoder: Encoder
) -> None:
    document = len(record["refs"])
    record["refs"].append(str(row.ref))
    record["notes"].append(list(row.notes))
    record["ids"] += [token["id"] for token in tokens]
    record["labels"] += [token["id"] if token["weight"] else IGNORED for token in tokens]
    record["weights"] += [token["weight"] for token in tokens]
    record["positions"] += positions
    record["document"] += [document] * len(tokens)
    record["texts"] += [token["text"] for token in tokens]
    record["kinds"] += [token["kind"] for token in tokens]
    record["trained_text"].append(encoder.decode([token["id"] for token in tokens if token["weight"]]))


def row_text(record: dict[str, Any]) -> Text:
    """A record in colour: trained green, special cyan, context plain; each document under its place in the data.

    Of preferences the prompt is dim, chosen answers green, rejected ones red.

    The text of rows is data: markup in it is not interpreted, and control characters that a
    terminal would obey are shown as symbols.
    """
    from rich.text import Text

    text = Text()
    parts = record.get("parts", [""] * len(record["texts"]))
    previous: tuple[int, str] = (-1, "")
    for piece, kind, document, weight, part in zip(
        record["texts"], record["kinds"], record["document"], record["weights"], parts, strict=True
    ):
        if (document, part) != previous:
            lead = "" if previous[0] < 0 else "\n"
            if part in ("", "prompt"):
                text.append(f"{lead}-- {_headline(record, document)}\n", "bold")
            if part:
                size = sum(1 for d, p in zip(record["document"], parts, strict=True) if (d, p) == (document, part))
                text.append(f"{'' if part == 'prompt' else lead}{part} ({size} tokens):\n", "bold dim")
            previous = (document, part)
        style = f"dim {_STYLES[kind]}".strip() if part == "prompt" else _STYLES[kind]
        text.append(_visible(piece), f"{style} underline" if weight not in (0.0, 1.0) else style)
    return text


def _headline(record: dict[str, Any], document: int) -> str:
    """Place, tokens and notes of a document; of preferences of the row that begins with it."""
    documents = {document}
    extra = list(record["notes"][document])
    if "rows_of" in record:
        first = 0
        for row in record["rows_of"]:
            if first == document:
                documents = set(range(first, first + len(row["documents"])))
                extra += [f"margin {row['margin']:g}"] if row["margin"] is not None else []
                extra += [] if row["label"] is None else ["desired" if row["label"] else "not desired"]
            first += len(row["documents"])
    own = [weight for d, weight in zip(record["document"], record["weights"], strict=True) if d in documents]
    trained = sum(1 for weight in own if weight)
    return f"{record['refs'][document]}: {len(own)} tokens, {trained} trained" + (
        f"  ({'; '.join(extra)})" if extra else ""
    )


def _visible(piece: str) -> str:
    """Control characters other than line feed and tab as their Unicode pictures."""
    return "".join(
        character
        if character in "\n\t" or not (ord(character) < 32 or 127 <= ord(character) < 160)
        else chr(0x2400 + ord(character)) if ord(character) < 32 else "\ufffd"
        for character in piece
    )  # fmt: skip
