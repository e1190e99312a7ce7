"""What the service keeps: frozen records, as the store gives them. Times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "CheckpointRecord",
    "EventRecord",
    "FileRecord",
    "JobRecord",
    "KeyRecord",
    "ModelRecord",
    "PartRecord",
    "UploadRecord",
]

ALL_OWNERS = "*"
"""As the asker: sees everything. As the owner of a model: everyone sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file that was uploaded, or that a job wrote."""

    id: str
    """`file-...`; also the name of the blob."""
    owner: str
    bytes: int
    created_at: int
    filename: str
    """As the client called it; never a path."""
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """A file that arrives in parts."""

    id: str
    """`upload_...`"""
    owner: str
    bytes: int
    """As announced; the parts must add up to it."""
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    mime_type: str
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"
    file_id: str | None = None
    file_expires_after: int | None = None
    """Seconds the finished file is kept; None: for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """One part of an upload."""

    id: str
    """`part_...`; also the name of its blob."""
    upload_id: str
    created_at: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A fine-tuning job."""

    id: str
    """`ftjob-...`"""
    owner: str
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    """As asked for: an alias, a base, or a tuned model."""
    base: str
    """What the recipe loads as `model.name_or_path`."""
    status: str = "validating_files"
    wanted: Literal["run", "pause", "cancel"] = "run"
    """What the user wants of it; the worker brings `status` there."""
    method: Mapping[str, Any]
    """As OpenAI's `method`: `{"type": "dpo", "dpo": {"hyperparameters": {...}}}`."""
    hyperparameters: Mapping[str, Any]
    """What they came to; `"auto"` until it is known."""
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    integrations: tuple[Mapping[str, Any], ...] = ()
    luthier: Mapping[str, Any] = field(default_factory=dict)
    """Recipe keys of the client's `extra_body`, as given."""
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None
    fine_tuned_model: str | None = None
    error: Mapping[str, Any] | None = None
    """`{"code", "message", "param"}` of a failed job."""
    run_name: str
    priority: int = 0
    """Higher ones are claimed first."""
    attempts: int = 0
    """How often a worker began or took it up again."""
    worker: str | None = None
    lease_until: float | None = None
    """Until when the worker must report again."""
    planned_seconds: float | None = None
    """How long it takes by the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that happened to a job."""

    id: str
    """`ftevent-...`"""
    job_id: str
    seq: int
    """Rises over all events of the service."""
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A saved state of a job, callable as a model."""

    id: str
    """`ftckpt_...`"""
    job_id: str
    created_at: int
    step: int
    name: str
    """`<model>:ckpt-step-N`"""
    metrics: Mapping[str, Any]
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model that can be called by name."""

    name: str
    owner: str
    created: int
    kind: Literal["base", "tuned", "checkpoint"]
    base: str
    path: str | None = None
    """Folder of the weights; None: `base` is loaded as it is."""
    job_id: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """An API key; its text is shown once and not kept."""

    id: str
    name: str
    owner: str
    scopes: frozenset[str]
    created_at: int
    revoked_at: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    """`max_queued` jobs that wait, `requests_per_minute`; a missing one is no limit."""
    hash: str = field(repr=False)
    """SHA-256 of the text, in hexadecimal."""
