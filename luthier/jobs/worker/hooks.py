"""What the worker takes from the rest of the service: the recipe of a job, the check of its files, its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store
from luthier.jobs.worker.settings import WorkerSettings


def recipe_maker(store: Store, settings: WorkerSettings) -> Callable[[JobRecord], Mapping[str, Any]]:
    """Makes the recipe of a job."""

    def make(job: JobRecord) -> Mapping[str, Any]:
        file = store.file_path(store.file(job.training_file))
        return {**job.luthier, "data": {"train": [{"path": str(file), "format": "messages"}], **job.luthier.get("data", {})},
                "output_dir": str(Path(settings.runs).absolute() / job.run_name)}

    return make


def check_job(store: Store, settings: WorkerSettings, job: JobRecord) -> dict[str, Any] | None:
    """The error of a job whose files cannot be trained on."""
    return None


def plan_of(recipe: Path) -> Mapping[str, Any] | None:
    """A plan."""
    return None
