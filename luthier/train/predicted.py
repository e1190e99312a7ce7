"""What the plan said (`plan.json` of the run folder) beside what was measured (`measured.json`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.plan import calibrate
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json
from luthier.train.calibrate import Calibration
from luthier.train.measure import Measured

__all__ = ["Prediction", "calibration_line", "measured_mfu", "predicted", "tell_next_plan", "write_measured"]

PLAN_FILE, MEASURED_FILE = "plan.json", "measured.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The numbers of a plan that a run can be held to, corrected by earlier runs of this machine."""

    peak_bytes: int
    """Of the allocator."""
    seconds_per_step: float
    update_seconds: float
    """Of them in the optimizer's update, with the way of what is offloaded."""
    tokens_per_second: float
    mfu: float | None
    """Share of the device's peak rate; None on a CPU."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def predicted(run: RunFolder) -> Prediction | None:
    """The plan of the run, if it has one."""
    file = run.path / PLAN_FILE
    if not file.is_file():
        return None
    value = json.loads(file.read_text("utf-8"))
    memory, step = value["memory"], value["time"]
    parts = step["parts"]
    correction = step["seconds_per_step"] / max(sum(parts.values()), 1e-12)
    return Prediction(
        peak_bytes=memory["peak"], seconds_per_step=step["seconds_per_step"],
        update_seconds=(parts.get("optimizer", 0.0) + parts.get("offload", 0.0)) * correction,
        tokens_per_second=step["tokens_per_second"], mfu=step["mfu"],
    )  # fmt: skip


def calibration_line(found: Calibration, plan: Prediction | None, *, steps: int) -> str:
    """One line for people: prediction, measurement, and how long the run will take.

    The calibration makes no update; where there is a plan, its time for that is added.
    """
    said = extra = ""
    seconds = found.seconds_per_step
    if plan is not None:
        seconds += plan.update_seconds
        said = f"plan said {_gib(plan.peak_bytes)} and {_seconds(plan.seconds_per_step)} a step; "
        extra = f" with {_seconds(plan.update_seconds)} planned for the update"
    return (
        f"{said}measured {_gib(found.peak_bytes)} and {_seconds(seconds)} a step{extra} (largest micro-batch: "
        f"{found.tokens:,} tokens, {found.documents} documents); {steps:,} steps take about {duration(seconds * steps)}"
    )


def measured_mfu(measured: Measured, plan: Prediction | None) -> float | None:
    """Share of the device's peak rate that was reached.

    MFU = tokens a second x model FLOPs a token / peak FLOPs a second, and the plan's has the same two constants
    (`plan/flops.py:model_flops_per_token`), so it scales with the tokens a second.
    """
    if plan is None or plan.mfu is None or measured.tokens_per_second is None:
        return None
    return plan.mfu * measured.tokens_per_second / plan.tokens_per_second


def write_measured(run: RunFolder, measured: Measured, plan: Prediction | None) -> None:
    """Write `measured.json`: what was measured, and under `predicted` what the plan said."""
    write_json(run.path / MEASURED_FILE, {**measured.to_json(), "predicted": plan.to_json() if plan else None})


def tell_next_plan(run: RunFolder, measured: Measured, *, cache_dir: Path) -> None:
    """Keep measured beside predicted for the next plan on this machine; nothing without a plan or a second step.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    file = run.path / PLAN_FILE
    if not file.is_file() or measured.steps < 2 or measured.seconds_per_step is None:
        return
    said = json.loads(file.read_text("utf-8"))["predicted"]
    found = calibrate.Measured(peak_bytes=measured.peak_bytes, seconds_per_step=measured.seconds_per_step)
    calibrate.record(calibrate.calibration_file(cache_dir), said, found)


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
