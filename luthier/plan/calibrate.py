"""Measured against predicted, kept for the next plan on this machine.

One JSON line a finished training in `<cache>/plan/calibration.jsonl`:

    {"key": {"device": "H200", "model": "llama 8.0e+09", "method": "lora plain 2 bytes x1"},
     "predicted": {"peak_bytes": ..., "seconds_per_step": ...},      before any correction
     "measured":  {"peak_bytes": ..., "seconds_per_step": ...},
     "time": "2026-11-26T12:00:00Z"}

The correction of a key is the median ratio of its last five lines, bounded, so that one odd run moves little.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from luthier.runtime.atomic import explain_os_error

__all__ = ["Correction", "Measured", "calibration_file", "correction", "record"]

LAST = 5
BOUNDS = {"peak_bytes": (0.5, 2.0), "seconds_per_step": (0.2, 5.0)}
"""A ratio outside was another kind of run (shared device, wrong key); it is cut to the bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run measured."""

    peak_bytes: int
    """Of the allocator on CUDA (`max_memory_allocated`), of the process elsewhere."""
    seconds_per_step: float
    """Median over the steps after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors on a prediction."""

    memory: float = 1.0
    seconds: float = 1.0
    runs: int = 0
    """How many runs they come from; 0: none, nothing is corrected."""


def calibration_file(cache_dir: Path) -> Path:
    """Where records of this machine are."""
    return cache_dir / "plan" / "calibration.jsonl"


def record(path: Path, predicted: Mapping[str, Any], measured: Measured) -> None:
    """Append one run.

    Args:
        path: `calibration_file(cache_dir)`.
        predicted: `predicted` of the run's `plan.json`: `key`, and uncorrected `peak_bytes` and `seconds_per_step`.
        measured: the same two, as measured.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    line = {
        "key": predicted["key"],
        "predicted": {name: predicted[name] for name in ("peak_bytes", "seconds_per_step")},
        "measured": asdict(measured),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, path) from error


def correction(path: Path, key: Mapping[str, str]) -> Correction:
    """What earlier runs of the same kind on this machine say; lines that cannot be read are left out."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return Correction()
    memory: list[float] = []
    seconds: list[float] = []
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["key"] == dict(key):
                memory.append(_ratio(entry, "peak_bytes"))
                seconds.append(_ratio(entry, "seconds_per_step"))
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue
    if not seconds:
        return Correction()
    return Correction(memory=median(memory[-LAST:]), seconds=median(seconds[-LAST:]), runs=len(seconds))


def _ratio(entry: Mapping[str, Any], name: str) -> float:
    low, high = BOUNDS[name]
    return min(max(float(entry["measured"][name]) / float(entry["predicted"][name]), low), high)
