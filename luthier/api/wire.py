"""Records as OpenAI's JSON. Every field its client knows is always there: its strict mode refuses what lacks one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.jobs.records import (
    ALL_OWNERS,
    CheckpointRecord,
    EventRecord,
    FileRecord,
    JobRecord,
    ModelRecord,
    PartRecord,
    UploadRecord,
)

__all__ = ["checkpoint", "deleted", "event", "file", "job", "model", "page", "part", "upload"]

METRICS = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "full_valid_loss",
    "full_valid_mean_token_accuracy",
)  # fmt: skip


def page(data: Sequence[dict[str, Any]], *, has_more: bool, ends: bool = False) -> dict[str, Any]:
    """A list.

    Args:
        data: Its objects.
        has_more: Always told: the client asks for further pages for ever when it is missing.
        ends: Tell `first_id` and `last_id` too.
    """
    found: dict[str, Any] = {"object": "list", "data": list(data), "has_more": has_more}
    if ends:
        found["first_id"] = data[0]["id"] if data else None
        found["last_id"] = data[-1]["id"] if data else None
    return found


def deleted(name: str, kind: str) -> dict[str, Any]:
    """Something is gone."""
    return {"id": name, "object": kind, "deleted": True}


def file(record: FileRecord) -> dict[str, Any]:
    """`FileObject`."""
    return {
        "id": record.id, "object": "file", "bytes": record.bytes, "created_at": record.created_at,
        "filename": record.filename, "purpose": record.purpose, "status": record.status,
        "status_details": record.status_details, "expires_at": record.expires_at,
    }  # fmt: skip


def upload(record: UploadRecord, made: FileRecord | None) -> dict[str, Any]:
    """`Upload`."""
    return {
        "id": record.id, "object": "upload", "bytes": record.bytes, "created_at": record.created_at,
        "expires_at": record.expires_at, "filename": record.filename, "purpose": record.purpose,
        "status": record.status, "file": None if made is None else file(made),
    }  # fmt: skip


def part(record: PartRecord) -> dict[str, Any]:
    """`UploadPart`."""
    return {
        "id": record.id, "object": "upload.part", "created_at": record.created_at, "upload_id": record.upload_id,
    }  # fmt: skip


def job(record: JobRecord) -> dict[str, Any]:
    """`FineTuningJob`, with what the client sent as `luthier` and the name of the run."""
    return {
        "id": record.id, "object": "fine_tuning.job", "created_at": record.created_at,
        "finished_at": record.finished_at, "estimated_finish": record.estimated_finish, "model": record.model,
        "fine_tuned_model": record.fine_tuned_model, "organization_id": record.owner, "status": record.status,
        "hyperparameters": dict(record.hyperparameters), "method": dict(record.method),
        "training_file": record.training_file, "validation_file": record.validation_file,
        "result_files": list(record.result_files), "trained_tokens": record.trained_tokens, "seed": record.seed,
        "error": None if record.error is None else _error(record.error),
        "integrations": [dict(one) for one in record.integrations] or None, "metadata": dict(record.metadata) or None,
        "user_provided_suffix": record.suffix, "luthier": dict(record.luthier), "started_at": record.started_at,
        "run": record.run_name, "priority": record.priority,
    }  # fmt: skip


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    return {"code": error.get("code"), "message": error.get("message"), "param": error.get("param")}


def event(record: EventRecord) -> dict[str, Any]:
    """`FineTuningJobEvent`."""
    return {
        "id": record.id, "object": "fine_tuning.job.event", "created_at": record.created_at, "level": record.level,
        "message": record.message, "type": record.type, "data": dict(record.data),
    }  # fmt: skip


def checkpoint(record: CheckpointRecord) -> dict[str, Any]:
    """`FineTuningJobCheckpoint`."""
    metrics = {name: record.metrics.get(name) for name in METRICS}
    return {
        "id": record.id, "object": "fine_tuning.job.checkpoint", "created_at": record.created_at,
        "fine_tuning_job_id": record.job_id, "fine_tuned_model_checkpoint": record.name, "step_number": record.step,
        "metrics": {**metrics, "step": record.step},
    }  # fmt: skip


def model(record: ModelRecord) -> dict[str, Any]:
    """`Model`."""
    owner = "luthier" if record.owner == ALL_OWNERS else record.owner
    return {
        "id": record.name, "object": "model", "created": record.created, "owned_by": owner,
        "parent": record.parent, "root": record.base if record.kind != "base" else None, "kind": record.kind,
        "job_id": record.job_id, "shutdown_date": None,
    }  # fmt: skip
