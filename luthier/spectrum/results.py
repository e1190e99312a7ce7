"""Results of a scan, and where they are kept: by the hash of the weights, as JSON a person can read. No torch.

    spectrum/HASH-vN.json           a finished scan
    spectrum/HASH-vN.partial.jsonl  one line a finished tensor, while a scan runs or after it was killed

The hash covers every byte of every weight file, so a changed or shortened file never meets an old result.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from luthier.runtime.atomic import explain_os_error, write_json
from luthier.spectrum.names import type_of

__all__ = ["SCAN_VERSION", "Journal", "Result", "Scan", "load_scan", "scan_file"]

SCAN_VERSION = 1
"""Raised when a change of the code changes a score: older results are then not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One ranked tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As it is stored."""
    how: str
    """How the singular values were found: `gram`, `svd`, or `gram, svd` for a stack of which some needed it."""
    compat: float
    """Score of the original script; the mean over the experts of a stack, which the original cannot read."""
    calibrated: float | None
    """Share of the energy that is signal; None for fewer than 16 singular values."""
    signal_rank: int | None
    """Singular values above the edge of the noise."""
    noise_std: float | None
    """Of the entries."""
    spectral_norm: float
    """Largest singular value."""
    seconds: float

    def score(self, kind: Literal["calibrated", "compat"]) -> float | None:
        """The score to rank by."""
        return self.compat if kind == "compat" else self.calibrated


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Every ranked tensor of a model, in its order, and what was left out."""

    weights: str
    """Content hash of the weight files."""
    source: str
    """What the caller named."""
    device: str
    results: tuple[Result, ...]
    skipped: tuple[tuple[str, str], ...]
    """(name, reason)."""

    def names(self) -> list[str]:
        """Of all tensors, ranked or not."""
        return [result.name for result in self.results] + [name for name, _ in self.skipped]

    def by_type(self, *, each_expert: bool) -> dict[str, list[Result]]:
        """Ranked tensors by module type, types in alphabetical order as the original lists them."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(type_of(result.name, each_expert=each_expert), []).append(result)
        return {kind: found[kind] for kind in sorted(found)}

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        value = asdict(self)
        value["skipped"] = [{"name": name, "reason": reason} for name, reason in self.skipped]
        return {"version": SCAN_VERSION, **value}


def scan_file(cache_dir: Path, weights: str) -> Path:
    """Where a finished scan of these weights is kept."""
    return cache_dir / "spectrum" / f"{weights}-v{SCAN_VERSION}.json"


def load_scan(cache_dir: Path, weights: str) -> Scan | None:
    """A finished scan of these weights; None where there is none, or the file is damaged."""
    try:
        value = json.loads(scan_file(cache_dir, weights).read_text("utf-8"))
        if value.pop("version") != SCAN_VERSION or value["weights"] != weights:
            return None
        results = tuple(_result(entry) for entry in value.pop("results"))
        skipped = tuple((entry["name"], entry["reason"]) for entry in value.pop("skipped"))
        return Scan(results=results, skipped=skipped, **value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _result(entry: Mapping[str, Any]) -> Result:
    """A result from JSON.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    if set(entry) != {field.name for field in fields(Result)}:
        raise ValueError("not the fields of a result")
    if not math.isfinite(entry["compat"]):
        raise ValueError("a score that is not finite")
    return Result(**{**entry, "shape": tuple(entry["shape"])})


class Journal:
    """Finished tensors of a scan that runs; a killed one goes on from them. `with Journal.of(...) as journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Result] = {}

    @classmethod
    @contextmanager
    def of(cls, cache_dir: Path, weights: str) -> Iterator[Journal]:
        """The journal of these weights; another process that scans them waits.

        Raises:
            EnvironmentProblem: the cache folder cannot be written.
        """
        final = scan_file(cache_dir, weights)
        path = final.with_suffix(".partial.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(final.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise explain_os_error(error, path) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            journal = cls(path)
            journal.read()
            yield journal
        finally:
            os.close(lock)

    def read(self) -> None:
        """Take over what is there; a torn last line is cut off, a line that is no result is left out."""
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
        for line in whole.splitlines():
            try:
                result = _result(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
            self.done[result.name] = result

    def keep(self, results: Sequence[Result]) -> None:
        """Add finished tensors.

        Raises:
            EnvironmentProblem: disk full and the like.
        """
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                for result in results:
                    stream.write(json.dumps(asdict(result), allow_nan=False) + "\n")
                    self.done[result.name] = result
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def finish(self, cache_dir: Path, scan: Scan) -> None:
        """Write the finished scan, and drop the journal."""
        write_json(scan_file(cache_dir, scan.weights), scan.to_json())
        self.path.unlink(missing_ok=True)
