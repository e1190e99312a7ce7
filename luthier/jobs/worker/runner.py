"""One job, from its claim to its end. Every step can be cut off anywhere and done again.

recipe      written once
run folder  free? A run that a dead worker left is ended first
launch      `python -m luthier run RECIPE --json`, a child of this process or handed to a cluster
follow      what is new goes into the store; the lease is renewed; `wanted` is obeyed
end         exit code 0: succeeded. 1 to 6: failed. Anything else is a death: again, from the last checkpoint
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from luthier.jobs.errors import LeaseLost
from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store
from luthier.jobs.worker.ending import FINAL_CODES, error_of_exit, error_of_luthier, succeed
from luthier.jobs.worker.folder import JobPlace, end_orphan, lock_owner
from luthier.jobs.worker.hooks import RecipeOf, environment_of, plan_of
from luthier.jobs.worker.progress import read_progress, write_progress
from luthier.jobs.worker.settings import WorkerSettings
from luthier.jobs.worker.tell import Teller
from luthier.launch.resources import resources_of
from luthier.launch.task import Launcher, Status, Task
from luthier.runtime.console import note
from luthier.runtime.env import child_environment, read_visible_devices
from luthier.runtime.errors import EnvironmentProblem, LuthierError

__all__ = ["Runner", "run_verb"]

Asked = Literal["", "cancel", "pause", "shutdown"]
LOST_SECONDS = 600
"""A cluster that does not know a task for so long has lost it."""


@dataclass(kw_only=True)
class Runner:
    """Runs the jobs that one worker claims, one after the other."""

    store: Store
    settings: WorkerSettings
    launcher: Launcher
    worker: str
    recipe_of: RecipeOf
    stopping: threading.Event
    _beaten: float = 0.0

    def run(self, job: JobRecord) -> None:
        """To its end, or until it is paused, lost, or the service stops."""
        place = JobPlace.of(job, home=self.store.home, runs=Path(self.settings.runs))
        self._beaten = time.monotonic()
        try:
            place.make()
            if not place.recipe.is_file():
                place.write_recipe(self.recipe_of(job))
            teller = Teller(self.store, job, place, organization=self.settings.organization)
            while self._attempt(job, place, teller):
                pass
        except LeaseLost as lost:
            note(f"{job.id}: {lost.problems[0].message}", style="yellow")
        except LuthierError as error:
            self.store.move(job.id, to="failed", by=self.worker, error=error_of_luthier(job, error))
        except Exception as error:  # noqa: BLE001 - one job must not stop a worker for ever
            traceback.print_exc()
            self._stumbled(job, error)

    def _attempt(self, job: JobRecord, place: JobPlace, teller: Teller) -> bool:
        """Start the run, or find it, and follow it to its end; returns whether another attempt is needed."""
        task = self._task(job, place)
        try:
            handle = self.launcher.find(task)
            if handle is None and not self._wait_until_free(job, place):
                return self._settle(job, place, teller, None, "shutdown" if self.stopping.is_set() else "pause")
            if handle is None:
                handle = self.launcher.submit(self._with_resources(task, place))
        except EnvironmentProblem as error:  # a cluster's control may be down for a while
            return self._died(job, teller, f"could not be started: {error.problems[0].message}")
        try:
            status, asked = self._follow(job, handle, teller)
        except BaseException:
            if not self.launcher.remote:
                self._end_now(handle)
            raise
        if status is None:  # a cluster goes on with it
            self.store.release(job.id, self.worker)
            return False
        if not self.launcher.remote:
            self.launcher.stop(handle, hard=True)  # what the run may have left of its own children
        teller.tell()
        return self._settle(job, place, teller, status.exit_code, asked)

    def _follow(self, job: JobRecord, handle: str, teller: Teller) -> tuple[Status | None, Asked]:
        asked: Asked = ""
        asked_at = lost_at = time.monotonic()
        while True:
            self.stopping.wait(self.settings.workers.poll_seconds if not asked else 0.1)
            status = self._status(handle)
            teller.tell()
            if status.phase == "ended":
                return status, asked
            if status.phase != "unknown":
                lost_at = time.monotonic()
            elif asked or time.monotonic() - lost_at > LOST_SECONDS:
                return Status(phase="ended", detail=status.detail), asked
            wish = self._wish(self._beat(job))
            if wish == "shutdown" and self.launcher.remote:
                return None, wish
            if wish and wish != asked and asked != "cancel":
                asked, asked_at = wish, asked_at if asked else time.monotonic()
                self.launcher.stop(handle, hard=False)
            if asked and time.monotonic() - asked_at > self._grace(asked):
                self.launcher.stop(handle, hard=True)
                if asked == "shutdown":
                    self._end_now(handle)

    def _grace(self, asked: Asked) -> float:
        workers = self.settings.workers
        return workers.cancel_seconds if asked == "cancel" else workers.grace_seconds

    def _status(self, handle: str) -> Status:
        try:
            return self.launcher.status(handle)
        except LuthierError as error:  # the cluster's control may be down for a while
            return Status(phase="unknown", detail=error.problems[0].message)

    def _wish(self, job: JobRecord) -> Asked:
        if job.wanted == "cancel":
            return "cancel"
        if job.wanted == "pause":
            return "pause"
        return "shutdown" if self.stopping.is_set() else ""

    def _beat(self, job: JobRecord) -> JobRecord:
        """The job as it is now; the lease is renewed when a quarter of it is over.

        Raises:
            LeaseLost: another has it.
        """
        lease = self.settings.workers.lease_seconds
        if time.monotonic() - self._beaten < lease / 4:
            return self.store.job(job.id)
        record = self.store.beat(job.id, self.worker, lease)
        self._beaten = time.monotonic()
        return record

    def _end_now(self, handle: str) -> None:
        self.launcher.stop(handle, hard=True)
        for _ in range(50):
            if self._status(handle).phase != "running":
                return
            time.sleep(0.1)

    # -- before

    def _task(self, job: JobRecord, place: JobPlace) -> Task:
        launch = self.settings.launch
        remote = self.launcher.remote
        verb = run_verb(launch.gpus if remote else len((read_visible_devices() or "").split(",")))
        program = launch.command or [launch.python if remote else sys.executable, "-m", "luthier", *verb]
        inherited = {} if remote else child_environment(keep=launch.pass_secrets)
        return Task(
            name=job.id, command=(*program, str(place.recipe), "--json"),
            folder=place.folder, out=place.out, err=place.log, exit_file=place.exit_file,
            environment={**inherited, **environment_of(job), **launch.environment, "NO_COLOR": "1"},
            secrets=tuple(launch.pass_secrets) if remote else (),
        )  # fmt: skip

    def _with_resources(self, task: Task, place: JobPlace) -> Task:
        """What it asks a cluster for, by its plan; here it has what there is."""
        if not self.launcher.remote:
            return task
        launch = self.settings.launch
        return replace(task, resources=resources_of(plan_of(place.recipe, launch.gpu_type, launch.gpus), launch))

    def _wait_until_free(self, job: JobRecord, place: JobPlace) -> bool:
        """Wait for the run folder; a run that a dead worker left is asked to save, then ended. False: stop instead."""
        began, told, hard = time.monotonic(), False, False
        while (owner := lock_owner(place.run)) is not None:
            late = time.monotonic() - began > self.settings.workers.grace_seconds
            if (not told or (late and not hard)) and not end_orphan(owner, place.recipe, hard=late) and not told:
                message = f"The run folder is in use by process {owner or 'unknown'}; waiting for it"
                self.store.add_event(job.id, "warn", message)
            told, hard = True, hard or late
            if self._wish(self._beat(job)):
                return False
            self.stopping.wait(min(0.2, self.settings.workers.poll_seconds))
        return True

    # -- after

    def _settle(self, job: JobRecord, place: JobPlace, teller: Teller, code: int | None, asked: Asked) -> bool:
        """What an ended run means; returns whether another attempt is needed."""
        now = self.store.beat(job.id, self.worker, self.settings.workers.lease_seconds)
        if now.wanted == "cancel":
            self.store.move(job.id, to="cancelled", by=self.worker)
        elif code == 0:
            succeed(self.store, now, place, worker=self.worker, organization=self.settings.organization)
        elif code in FINAL_CODES and code is not None:
            self.store.move(job.id, to="failed", by=self.worker, error=error_of_exit(job, place, code))
        elif now.wanted == "pause":
            self.store.move(job.id, to="paused", by=self.worker)
        elif self.stopping.is_set():
            self.store.release(job.id, self.worker)
        elif asked:
            return True  # a pause that was taken back meanwhile
        else:
            return self._died(job, teller, _how(code))
        return False

    def _died(self, job: JobRecord, teller: Teller, how: str) -> bool:
        workers, progress = self.settings.workers, teller.progress

        def count() -> None:
            progress.crashes = progress.crashes + 1 if progress.seen == progress.news else 1
            progress.seen = progress.news

        teller.save(count)
        if progress.crashes >= workers.crashes:
            message = f"the run {how}, {progress.crashes} times in a row without getting any further"
            error = {"code": "server_error", "message": message, "param": None}
            self.store.move(job.id, to="failed", by=self.worker, error=error)
            return False
        self.store.add_event(job.id, "warn", f"The run {how}; it goes on from its last checkpoint")
        end = time.monotonic() + workers.crash_wait_seconds * progress.crashes
        while time.monotonic() < end and not self._wish(self._beat(job)):
            self.stopping.wait(0.2)
        if wish := self._wish(self.store.job(job.id)):
            return self._settle_wish(job, wish)
        return True

    def _stumbled(self, job: JobRecord, error: Exception) -> None:
        """A fault of ours: the job is given back, and fails when that has happened too often."""
        progress = read_progress(self.store, job.id)
        progress.crashes += 1
        with self.store.database.writing() as connection:
            write_progress(connection, job.id, progress)
        if progress.crashes < self.settings.workers.crashes:
            self.store.release(job.id, self.worker)
            self.stopping.wait(self.settings.workers.crash_wait_seconds * progress.crashes)
            return
        message = f"a fault in Luthier ({type(error).__name__}); the log of worker {self.worker} has the trace"
        self.store.move(
            job.id, to="failed", by=self.worker, error={"code": "server_error", "message": message, "param": None}
        )

    def _settle_wish(self, job: JobRecord, wish: Asked) -> bool:
        if wish == "shutdown":
            self.store.release(job.id, self.worker)
        else:
            self.store.move(job.id, to="cancelled" if wish == "cancel" else "paused", by=self.worker)
        return False


def run_verb(gpus: int) -> list[str]:
    """`run`, or `launch` where a run has several GPUs; it prepares the data once and watches the processes."""
    return ["run"] if gpus <= 1 else ["launch", "--num-gpus", str(gpus)]


def _how(code: int | None) -> str:
    if code is None:
        return "was lost"
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return "was interrupted" if code == 130 else f"ended with exit code {code}"
