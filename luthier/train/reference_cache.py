"""Reference log-probabilities on disk, found again by what they were made of.

    <key>/values.npy     one float64 for each answer
    <key>/parts.json     what the key is made of, and a hash of the values

The key is a hash of the rows (ids and weights, in their order) and of the start: base model, how it is stored,
adapter it goes on from, device, library versions, code of the engine. Learning rate, beta and the like are no part of
it: runs over the same rows share an entry.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier import fast
from luthier.data.types import Branched
from luthier.runs.manifest import library_versions
from luthier.runtime.atomic import atomic_folder, sweep
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem
from luthier.runtime.hashing import hash_bytes, hash_folder, hash_json

__all__ = ["ReferenceCache", "reference_identity", "reference_start", "rows_hash"]

KEPT_ENTRIES = 32


def rows_hash(rows: Sequence[Branched]) -> str:
    """Of the ids and weights of all rows, in their order; places in files are no part of it."""

    def of_row(row: Branched) -> str:
        ids = [np.asarray(part, dtype=np.int32) for part in (row.prompt, *row.answers)]
        weights = [np.asarray(part, dtype=np.float32) for part in row.weights]
        sizes = np.array([len(part) for part in ids], dtype=np.int32)
        return hash_bytes(b"".join(part.tobytes() for part in (sizes, *ids, *weights)))

    return hash_json([of_row(row) for row in rows])


def reference_start(
    fingerprint: Mapping[str, Any], *, init_from: str | None, device: str, reward_seed: int | None = None
) -> dict[str, Any]:
    """The start of a run, as far as its reference depends on it.

    Args:
        fingerprint: Of the run; its keys `base`, `start` and `model` say what was loaded and how.
        init_from: Folder of the adapter that training goes on from.
        device: `cpu`, `cuda`, ...
        reward_seed: Of the new head, for a reward model, whose values are rewards.
    """
    method = fingerprint.get("method") or {}
    adapter = hash_folder(Path(init_from).expanduser(), ("*.safetensors", "adapter_config.json")) if init_from else None
    return {
        "base": fingerprint.get("base"), "start": fingerprint.get("start"), "model": fingerprint.get("model"),
        "method": method.get("name"), "init_from": adapter, "device": device,
        "values": "log-probabilities" if reward_seed is None else f"rewards of a head from seed {reward_seed}",
    }  # fmt: skip


def reference_identity(objective: str, start: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's identity holds besides its fingerprint: the adapter it began with, by content, if it is the
    reference."""
    return {"reference": start["init_from"]} if objective in ("dpo", "kto") and start["init_from"] else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCache:
    """Entries for one start."""

    folder: Path
    start: Mapping[str, Any]

    def load(self, rows: str, of: Sequence[Branched]) -> list[tuple[float, ...]] | None:
        """Values of the rows with this hash; None if there are none, or the entry is damaged."""
        parts = self._parts(rows)
        entry = self.folder / hash_json(parts)
        try:
            meta = json.loads((entry / "parts.json").read_text("utf-8"))
            values = np.load(entry / "values.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        answers = [len(row.answers) for row in of]
        damaged = meta.get("hash") != hash_bytes(values.tobytes()) or len(values) != sum(answers)
        if meta.get("parts") != parts or damaged:
            return None
        flat = iter(values.tolist())
        return [tuple(next(flat) for _ in range(count)) for count in answers]

    def save(self, rows: str, values: Sequence[Sequence[float]]) -> None:
        """Keep values, complete or not at all; a disk that does not allow it is told, and costs the next run time."""
        parts = self._parts(rows)
        flat = np.array([value for row in values for value in row], dtype=np.float64)
        try:
            with atomic_folder(self.folder / hash_json(parts)) as temporary:
                np.save(temporary / "values.npy", flat, allow_pickle=False)
                meta = {"parts": parts, "hash": hash_bytes(flat.tobytes())}
                (temporary / "parts.json").write_text(json.dumps(meta), "utf-8")
            sweep(self.folder)
        except EnvironmentProblem as problem:
            note(f"  the reference is not cached: {problem.problems[0].message}", style="yellow")
            return
        entries = sorted(self.folder.glob("*/parts.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in entries[KEPT_ENTRIES:]:
            shutil.rmtree(old.parent, ignore_errors=True)

    def _parts(self, rows: str) -> dict[str, Any]:
        libraries = {name: text for name, text in library_versions().items() if name in ("torch", "transformers")}
        code = hash_folder(Path(fast.__file__).parent, ("**/*.py",))
        # As JSON gives it back: what is compared has been through a file.
        whole = {"rows": rows, "start": dict(self.start), "libraries": libraries, "code": code}
        value: dict[str, Any] = json.loads(json.dumps(whole))
        return value
