"""States of a job, and which may follow which. Nothing goes backward, and an ended job stays as it is.

    validating_files -> queued -> running -> succeeded | failed | cancelled
                                  running <-> paused -> cancelled | failed

A job whose worker died stays `running` and is claimed again.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.jobs.errors import Conflict

__all__ = ["ALLOWED", "ENDED", "LIVE", "STATES", "WAITING", "check_move", "message_of"]

ALLOWED: Mapping[str, frozenset[str]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"running", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
STATES = tuple(ALLOWED)
ENDED = frozenset(state for state, after in ALLOWED.items() if not after)
LIVE = frozenset(STATES) - ENDED
WAITING = frozenset({"validating_files", "queued"})
"""What `max_queued` counts."""

_MESSAGES = {
    ("", "validating_files"): "Created fine-tuning job: {id}",
    ("validating_files", "queued"): "Files validated, moving job to queued state",
    ("queued", "running"): "Fine-tuning job started",
    ("running", "paused"): "Fine-tuning job paused",
    ("paused", "running"): "Fine-tuning job resumed",
    ("running", "running"): "Worker lost; job taken up again from its last checkpoint",
    ("", "succeeded"): "The job has successfully completed",
    ("", "failed"): "The job failed: {reason}",
    ("", "cancelled"): "Fine-tuning job cancelled",
}


def check_move(job_id: str, old: str, new: str) -> None:
    """Raise unless `new` may follow `old`.

    Raises:
        Conflict: J103; says what may follow.
    """
    if new not in ALLOWED:
        raise Conflict(code="J103", message=f"`{new}` is no state of a job", hint=f"states are {', '.join(STATES)}")
    if new in ALLOWED[old]:
        return
    after = ", ".join(state for state in STATES if state in ALLOWED[old])
    hint = f"from {old} it can become {after}" if after else f"{old} is final"
    raise Conflict(code="J103", message=f"job {job_id} is {old} and cannot become {new}", hint=hint)


def message_of(job_id: str, old: str, new: str, reason: str = "") -> str:
    """What the event of a change says (the hosted service's words where it has some)."""
    text = _MESSAGES.get((old, new)) or _MESSAGES[("", new)]
    return text.format(id=job_id, reason=reason or "no reason given")
