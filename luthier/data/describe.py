"""What was done with the rows of a recipe, as JSON: `data/manifest.json` of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.encode import Encoder
from luthier.data.lengths import length_summary
from luthier.data.pack import efficiency
from luthier.data.preference_stats import preference_stats
from luthier.data.sources import SourceResult
from luthier.data.tally import Tally
from luthier.data.template import ChatTemplate
from luthier.data.types import Example, Pack, TrainRow
from luthier.recipe.objective_kind import RowKind
from luthier.runtime.hashing import Hasher, hash_json

__all__ = ["build_manifest", "lengths_of", "token_parts", "token_records", "token_texts", "trained_tokens_of"]

_SAMPLES = 3


def build_manifest(
    *,
    sources: Sequence[SourceResult],
    train: Sequence[TrainRow],
    validation: Sequence[TrainRow],
    packs: Sequence[Pack],
    tally: Tally,
    duplicates: int,
    overlap: int,
    template: ChatTemplate,
    cache_state: str,
    kind: RowKind,
    capacity: int,
) -> dict[str, Any]:
    """The manifest of prepared rows; `duplicates` are training rows that say what an earlier one says, `overlap` rows
    for validation that are training rows, too.

    `tokens`, `trained_tokens`, `lengths` and `packs` are of one epoch of training rows, source
    weights applied; `dropped`, `truncated`, `notes` and `mask_proof` count rows of all files. `pack_capacity` are the
    tokens that fit into a pack. Rows of preferences add `preferences` (`preference_stats`).
    """
    lengths = lengths_of(train)
    trained = trained_tokens_of(train)
    tokens = int(lengths.sum())
    manifest: dict[str, Any] = {
        "kind": kind,
        "rows_read": sum(source.rows for source in sources),
        "rows_used": len(train),
        "validation_rows": len(validation),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_fraction": trained / max(tokens, 1),
        "lengths": length_summary(lengths.tolist()),
        "packs": len(packs),
        "pack_capacity": capacity,
        "pack_efficiency": efficiency(packs, capacity),
        "dropped": dict(tally.dropped),
        "dropped_rows": [
            {"ref": str(item.ref), "reason": item.reason, "detail": item.detail} for item in tally.dropped_rows
        ],
        "truncated": tally.truncated,
        "truncated_rows": [{"ref": str(ref), "detail": detail} for ref, detail in tally.truncated_rows],
        "cut_tokens": tally.cut_tokens,
        "notes": dict(tally.notes.most_common()),
        "duplicates": duplicates,
        "train_validation_overlap": overlap,
        "sources": [_source(source) for source in sources],
        "mask_proof": tally.mask_proof(),
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


def lengths_of(rows: Sequence[TrainRow]) -> npt.NDArray[np.int64]:
    """Tokens of each row; rows on disk know theirs without being read."""
    known = getattr(rows, "lengths", None)
    return np.fromiter(map(len, rows), np.int64, len(rows)) if known is None else known.astype(np.int64)


def trained_tokens_of(rows: Sequence[TrainRow]) -> int:
    """Trained tokens of all rows together."""
    known = getattr(rows, "trained", None)
    return sum(row.trained_tokens for row in rows) if known is None else int(known.sum(dtype=np.int64))


def _content(train: Sequence[TrainRow], validation: Sequence[TrainRow], packs: Sequence[Pack]) -> str:
    """Hash of all that a training run sees; a resumed run must see the same. Reads the rows one by one."""
    parts: list[Any] = []
    for rows in (train, validation):
        ids, weights = Hasher(), Hasher()
        shapes: list[Any] = []
        for row in rows:
            if isinstance(row, Example):
                ids.update(np.asarray(row.ids, np.int32).tobytes())
                weights.update(np.asarray(row.weights, np.float32).tobytes())
                continue
            ids.update(np.asarray((*row.prompt, *chain(*row.answers)), np.int32).tobytes())
            weights.update(np.asarray(tuple(chain(*row.weights)), np.float32).tobytes())
            shapes.append([len(row.prompt), [len(answer) for answer in row.answers], row.label, row.margin])
        parts.append([ids.hash(), weights.hash(), lengths_of(rows).tolist()])
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
