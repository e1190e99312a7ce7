"""Runs of `fit` over preferences on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.pairs import Preferences, preferences
from tests.train.support import LORA, Run, resolved, train

__all__ = ["DPO", "LORA", "logged", "tune"]

DPO = {"name": "dpo", "beta": 0.1}


def tune(
    folder: Path, prepared: Preferences | None = None, *, objective: dict[str, Any] | None = None, **settings: Any
) -> Run:
    """Run `fit` with an objective over preferences; keyword arguments as for `tests.train.support.train`."""
    own = ("model", "restart", "fingerprint", "reference_cache")
    recipe = {key: settings.pop(key) for key in own if key in settings}
    whole = resolved(objective=objective or DPO, **settings)
    return train(folder, prepared or preferences(), recipe=whole, **recipe)


def logged(run: Run, key: str) -> list[float]:
    """A metric of every line that has it."""
    return [line[key] for line in run.metrics if key in line]
