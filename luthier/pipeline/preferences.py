"""After a training over preferences: what changed on the held-out answers."""

from __future__ import annotations

import json
from typing import Any

from luthier.evaluate.preferences import preference_lines, summarise
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.train.preferences import ROWS_FILE

__all__ = ["SUMMARY_FILE", "measure_preferences"]

SUMMARY_FILE = "eval/preferences.json"


def measure_preferences(run: RunFolder, *, confidence: float) -> dict[str, Any]:
    """Write and tell the summary of the held-out rows that training left; empty where it left none."""
    file = run.path / ROWS_FILE
    if not file.is_file():
        (run.path / SUMMARY_FILE).unlink(missing_ok=True)
        return {}
    summary = summarise(json.loads(file.read_text("utf-8")), confidence=confidence)
    write_json(run.path / SUMMARY_FILE, summary)
    for line in preference_lines(summary):
        note(f"  {line}")
    return {"preferences": summary}
