"""Points of a training curve for a small picture, without reading all of a long log."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

from luthier.studio.clean import finite
from luthier.studio.runs.tail import parsed

__all__ = ["sparkline"]

POINTS = 40
_WHOLE = 1 << 20
"""Files up to so many bytes are read as a whole."""
_EVAL = re.compile(rb'"eval_loss": ')


def sparkline(file: Path) -> dict[str, Any]:
    """`train`: up to 40 losses, evenly spaced over the steps; `eval`: [place 0 to 1, loss] of the validations."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            if size <= _WHOLE:
                stream.seek(0)
                data = stream.read()
                return _of([value for text in data.split(b"\n") if (value := parsed(text)) is not None])
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _of(_sampled(view))
    except (OSError, ValueError):
        return {"train": [], "eval": []}


def _sampled(view: mmap.mmap) -> list[dict[str, Any]]:
    """Lines at even distances, and all lines of validations."""
    size = len(view)
    starts = {0} | {view.find(b"\n", size * place // (2 * POINTS)) + 1 for place in range(1, 2 * POINTS)}
    starts |= {view.rfind(b"\n", 0, match.start()) + 1 for match in _EVAL.finditer(view)}
    found = []
    for start in sorted(starts):
        end = view.find(b"\n", start)
        if end > start and (value := parsed(view[start:end])) is not None:
            found.append(value)
    return found


def _of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [step for line in lines if (step := finite(line.get("step"))) is not None]
    if not steps:
        return {"train": [], "eval": []}
    last = max(*steps, 1)
    train = [line for line in lines if "loss" in line or "reward" in line]
    chosen = [train[place * len(train) // POINTS] for place in range(POINTS)] if len(train) > POINTS else train
    if chosen and chosen[-1] is not train[-1]:
        chosen[-1] = train[-1]
    return {
        "train": [finite(line.get("loss")) for line in chosen],
        "eval": [
            [min(1.0, step / last), loss]
            for line in lines
            if (loss := finite(line.get("eval_loss"))) is not None and (step := finite(line.get("step"))) is not None
        ][-POINTS:],
    }
