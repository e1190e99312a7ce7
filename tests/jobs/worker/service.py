"""A home with a tiny model and jobs over it, and the processes that run them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store
from luthier.jobs.worker.hooks import RecipeOf, recipe_maker
from luthier.jobs.worker.settings import WorkerSettings
from tests.support.tiny import conversations, save_tiny


def stand_in(**workers) -> dict:
    """Settings with which runs are those of `stand_in.py`."""
    command = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
    return {"launch": {"command": command, "environment": {"PYTHONPATH": str(Path(__file__).parents[3])}}, **workers}


class Service:
    """Makes jobs; knows where everything is."""

    def __init__(self, folder: Path, launch=None, **workers) -> None:
        self.folder, self.home, self.runs = folder, folder / "home", folder / "runs"
        self.store = Store.open(self.home)
        if launch is None and not (folder / "model").is_dir():
            save_tiny(folder / "model")
        quick = {"poll_seconds": 0.05, "lease_seconds": 20.0, "grace_seconds": 20.0, "crash_wait_seconds": 0.0,
                 "devices": []}  # fmt: skip
        self.settings = WorkerSettings(runs=str(self.runs), workers={**quick, **workers}, launch=launch or {})
        rows = "".join(json.dumps(row) + "\n" for row in conversations(24))
        self.file = self.store.add_file("me", "rows.jsonl", "fine-tune", [rows.encode()])
        self._count = 0

    def job(self, *, steps: int = 6, checked: bool = True, **luthier) -> JobRecord:
        """A queued job of so many steps, with a checkpoint after every second."""
        self._count += 1
        id_ = f"ftjob-{self._count:024d}"
        keys = {
            "model": {"dtype": "float32"}, "data": {"validation": {"fraction": 0.2}, "max_length": 128},
            "method": {"name": "lora", "r": 4}, "train": {
                "max_steps": steps, "learning_rate": 1e-3, "tokens_per_step": 256, "save_steps": 2, "eval_steps": 2
            }, **luthier,
        }  # fmt: skip
        record = JobRecord(
            id=id_, owner="me", created_at=self.store.now(), model="tiny", base=str(self.folder / "model"),
            method={"type": "supervised", "supervised": {"hyperparameters": {}}}, hyperparameters={},
            training_file=self.file.id, seed=0, luthier=keys,
            run_name=id_,
        )  # fmt: skip
        self.store.create_job(record)
        if checked:
            self.store.move(id_, to="queued")
        return self.store.job(id_)

    @property
    def recipe_of(self) -> RecipeOf:
        """Makes recipes as a worker does."""
        return recipe_maker(self.store, self.settings.service, self.runs)

    def events(self, job: JobRecord) -> list:
        """All events, oldest first."""
        return self.store.events_since(job.id)

    def messages(self, job: JobRecord) -> list[str]:
        """Their texts."""
        return [event.message for event in self.events(job)]


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0, what: str = "") -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what or condition
        time.sleep(0.02)
