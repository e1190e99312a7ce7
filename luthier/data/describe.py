"""What was done with the rows of a recipe, as JSON: `data/manifest.json` of a run folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from luthier.data.encode import Encoder
from luthier.data.lengths import length_summary
from luthier.data.pack import efficiency
from luthier.data.preference_stats import preference_stats
from luthier.data.sources import SourceResult
from luthier.data.split import count_duplicates, overlapping
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized
from luthier.data.types import Branched, Conversation, Dropped, Example, Pack, TrainRow
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import DataSection
from luthier.runtime.hashing import hash_bytes, hash_json

__all__ = ["build_manifest", "token_parts", "token_records", "token_texts"]

_SAMPLES = 3
_LISTED_ROWS = 10_000


def build_manifest(
    *,
    sources: Sequence[SourceResult],
    train: Sequence[TrainRow],
    validation: Sequence[TrainRow],
    packs: Sequence[Pack],
    outcomes: Sequence[Tokenized],
    dropped: Sequence[Dropped],
    rows: tuple[Sequence[Conversation], Sequence[Conversation], Sequence[Conversation]],
    section: DataSection,
    template: ChatTemplate,
    cache_state: str,
    kind: RowKind,
    capacity: int,
) -> dict[str, Any]:
    """The manifest of prepared rows; `rows` are all training rows read, those kept for training, and for validation.

    `tokens`, `trained_tokens`, `lengths` and `packs` are of one epoch of training rows, source
    weights applied; `dropped`, `truncated`, `notes` and `mask_proof` count rows of all files. `pack_capacity` are the
    tokens that fit into a pack. Rows of preferences add `preferences` (`preference_stats`).
    """
    everything, kept, held_out = rows
    lengths = [len(example) for example in train]
    trained = sum(example.trained_tokens for example in train)
    kept_rows = [(row.result, row.full_tokens) for row in outcomes if not isinstance(row.result, Dropped)]
    cut = [(row, full) for row, full in kept_rows if full > len(row)]
    lost = sum(full - len(row) for row, full in cut)
    lost += sum(row.full_tokens for row in outcomes if isinstance(row.result, Dropped))
    manifest: dict[str, Any] = {
        "kind": kind,
        "rows_read": sum(source.rows for source in sources),
        "rows_used": len(train),
        "validation_rows": len(validation),
        "tokens": sum(lengths),
        "trained_tokens": trained,
        "trained_fraction": trained / max(sum(lengths), 1),
        "lengths": length_summary(lengths),
        "packs": len(packs),
        "pack_capacity": capacity,
        "pack_efficiency": efficiency(packs, capacity),
        "dropped": dict(Counter(item.reason for item in dropped)),
        "dropped_rows": [
            {"ref": str(item.ref), "reason": item.reason, "detail": item.detail} for item in dropped[:_LISTED_ROWS]
        ],
        "truncated": len(cut),
        "truncated_rows": [
            {"ref": str(row.ref), "detail": f"truncated {full} -> {len(row)}"} for row, full in cut[:_LISTED_ROWS]
        ],
        "cut_tokens": lost,
        "notes": _notes(outcomes),
        "duplicates": count_duplicates(everything),
        "train_validation_overlap": len(overlapping(kept, held_out)),
        "sources": [_source(source) for source in sources],
        "mask_proof": _mask_proof(outcomes),
        "samples": [
            {"ref": str(example.ref), "tokens": token_records(example, template.encoder)}
            for example in train[:_SAMPLES]
        ],
        "hash": _content(train, validation, packs),
        "cache": cache_state,
    }
    if kind in ("pairs", "rated"):
        manifest["preferences"] = preference_stats(train)
    return manifest


def _source(source: SourceResult) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": source.format,
        "verdict": source.verdict,
        "rows": source.rows,
        "hash": source.hash,
        "notes": list(source.notes),
    }


def _notes(outcomes: Sequence[Tokenized]) -> dict[str, int]:
    notes = Counter(
        re.sub(r"^truncated .*", "truncated", text)
        for row in outcomes
        if not isinstance(row.result, Dropped)
        for text in row.result.notes
    )
    return dict(notes.most_common())


def _mask_proof(outcomes: Sequence[Tokenized]) -> dict[str, Any]:
    """Rows and turns whose trained text was shown to be what is served, and the tokens that end the turns."""
    proven = [row for row in outcomes if not isinstance(row.result, Dropped)]
    methods = Counter(method for row in proven for method in row.methods)
    return {
        "rows": len(proven),
        "turns": sum(methods.values()),
        "methods": dict(methods),
        "end_of_turn": dict(Counter(token for row in proven for token in row.terminators)),
    }


def _content(train: Sequence[TrainRow], validation: Sequence[TrainRow], packs: Sequence[Pack]) -> str:
    """Hash of all that a training run sees; a resumed run must see the same."""
    parts: list[Any] = []
    for rows in (train, validation):
        pieces = [row.ids if isinstance(row, Example) else (*row.prompt, *chain(*row.answers)) for row in rows]
        own = [row.weights if isinstance(row, Example) else tuple(chain(*row.weights)) for row in rows]
        ids = b"".join(np.asarray(piece, np.int32).tobytes() for piece in pieces)
        weights = b"".join(np.asarray(piece, np.float32).tobytes() for piece in own)
        parts.append([hash_bytes(ids), hash_bytes(weights), [len(row) for row in rows]])
        shapes = [
            [len(row.prompt), [len(answer) for answer in row.answers], row.label, row.margin]
            for row in rows
            if isinstance(row, Branched)
        ]
        parts += [shapes] if shapes else []
    return hash_json([*parts, [item.examples for item in packs]])


def token_texts(ids: Sequence[int], encoder: Encoder, known: dict[int, str] | None = None) -> list[str]:
    """Text of each token; bytes of one character spread over several tokens are shown with the last of them.

    `known` holds the texts of tokens that are whole by themselves, and grows: for many rows, pass it again.
    """
    known = {} if known is None else known
    texts: list[str] = []
    pending: list[int] = []
    names: list[str | None] = []
    for place, token in enumerate(ids):
        if not pending and token in known:
            texts.append(known[token])
            continue
        names = names or encoder.tokenizer.convert_ids_to_tokens(list(ids))
        name = names[place]
        pending.append(token)
        text = encoder.decode(pending)
        if text.endswith("\ufffd") and len(pending) < 4:
            texts.append("")
            continue
        if name is not None and name.startswith("\u2581") and not text.startswith(" "):
            text = " " + text
        if len(pending) == 1 and not text.endswith("\ufffd"):
            known[token] = text
        texts.append(text)
        pending = []
    if pending:
        texts[-1] = encoder.decode(pending)
    return texts


def token_records(row: TrainRow, encoder: Encoder) -> list[dict[str, Any]]:
    """Every token of a row with its text and kind: trained wins over special, so that a trained end of turn shows.

    Of preferences the tokens that count are of kind `chosen` or `rejected`; the first token of an answer says with
    `begins` which one it is.
    """
    found: list[dict[str, Any]] = []
    for name, ids, weights in token_parts(row):
        counts = "trained" if isinstance(row, Example) else name
        records = [
            {
                "text": text,
                "kind": counts if weight else "special" if token in encoder.control_ids else "context",
                "id": int(token),
                "weight": float(weight),
            }
            for text, token, weight in zip(token_texts(ids, encoder), ids, weights, strict=True)
        ]
        if name in ("chosen", "rejected"):
            records[0]["begins"] = name
        found += records
    return found


def token_parts(row: TrainRow) -> list[tuple[str, Sequence[int], Sequence[float]]]:
    """(`prompt`, `chosen`, `rejected`; or `row`), ids and weights of each part; an undesired answer is `rejected`."""
    if isinstance(row, Example):
        return [("row", row.ids, row.weights)]
    names = ("rejected",) if row.label is False else ("chosen", "rejected")
    answers = [(name, ids, own) for name, ids, own in zip(names, row.answers, row.weights, strict=False)]
    return [("prompt", row.prompt, [0.0] * len(row.prompt)), *answers]
