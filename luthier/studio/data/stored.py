"""A prepared view on disk: rows as text, their tokens, columns to sort and filter by. A page reads its rows, no more.

rows.jsonl       one row a line: turns, notes, why it is dropped, shape of a preference
search.txt       one row a line: all its text, lower case
columns.npz      of each row: place in rows.jsonl and search.txt, split, source, file, line, tokens, trained, turns
ids.npy, weights.npy   of all rows end to end; `starts` in the columns says where each begins
packs.npy        [pack, row] in order
chips.npz        of each chip: which rows have it
view.json        the summary, names of splits, sources and files, chips, the model whose tokenizer it was
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.types import Branched, Example, RowRef, TrainRow
from luthier.runtime.atomic import write_json

__all__ = ["SPLITS", "StoredView", "ViewWriter", "preview_of"]

SPLITS = ("train", "validation", "test", "dropped")
_PREVIEW = 200
_COLUMNS = ("split", "source", "file", "line", "tokens", "trained", "turns")


class ViewWriter:
    """Writes a view into an empty folder, row by row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = (folder / "rows.jsonl").open("wb")
        self._search = (folder / "search.txt").open("wb")
        self._at: dict[str, list[int]] = {"rows": [0], "search": [0], "starts": [0]}
        self._columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
        self._ids: list[npt.NDArray[np.int32]] = []
        self._weights: list[npt.NDArray[np.float32]] = []
        self._names: dict[str, dict[str, int]] = {"sources": {}, "files": {}}

    def add(
        self, *, ref: RowRef, split: str, source: str, turns: Sequence[Sequence[str]], notes: Sequence[str], why: str,
        tokens: TrainRow | None,
    ) -> None:  # fmt: skip
        """One row."""
        record: dict[str, Any] = {"t": [list(turn) for turn in turns], "n": list(notes), "w": why}
        ids, weights, shape = _flat(tokens)
        if shape is not None:
            record["b"] = shape
        text = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
        self._rows.write(text)
        plain = " ".join(turn[1] for turn in turns).lower().replace("\n", " ").replace("\r", " ")
        words = plain.encode("utf-8", "replace") + b"\n"
        self._search.write(words)
        for name, size in (("rows", len(text)), ("search", len(words)), ("starts", len(ids))):
            self._at[name].append(self._at[name][-1] + size)
        self._ids.append(ids)
        self._weights.append(weights)
        own = {
            "split": SPLITS.index(split), "source": self._number("sources", source),
            "file": self._number("files", ref.file), "line": ref.line, "turns": len(turns),
            "tokens": -1 if tokens is None else len(tokens), "trained": -1 if tokens is None else tokens.trained_tokens,
        }  # fmt: skip
        for name, value in own.items():
            self._columns[name].append(value)

    def _number(self, kind: str, name: str) -> int:
        return self._names[kind].setdefault(name, len(self._names[kind]))

    def close(self, about: Mapping[str, Any], *, packs: Sequence[Sequence[int]], chips: Mapping[str, Any]) -> None:
        """Finish: `view.json` is written last."""
        self._rows.close()
        self._search.close()
        columns: dict[str, Any] = {f"at.{name}": np.asarray(values, np.int64) for name, values in self._at.items()}
        columns |= {f"of.{name}": np.asarray(values, np.int64) for name, values in self._columns.items()}
        np.savez(self.folder / "columns.npz", **columns)
        np.save(self.folder / "ids.npy", _joined(self._ids, np.int32), allow_pickle=False)
        np.save(self.folder / "weights.npy", _joined(self._weights, np.float32), allow_pickle=False)
        pairs = [(pack, row) for pack, rows in enumerate(packs) for row in rows]
        np.save(self.folder / "packs.npy", np.asarray(pairs, np.int64).reshape(-1, 2), allow_pickle=False)
        masks: dict[str, Any] = {key: np.asarray(mask, bool) for key, mask in chips.items()}
        np.savez(self.folder / "chips.npz", **masks)
        names = {kind: list(own) for kind, own in self._names.items()}
        write_json(self.folder / "view.json", {**about, **names})


def _joined(parts: Sequence[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _flat(row: TrainRow | None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], dict[str, Any] | None]:
    if row is None:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), None
    if isinstance(row, Example):
        return np.asarray(row.ids, np.int32), np.asarray(row.weights, np.float32), None
    ids = [np.asarray(part, np.int32) for part in (row.prompt, *row.answers)]
    weights = [np.zeros(len(row.prompt), np.float32), *(np.asarray(part, np.float32) for part in row.weights)]
    shape = {"p": len(row.prompt), "a": [len(part) for part in row.answers], "l": row.label, "m": row.margin}
    return np.concatenate(ids), np.concatenate(weights), shape


class StoredView:
    """Reads a view. Columns are in memory (64 bytes a row), everything else is read from disk as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "view.json").read_text("utf-8"))
        with np.load(folder / "columns.npz", allow_pickle=False) as columns:
            self.columns = {name.removeprefix("of."): columns[name] for name in columns.files}
        with np.load(folder / "chips.npz", allow_pickle=False) as chips:
            self.chips: dict[str, npt.NDArray[np.bool_]] = {name: chips[name] for name in chips.files}
        self._ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        self._weights = np.load(folder / "weights.npy", mmap_mode="r", allow_pickle=False)
        self.packs = np.load(folder / "packs.npy", allow_pickle=False)
        self.pack_starts = np.searchsorted(self.packs[:, 0], np.arange(self.pack_count + 1))

    @property
    def pack_count(self) -> int:
        """Packs of an epoch."""
        return int(self.packs[-1, 0]) + 1 if len(self.packs) else 0

    def __len__(self) -> int:
        return len(self.columns["split"])

    def record(self, row: int) -> dict[str, Any]:
        """Turns, notes and the rest."""
        start, end = self.columns["at.rows"][row : row + 2]
        with (self.folder / "rows.jsonl").open("rb") as stream:
            stream.seek(int(start))
            value: dict[str, Any] = json.loads(stream.read(int(end - start)))
        return value

    def records(self, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Of several rows."""
        with (self.folder / "rows.jsonl").open("rb") as stream:
            for row in rows:
                start, end = self.columns["at.rows"][row : row + 2]
                stream.seek(int(start))
                yield json.loads(stream.read(int(end - start)))

    def ref(self, row: int) -> RowRef:
        """Where a row stands in its file."""
        name = self.about["files"][int(self.columns["file"][row])]
        return RowRef(name, int(self.columns["line"][row]), int(self.columns["source"][row]))

    def row(self, row: int) -> TrainRow | None:
        """A row as its training gets it; None for one without tokens."""
        if self.columns["tokens"][row] < 0:
            return None
        start, end = self.columns["at.starts"][row : row + 2]
        ids, weights = np.array(self._ids[start:end]), np.array(self._weights[start:end])
        record = self.record(row)
        notes, shape, ref = tuple(record["n"]), record.get("b"), self.ref(row)
        if shape is None:
            return Example(ids=array("i", ids.tobytes()), weights=array("f", weights.tobytes()), ref=ref, notes=notes)
        places = np.cumsum([0, shape["p"], *shape["a"]])
        parts = [(int(low), int(high)) for low, high in pairwise(places[1:])]
        return Branched(
            prompt=array("i", ids[: shape["p"]].tobytes()),
            answers=tuple(array("i", ids[low:high].tobytes()) for low, high in parts),
            weights=tuple(array("f", weights[low:high].tobytes()) for low, high in parts),
            label=shape["l"], margin=shape["m"], ref=ref, notes=notes,
        )  # fmt: skip

    def pack(self, number: int) -> list[int]:
        """Rows of a pack, in order."""
        return [int(row) for row in self.packs[self.pack_starts[number] : self.pack_starts[number + 1], 1]]


def preview_of(turns: Sequence[Sequence[str]]) -> str:
    """The beginning of what is asked."""
    asked = next((turn[1] for turn in turns if turn[0] not in ("system", "developer", "tools")), "")
    text = asked or (turns[0][1] if turns else "")
    return " ".join(text[: 2 * _PREVIEW].split())[:_PREVIEW]
