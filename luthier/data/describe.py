"""What was done with the rows of a recipe, as JSON: `data/manifest.json` of a run folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.data.encode import Encoder
from luthier.data.pack import efficiency
from luthier.data.sources import SourceResult
from luthier.data.split import count_duplicates, overlapping
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized
from luthier.data.types import Conversation, Dropped, Example, Pack
from luthier.recipe.schema import DataSection
from luthier.runtime.hashing import hash_bytes, hash_json

__all__ = ["build_manifest", "token_records", "token_texts"]

_SAMPLES = 3
_BINS = 20
_LISTED_ROWS = 10_000


def build_manifest(
    *,
    sources: Sequence[SourceResult],
    train: Sequence[Example],
    validation: Sequence[Example],
    packs: Sequence[Pack],
    outcomes: Sequence[Tokenized],
    dropped: Sequence[Dropped],
    rows: tuple[Sequence[Conversation], Sequence[Conversation], Sequence[Conversation]],
    section: DataSection,
    template: ChatTemplate,
    cache_state: str,
) -> dict[str, Any]:
    """The manifest of prepared rows; `rows` are all training rows read, those kept for training, and for validation.

    `tokens`, `trained_tokens`, `lengths` and `packs` are of one epoch of training rows, source
    weights applied; `dropped`, `truncated`, `notes` and `mask_proof` count rows of all files.
    """
    everything, kept, held_out = rows
    lengths = [len(example) for example in train]
    trained = sum(example.trained_tokens for example in train)
    cut = [row for row in outcomes if isinstance(row.result, Example) and row.full_tokens > len(row.result)]
    lost = sum(row.full_tokens - len(row.result) for row in cut if isinstance(row.result, Example))
    lost += sum(row.full_tokens for row in outcomes if isinstance(row.result, Dropped))
    return {
        "rows_read": sum(source.rows for source in sources),
        "rows_used": len(train),
        "validation_rows": len(validation),
        "tokens": sum(lengths),
        "trained_tokens": trained,
        "trained_fraction": trained / max(sum(lengths), 1),
        "lengths": _lengths(lengths),
        "packs": len(packs),
        "pack_efficiency": efficiency(packs, section.max_length),
        "dropped": dict(Counter(item.reason for item in dropped)),
        "dropped_rows": [
            {"ref": str(item.ref), "reason": item.reason, "detail": item.detail} for item in dropped[:_LISTED_ROWS]
        ],
        "truncated": len(cut),
        "truncated_rows": [
            {"ref": str(row.result.ref), "detail": f"truncated {row.full_tokens} -> {section.max_length}"}
            for row in cut[:_LISTED_ROWS]
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


def _source(source: SourceResult) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": source.format,
        "verdict": source.verdict,
        "rows": source.rows,
        "hash": source.hash,
        "notes": list(source.notes),
    }


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Percentiles (nearest rank) and a histogram of [low, high) bins of whole tokens."""
    if not lengths:
        return {"min": 0, "p50": 0, "p95": 0, "max": 0, "histogram": []}
    ordered = sorted(lengths)

    def rank(share: float) -> int:
        return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]

    width = -(-(ordered[-1] - ordered[0] + 1) // _BINS)
    counts = Counter((length - ordered[0]) // width for length in lengths)
    bins = range((ordered[-1] - ordered[0]) // width + 1)
    histogram = [[ordered[0] + k * width, ordered[0] + (k + 1) * width, counts[k]] for k in bins]
    return {"min": ordered[0], "p50": rank(0.5), "p95": rank(0.95), "max": ordered[-1], "histogram": histogram}


def _notes(outcomes: Sequence[Tokenized]) -> dict[str, int]:
    notes = Counter(
        re.sub(r"^truncated .*", "truncated", text)
        for row in outcomes
        if isinstance(row.result, Example)
        for text in row.result.notes
    )
    return dict(notes.most_common())


def _mask_proof(outcomes: Sequence[Tokenized]) -> dict[str, Any]:
    """Rows and turns whose trained text was shown to be what is served, and the tokens that end the turns."""
    proven = [row for row in outcomes if isinstance(row.result, Example)]
    methods = Counter(method for row in proven for method in row.methods)
    return {
        "rows": len(proven),
        "turns": sum(methods.values()),
        "methods": dict(methods),
        "end_of_turn": dict(Counter(token for row in proven for token in row.terminators)),
    }


def _content(train: Sequence[Example], validation: Sequence[Example], packs: Sequence[Pack]) -> str:
    """Hash of all that a training run sees; a resumed run must see the same."""
    parts = []
    for examples in (train, validation):
        ids = b"".join(np.asarray(example.ids, np.int32).tobytes() for example in examples)
        weights = b"".join(np.asarray(example.weights, np.float32).tobytes() for example in examples)
        parts.append([hash_bytes(ids), hash_bytes(weights), [len(example) for example in examples]])
    return hash_json([*parts, [item.examples for item in packs]])


def token_texts(ids: Sequence[int], encoder: Encoder) -> list[str]:
    """Text of each token; bytes of one character spread over several tokens are shown with the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    names = encoder.tokenizer.convert_ids_to_tokens(list(ids))
    for token, name in zip(ids, names, strict=True):
        pending.append(token)
        text = encoder.decode(pending)
        if text.endswith("\ufffd") and len(pending) < 4:
            texts.append("")
            continue
        if name is not None and name.startswith("\u2581") and not text.startswith(" "):
            text = " " + text
        texts.append(text)
        pending = []
    if pending:
        texts[-1] = encoder.decode(pending)
    return texts


def token_records(example: Example, encoder: Encoder) -> list[dict[str, Any]]:
    """Every token of a row with its text and kind: trained wins over special, so that a trained end of turn shows."""
    texts = token_texts(example.ids, encoder)
    return [
        {
            "text": text,
            "kind": "trained" if weight else "special" if token in encoder.control_ids else "context",
            "id": int(token),
            "weight": float(weight),
        }
        for text, token, weight in zip(texts, example.ids, example.weights, strict=True)
    ]
