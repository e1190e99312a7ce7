"""Tokenised rows on disk, found again by what they were made of.

The key is a hash of everything the ids and weights depend on: content of the rows, tokenizer with
its added tokens, template and its variables, the options of the recipe that touch a row, the source
code of `luthier.data` and the versions of the libraries. Split, weights of sources, seed and packing
come after and are no part of it. An entry is a folder of plain arrays and JSON, no pickle:

    <key>/ids.npy, weights.npy   all rows end to end, int32 and float32
    <key>/rows.json              the parts of the key, a hash of the arrays, and for each row its
                                 length, notes, proof, or why it is dropped (places in files are not
                                 stored: they may change while the content stays); for preferences
                                 also the length of each answer, its label and margin
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized
from luthier.data.types import Branched, Dropped, Example, RowRef, TrainRow
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import DataSection
from luthier.runtime.atomic import atomic_folder, sweep
from luthier.runtime.errors import DataError
from luthier.runtime.hashing import hash_bytes, hash_folder, hash_json

__all__ = ["entries", "key_parts", "load", "save", "why_missing"]

_KEPT_ENTRIES = 16
_LIBRARIES = ("transformers", "tokenizers", "jinja2")


def key_parts(
    contents: Sequence[str], template: ChatTemplate, section: DataSection, kind: RowKind = "tokens"
) -> dict[str, Any]:
    """Everything the tokenised rows depend on, by name; `why_missing` says which of them changed."""
    tokenizer = template.tokenizer
    parts: dict[str, Any] = {
        "rows": list(contents),
        "kind of rows": kind,
        "tokenizer": hash_bytes(tokenizer.backend_tokenizer.to_str().encode("utf-8")),
        "added tokens": hash_json([[str(k), v] for k, v in sorted(tokenizer.get_added_vocab().items())]),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat template": _template_hash(template),
        "chat_template_kwargs": template.kwargs,
        "max_length": section.max_length,
        "overlong": section.overlong,
        "loss_on": section.loss_on,
        "control_tokens": section.control_tokens,
        "code": hash_folder(Path(__file__).parent, ("*.py",)),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    return parts


def _template_hash(template: ChatTemplate) -> str:
    """Hash of the templates; with the day, for one that writes the current date."""
    try:
        sources = [template.source(), template.source([{}])]
    except DataError:
        return "none"
    from datetime import date

    dated = any("strftime_now" in source for source in sources)
    return hash_json([*sources, date.today().isoformat() if dated else ""])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def load(folder: Path, parts: dict[str, Any], refs: Sequence[RowRef]) -> list[Tokenized] | None:
    """The rows of an entry, with their places of today; None if there is no such entry or it is damaged."""
    entry = folder / hash_json(parts)
    try:
        meta = json.loads((entry / "rows.json").read_text("utf-8"))
        ids = np.load(entry / "ids.npy", allow_pickle=False)
        weights = np.load(entry / "weights.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if meta["hash"] != _arrays_hash(ids, weights) or meta["parts"] != parts or len(meta["rows"]) != len(refs):
        return None
    rows: list[Tokenized] = []
    place = 0
    for record, ref in zip(meta["rows"], refs, strict=True):
        end = place + record.get("tokens", 0)
        if "reason" in record:
            result: TrainRow | Dropped = Dropped(ref, record["reason"], record["detail"])
        else:
            result = _row(record, ids[place:end], weights[place:end], ref)
        rows.append(
            Tokenized(
                result=result, methods=tuple(record["methods"]), terminators=tuple(record["terminators"]),
                full_tokens=record["full_tokens"],
            )
        )  # fmt: skip
        place = end
    return rows


def _row(record: dict[str, Any], ids: Any, weights: Any, ref: RowRef) -> TrainRow:
    notes = tuple(record["notes"])
    if "answers" not in record:
        return Example(ids=array("i", ids.tobytes()), weights=array("f", weights.tobytes()), ref=ref, notes=notes)
    ends = list(accumulate(record["answers"], initial=record["tokens"] - sum(record["answers"])))
    return Branched(
        prompt=array("i", ids[: ends[0]].tobytes()),
        answers=tuple(array("i", ids[start:end].tobytes()) for start, end in pairwise(ends)),
        weights=tuple(array("f", weights[start:end].tobytes()) for start, end in pairwise(ends)),
        label=record["label"], margin=record["margin"], ref=ref, notes=notes,
    )  # fmt: skip


def _flat(row: TrainRow) -> tuple[Any, Any]:
    """Ids and weights of a row end to end; a prompt weighs nothing."""
    if isinstance(row, Example):
        return np.asarray(row.ids, np.int32), np.asarray(row.weights, np.float32)
    ids = [np.asarray(part, np.int32) for part in (row.prompt, *row.answers)]
    weights = [np.zeros(len(row.prompt), np.float32), *(np.asarray(part, np.float32) for part in row.weights)]
    return np.concatenate(ids), np.concatenate(weights)


def save(folder: Path, parts: dict[str, Any], rows: Sequence[Tokenized]) -> None:
    """Store an entry, complete or not at all, and forget the oldest ones beyond a few.

    Raises:
        EnvironmentProblem: the disk does not allow it.
    """
    flat = [_flat(row.result) for row in rows if not isinstance(row.result, Dropped)]
    ids = np.concatenate([np.zeros(0, np.int32), *(own for own, _ in flat)])
    weights = np.concatenate([np.zeros(0, np.float32), *(own for _, own in flat)])
    meta = {"parts": parts, "hash": _arrays_hash(ids, weights), "rows": [_record(row) for row in rows]}
    with atomic_folder(folder / hash_json(parts)) as temporary:
        np.save(temporary / "ids.npy", ids, allow_pickle=False)
        np.save(temporary / "weights.npy", weights, allow_pickle=False)
        (temporary / "rows.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
    sweep(folder)
    for old in entries(folder)[_KEPT_ENTRIES:]:
        shutil.rmtree(old, ignore_errors=True)


def _record(row: Tokenized) -> dict[str, Any]:
    proof = {"methods": row.methods, "terminators": row.terminators, "full_tokens": row.full_tokens}
    if isinstance(row.result, Dropped):
        return {**proof, "reason": row.result.reason, "detail": row.result.detail}
    record = {**proof, "tokens": len(row.result), "notes": list(row.result.notes)}
    if isinstance(row.result, Branched):
        answers = [len(answer) for answer in row.result.answers]
        record |= {"answers": answers, "label": row.result.label, "margin": row.result.margin}
    return record


def _arrays_hash(ids: Any, weights: Any) -> str:
    return hash_bytes(np.asarray(ids, np.int32).tobytes() + np.asarray(weights, np.float32).tobytes())


def entries(folder: Path) -> list[Path]:
    """Entries, newest first."""
    found = [(path.stat().st_mtime, path) for path in folder.glob("*/rows.json")] if folder.is_dir() else []
    return [path.parent for _, path in sorted(found, reverse=True)]


def why_missing(folder: Path, parts: dict[str, Any]) -> str:
    """In words, what differs from the most similar entry."""
    best: list[str] | None = None
    for entry in entries(folder):
        if entry.name == hash_json(parts):
            return "the stored rows are damaged"
        try:
            known = json.loads((entry / "rows.json").read_text("utf-8"))["parts"]
        except (OSError, ValueError, KeyError):
            continue
        changed = [name for name in parts if known.get(name) != parts[name]]
        if best is None or len(changed) < len(best):
            best = changed
    if best is None or len(best) > len(parts) // 2:
        return "first time"
    return " and ".join(f"{name} changed" for name in best)
