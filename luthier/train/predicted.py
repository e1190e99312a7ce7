"""What the plan said (`plan.json` of the run folder) beside what was measured (`measured.json`)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json
from luthier.train.calibrate import Calibration
from luthier.train.measure import Measured

__all__ = ["Prediction", "calibration_line", "predicted", "write_measured"]

PLAN_FILE, MEASURED_FILE = "plan.json", "measured.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The numbers of a plan that a run can be held to; None where it says nothing."""

    peak_bytes: int | None
    seconds_per_step: float | None


def predicted(run: RunFolder) -> Prediction | None:
    """The plan of the run, if it has one."""
    file = run.path / PLAN_FILE
    if not file.is_file():
        return None
    value = json.loads(file.read_text("utf-8"))
    memory, time = value.get("memory", {}), value.get("time", {})
    return Prediction(peak_bytes=memory.get("total"), seconds_per_step=time.get("seconds_per_step"))


def calibration_line(found: Calibration, plan: Prediction | None, *, steps: int) -> str:
    """One line for people: prediction, measurement, and how long the run will take."""
    said = ""
    if plan is not None and plan.peak_bytes is not None and plan.seconds_per_step is not None:
        said = f"plan said {_gib(plan.peak_bytes)} and {_seconds(plan.seconds_per_step)} a step; "
    return (
        f"{said}measured {_gib(found.peak_bytes)} and {_seconds(found.seconds_per_step)} a step on the largest "
        f"micro-batch ({found.tokens:,} tokens, {found.documents} documents); "
        f"{steps:,} steps take about {duration(found.seconds_per_step * steps)}"
    )


def write_measured(run: RunFolder, measured: Measured) -> None:
    """Write `measured.json`."""
    write_json(run.path / MEASURED_FILE, measured.to_json())


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
