"""Follow a run folder: what is new in it goes into the store, once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.jobs.errors import NotFound
from luthier.jobs.events import insert_event
from luthier.jobs.jobs import write_fields
from luthier.jobs.models import checkpoint_name, tuned_name
from luthier.jobs.records import JobRecord, ModelRecord
from luthier.jobs.store import Store
from luthier.jobs.worker.folder import JobPlace
from luthier.jobs.worker.follow import new_lines
from luthier.jobs.worker.progress import read_progress, write_progress
from luthier.jobs.worker.telling import Told, of_event, of_metrics

__all__ = ["Teller"]

PACE = 50
"""Steps over which the pace is taken."""


class Teller:
    """Of one job; `tell` after each wait, and once more when the run has ended."""

    def __init__(self, store: Store, job: JobRecord, place: JobPlace, *, organization: str) -> None:
        self.store, self.job, self.place = store, job, place
        self.model = tuned_name(job, organization)
        self.progress = read_progress(store, job.id)
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE)
        self._estimate: int | None = None

    def tell(self) -> None:
        """Everything that is new. Metrics before events, as a step comes before its checkpoint; but how many steps
        there will be stands among the events."""
        if self.progress.total_steps is None:
            self._events()
        while any((self._metrics(), self._events())):
            pass

    def _metrics(self) -> bool:
        progress = self.progress
        lines, place = new_lines(self.place.run.path / "metrics.jsonl", progress.metrics)
        if place == progress.metrics:
            return False
        told = []
        for line in lines:
            one = of_metrics(line, total_steps=progress.total_steps)
            if one is None:
                continue
            told.append(one)
            progress.step = max(progress.step, one.step or 0)
            if "seconds" in line:
                self._pace.append((line["step"], line["seconds"]))
        progress.metrics = place
        self._write(told, self._fields())
        return True

    def _events(self) -> bool:
        progress = self.progress
        lines, place = new_lines(self.place.run.path / "events.jsonl", progress.events)
        if place == progress.events:
            return False
        told = [one for line in lines if (one := of_event(line)) is not None]
        first = next((number for number, one in enumerate(told) if one.checkpoint), len(told))
        begins = [one.total_steps for one in told if one.total_steps]
        if begins:
            progress.total_steps = begins[-1]
            self._pace.clear()
        if first < len(told):
            # Marks keep these from being told twice: the place in the log moves with what follows.
            self._write(told[:first], self._fields(began=bool(begins)))
            self._metrics()  # what was measured until a checkpoint that is read now is on the disk
        told = [self._checkpoint(one) if one.checkpoint else one for one in told]
        progress.events = place
        self._write(told, self._fields(began=bool(begins)))
        for one in told:
            if one.gone and one.step is not None:
                self._forget(one.step)
        return True

    def _write(self, told: list[Told], fields: Mapping[str, Any]) -> None:
        """Events, the place in the logs and fields of the job, in one transaction."""
        store, job_id = self.store, self.job.id
        with store.database.writing() as connection:
            for one in told:
                added = insert_event(
                    connection, store.now(), job_id, one.level, one.message, type=one.type, data=one.data, mark=one.mark
                )
                self.progress.news += added is not None
            if fields:
                write_fields(connection, job_id, fields)
            write_progress(connection, job_id, self.progress)

    def save(self, change: Callable[[], None]) -> None:
        """Change what is remembered, and keep it."""
        change()
        self._write([], {})

    # -- checkpoints

    def _checkpoint(self, one: Told) -> Told:
        assert one.step is not None and one.checkpoint is not None
        name = checkpoint_name(self.model, one.step)
        path = str(self.place.run.path / one.checkpoint)
        numbers = self._numbers_at(one.step)
        self.store.put_checkpoint(self.job.id, one.step, name, {"step": one.step, **numbers}, path)
        self.store.put_model(
            ModelRecord(
                name=name, owner=self.job.owner, created=self.store.now(), kind="checkpoint", base=self.job.base,
                path=path, job_id=self.job.id, parent=self.model,
            )
        )  # fmt: skip
        return replace(one, data={**one.data, "checkpoint": name, **numbers})

    def _numbers_at(self, step: int) -> dict[str, float]:
        """What was measured at this very step."""
        numbers: dict[str, float] = {}
        for line in self.place.run.read_lines("metrics.jsonl"):
            if line.get("step") == step and (one := of_metrics(line, total_steps=None)) is not None:
                numbers.update(one.numbers)
        return numbers

    def _forget(self, step: int) -> None:
        self.store.drop_checkpoint(self.job.id, step)
        with suppress(NotFound):
            self.store.delete_model(checkpoint_name(self.model, step), self.job.owner)

    # -- when it will be done

    def _fields(self, *, began: bool = False) -> dict[str, Any]:
        """`estimated_finish` by the pace of the last steps; before there are two, by the plan."""
        now, seconds = self.store.now(), self._left()
        fields: dict[str, Any] = {}
        if began and (planned := _planned(self.place.run.path / "plan.json")) is not None:
            fields["planned_seconds"] = planned
        if seconds is None:
            return fields
        estimate = round(now + seconds)
        if self._estimate is None or abs(estimate - self._estimate) > max(2.0, 0.02 * seconds):
            fields["estimated_finish"] = self._estimate = estimate
        return fields

    def _left(self) -> float | None:
        progress = self.progress
        if progress.total_steps is None:
            return None
        steps = max(progress.total_steps - progress.step, 0)
        if len(self._pace) >= 2 and self._pace[-1][0] > self._pace[0][0]:
            (first, began), (last, ended) = self._pace[0], self._pace[-1]
            return steps * (ended - began) / (last - first)
        planned = _planned(self.place.run.path / "plan.json")
        return None if planned is None else planned * steps / progress.total_steps


def _planned(file: Path) -> float | None:
    """Seconds of all optimizer steps by the run's plan."""
    try:
        time = json.loads(file.read_text("utf-8"))["time"]
        return float(time["steps"] * time["seconds_per_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
