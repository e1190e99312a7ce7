"""A first look at a log of metrics, without reading all of a long one: the last steps, points for a small picture."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.studio.clean import finite
from luthier.studio.runs.tail import parsed

__all__ = ["Glance", "glance"]

POINTS = 40
RECENT = 20
_WHOLE = 1 << 20
"""Files up to so many bytes are read as a whole."""
_END = 64 << 10
_EVAL = b'"eval_loss":'
_TRAIN = (b'"loss":', b'"reward":')


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What was seen."""

    recent: list[dict[str, Any]] = field(default_factory=list)
    """The last training lines, newest first."""
    eval_loss: float | None = None
    """Of the last validation."""
    train: list[float | None] = field(default_factory=list)
    """Up to 40 losses, evenly spaced over the steps."""
    evals: list[list[float]] = field(default_factory=list)
    """[place 0 to 1, loss] of the last validations."""


def glance(file: Path) -> Glance:
    """Look at metrics.jsonl; nothing of a file that is not there."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            if size <= _WHOLE:
                stream.seek(0)
                lines = stream.read().split(b"\n")[:-1]
                return _seen(lines, lines, [line for line in lines if _EVAL in line])
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                end = view[max(0, size - _END) :].split(b"\n")[1:-1]
                return _seen(_spread(view), end, _validations(view))
    except (OSError, ValueError):
        return Glance()


def _spread(view: mmap.mmap) -> list[bytes]:
    """Lines at even distances."""
    size = len(view)
    starts = {0} | {view.find(b"\n", size * place // (2 * POINTS)) + 1 for place in range(1, 2 * POINTS)}
    return [view[start:end] for start in sorted(starts) if (end := view.find(b"\n", start)) > start]


def _validations(view: mmap.mmap) -> list[bytes]:
    starts = [view.rfind(b"\n", 0, match.start()) + 1 for match in re.finditer(_EVAL, view)]
    return [view[start:end] for start in starts[-POINTS:] if (end := view.find(b"\n", start)) > start]


def _seen(lines: Sequence[bytes], end: Sequence[bytes], validations: Sequence[bytes]) -> Glance:
    """Only the lines that are shown are parsed."""
    train = [line for line in lines if _is_training(line)]
    newest = [line for line in end[-4 * RECENT :] if _is_training(line)][-RECENT:]
    if len(train) > POINTS:
        train = [train[place * len(train) // POINTS] for place in range(POINTS)]
        train[-1] = newest[-1] if newest else train[-1]
    recent = _parsed(newest)[::-1]
    shown, told = _parsed(train), _parsed(validations[-POINTS:])
    steps = [step for line in (*recent[:1], *told[-1:]) if (step := finite(line.get("step"))) is not None]
    last = max([1, *steps])
    evals = [
        [min(1.0, step / last), loss]
        for line in told
        if (loss := finite(line.get("eval_loss"))) is not None and (step := finite(line.get("step"))) is not None
    ]
    return Glance(
        recent=recent, eval_loss=evals[-1][1] if evals else None, train=[finite(line.get("loss")) for line in shown],
        evals=evals,
    )  # fmt: skip


def _is_training(line: bytes) -> bool:
    return any(key in line for key in _TRAIN)


def _parsed(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    return [value for line in lines if (value := parsed(line)) is not None]
