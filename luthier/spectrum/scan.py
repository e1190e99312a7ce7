"""The scan: tensor by tensor, each result kept at once, never the whole model in memory.

On a CPU one tensor is in memory at a time; on a GPU matrices of one shape go together while their Gram matrices and
they themselves take at most `BATCH_BYTES` in float64. A stack of experts is worked off in parts of that size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from luthier.runtime.console import Bar, note, progress
from luthier.runtime.errors import RecipeError, RunFailed
from luthier.spectrum.results import Journal, Result, Scan, load_scan
from luthier.spectrum.scores import Values, calibrated, compat
from luthier.spectrum.singular import singular_values
from luthier.spectrum.tensors import Skipped, Stored, list_tensors, read_tensor

__all__ = ["BATCH_BYTES", "scan_files", "score_tensors"]

BATCH_BYTES = 256 << 20


def scan_files(
    files: Sequence[Path], *, weights: str, source: str, cache_dir: Path, device: Literal["cpu", "cuda"] = "cpu"
) -> Scan:
    """Rank every tensor of a model's files; a finished scan of the same bytes is taken as it is.

    Args:
        files: checked safetensors files.
        weights: content hash of them all.
        source: the name of the model, for people.
        cache_dir: where results are kept.
        device: where singular values are computed.

    Raises:
        RecipeError: no tensor can be ranked (quantised weights, an architecture without numbered layers).
        RunFailed: a tensor holds NaN or infinity.
        EnvironmentProblem: the cache cannot be written.
    """
    tensors, skipped = list_tensors(files)
    if not tensors:
        raise _nothing_to_rank(source, skipped)
    with Journal.of(cache_dir, weights) as journal:
        finished = load_scan(cache_dir, weights)  # another process may have been faster
        if finished is not None:
            return finished
        todo = [stored for stored in tensors if stored.name not in journal.done]
        if len(todo) < len(tensors):
            note(f"spectrum: going on after {len(tensors) - len(todo)} of {len(tensors)} tensors")
        with progress("spectrum", len(tensors), "tensors") as bar:
            bar.advance(len(tensors) - len(todo))
            _work_off(todo, journal, bar, device)
        scan = Scan(
            weights=weights, source=source, device=device,
            results=tuple(journal.done[stored.name] for stored in tensors),
            skipped=tuple((item.name, item.reason) for item in skipped),
        )  # fmt: skip
        journal.finish(cache_dir, scan)
    return scan


def _nothing_to_rank(source: str, skipped: Sequence[Skipped]) -> RecipeError:
    reasons = list(dict.fromkeys(item.reason for item in skipped if "norm or a bias" not in item.reason))
    return RecipeError(
        code="M333", message=f"{source} holds no matrix that can be ranked: {'; '.join(reasons[:3]) or 'no tensor'}",
        hint="use the original, unquantised model; or name the weights with `method: freeze` and `trainable`",
    )  # fmt: skip


def _work_off(todo: Sequence[Stored], journal: Journal, bar: Bar, device: str) -> None:
    for group in _groups(todo, together=device == "cuda"):
        results = score_tensors(group, device)
        journal.keep(results)
        bar.advance(len(group), say=f"{results[-1].name}")


def _groups(todo: Sequence[Stored], *, together: bool) -> Iterator[list[Stored]]:
    """Tensors that are computed at once: one, or matrices of one shape that fit into `BATCH_BYTES`."""
    if not together:
        yield from ([stored] for stored in todo)
        return
    by_shape: dict[tuple[object, ...], list[Stored]] = {}
    for stored in todo:
        by_shape.setdefault((stored.shape, stored.dtype), []).append(stored)
    for alike in by_shape.values():
        count = _at_once(alike[0].shape) if len(alike[0].shape) == 2 else 1
        yield from (alike[start : start + count] for start in range(0, len(alike), count))


def _at_once(shape: Sequence[int]) -> int:
    """Matrices of (n, m) whose Gram matrices and float64 copies fit into `BATCH_BYTES`; at least one."""
    shorter, longer = sorted(shape[-2:])
    return int(max(1, BATCH_BYTES // (8 * shorter * (shorter + longer))))


def score_tensors(group: Sequence[Stored], device: str) -> list[Result]:
    """Both scores of tensors of one shape and dtype.

    Raises:
        RunFailed: NaN or infinity, with the name.
    """
    started = time.perf_counter()
    stack = torch.stack([_finite(stored) for stored in group]) if len(group) > 1 else _finite(group[0])[None]
    experts = stack.shape[1] if stack.dim() == 4 else 1
    matrices = stack.flatten(0, -3)
    values: list[Values] = []
    how: list[str] = []
    count = _at_once(matrices.shape) if device == "cuda" or experts > 1 else 1
    for start in range(0, matrices.shape[0], count):
        found, ways = singular_values(matrices[start : start + count].to(device))
        values += found
        how += ways
    seconds = (time.perf_counter() - started) / len(group)
    return [
        _result(stored, values[place : place + experts], how[place : place + experts], seconds)
        for place, stored in zip(range(0, len(values), experts), group, strict=True)
    ]


def _finite(stored: Stored) -> Any:
    tensor = read_tensor(stored)
    if not bool(torch.isfinite(tensor).all()):
        raise RunFailed(
            code="M309", message=f"{stored.file} holds NaN or infinity in {stored.name}", hint="fetch the model again"
        )
    return tensor


def _result(stored: Stored, values: Sequence[Values], how: Sequence[str], seconds: float) -> Result:
    n, m = stored.shape[-2:]
    found = calibrated(values, n, m)
    return Result(
        name=stored.name, shape=stored.shape, dtype=stored.dtype, how=", ".join(sorted(set(how))),
        compat=float(np.mean([compat(row, n, m) for row in values])),
        calibrated=found.score if found else None, signal_rank=found.rank if found else None,
        noise_std=found.noise_std if found else None, spectral_norm=float(max(row[0] for row in values)),
        seconds=round(seconds, 6),
    )  # fmt: skip
