"""The result file: `step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy`, one line a logged step.

A cell is blank where its number was not measured: validation between its steps, accuracy of other objectives than SFT.
Numbers are written as they were measured, at full precision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["COLUMNS", "result_csv", "result_name"]

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_KEYS = {
    "loss": "train_loss", "token_accuracy": "train_accuracy", "eval_loss": "valid_loss",
    "eval_token_accuracy": "valid_mean_token_accuracy",
}  # fmt: skip


def result_name(job_id: str) -> str:
    """Of the file; one a job."""
    return f"step_metrics-{job_id}.csv"


def result_csv(metrics: Iterable[Mapping[str, Any]]) -> bytes:
    """From the lines of `metrics.jsonl`."""
    rows: dict[int, dict[str, Any]] = {}
    for line in metrics:
        row = rows.setdefault(int(line["step"]), {"step": line["step"]})
        row.update({_KEYS[key]: repr(value) for key, value in line.items() if key in _KEYS})
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue().encode("ascii")
