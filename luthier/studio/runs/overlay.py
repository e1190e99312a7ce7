"""What is not in the files of a run: whether it goes on now, what was asked of it, its job, what users say about it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from luthier.studio.runs.processes import alive, born
from luthier.studio.runs.times import iso, seconds_of
from luthier.studio.store import Child, Notes

__all__ = ["JOB_STATUS", "actions_of", "overlaid", "waiting_line"]

JOB_STATUS = {
    "validating_files": "validating", "queued": "queued", "running": "running", "paused": "paused",
    "succeeded": "finished", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip
"""Status of a job -> status of a line."""
_WANTED = {"stop": "stopping", "pause": "stopping", "stop_now": "stopping"}


def overlaid(
    line: Mapping[str, Any], *, pid: int | None, child: Child | None, notes: Notes | None, job: Any | None
) -> dict[str, Any]:  # fmt: skip
    """A line as it is shown.

    Args:
        line: From `disk_line`.
        pid: The process that holds the folder.
        child: What the studio started or asked for.
        notes: What users say.
        job: The record of the job it belongs to (`luthier.jobs`).
    """
    found = dict(line)
    starting = child is not None and child.pid > 0 and alive(child.pid) and born(child.pid) == child.born
    if pid is not None or starting:
        found["status"] = _WANTED.get(child.wanted, "running") if child is not None else "running"
        found["finished_at"], found["error"] = None, None
        begun = seconds_of(found.get("stage_started"))
        if begun is not None:
            found["seconds"] = (found["seconds"] or 0.0) + max(0.0, time.time() - begun)
    elif child is not None and child.wanted == "pause" and found["status"] == "stopped":
        found["status"] = "paused"
    if job is not None:
        found["job"] = job.id
        found["status"] = _job_status(job, found["status"])
        if found["status"] in ("failed", "cancelled") and job.error:
            found["error"] = {"code": str(job.error.get("code") or ""), "message": str(job.error.get("message") or "")}
    if notes is not None:
        found["pinned"], found["tags"], found["notes"] = notes.pinned, list(notes.tags), notes.notes
    found["actions"] = actions_of(found)
    found.pop("stage_started", None)
    return found


def _job_status(job: Any, on_disk: str) -> str:
    """A job whose worker died is still `running`; a claimed one is before its folder says so."""
    status = JOB_STATUS.get(job.status, "running")
    if status == "running" and job.wanted in ("pause", "cancel"):
        return "stopping"
    return status


def actions_of(line: Mapping[str, Any]) -> list[str]:
    """What may be asked of a run in its status."""
    status = line["status"]
    if line["job"] is not None:
        return {
            "queued": ["cancel"], "validating": ["cancel"], "running": ["pause", "cancel"],
            "paused": ["resume", "cancel"],
        }.get(status, [])  # fmt: skip
    if status == "running":
        return ["pause", "stop", "stop_now"]
    if status == "stopping":
        return ["stop_now"]
    return ["resume"] if status in ("stopped", "paused", "failed") else []


def waiting_line(job: Any, ident: str) -> dict[str, Any]:
    """The line of a job without a run folder."""
    when = iso(job.created_at)
    return {
        "id": ident, "name": ident, "title": job.suffix, "status": "queued", "stage": None, "base": str(job.base or ""),
        "method": str(job.hyperparameters.get("method", "lora")) if isinstance(job.hyperparameters, dict) else "lora",
        "objective": "dpo" if job.method.get("type") == "dpo" else "sft", "data": [str(job.training_file)],
        "step": None, "total_steps": None, "loss": None, "eval_loss": None, "spark": {"train": [], "eval": []},
        "headline": None, "score": None, "tokens_per_second": None, "peak_bytes": None, "seconds": None,
        "processes": None, "started_at": None, "finished_at": iso(job.finished_at) if job.finished_at else None,
        "updated_at": when,
        "error": None, "warnings": [], "job": job.id, "pinned": False, "tags": [], "notes": "", "actions": [],
        "stage_started": None,
    }  # fmt: skip
