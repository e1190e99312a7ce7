"""A store with a clock that tests turn, and jobs to put in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.jobs.core import new_id
from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store

ROW = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}\n'


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def open_store(home: Path, clock: Clock | None = None) -> Store:
    return Store.open(home, clock=clock or Clock())


def add_file(store: Store, owner: str = "ann", rows: int = 12) -> str:
    return store.add_file(owner, "train.jsonl", "fine-tune", [ROW] * rows).id


def job_record(store: Store, file: str, owner: str = "ann", **changes: Any) -> JobRecord:
    id_ = new_id("ftjob-")
    values: dict[str, Any] = {
        "id": id_, "owner": owner, "created_at": store.now(), "model": "gpt-4o-mini-2024-07-18", "base": "base",
        "method": {"type": "supervised"}, "hyperparameters": {"n_epochs": "auto"}, "training_file": file, "seed": 1,
        "run_name": id_,
    }  # fmt: skip
    return JobRecord(**{**values, **changes})


def add_job(store: Store, file: str, owner: str = "ann", **changes: Any) -> JobRecord:
    return store.create_job(job_record(store, file, owner, **changes))[0]


def queue_job(store: Store, file: str, owner: str = "ann", **changes: Any) -> JobRecord:
    return store.move(add_job(store, file, owner, **changes).id, to="queued")
