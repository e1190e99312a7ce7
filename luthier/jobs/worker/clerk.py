"""The clerk: what has to be done for jobs without a GPU. Files are checked, the line is timed, webhooks are sent."""

from __future__ import annotations

import threading
import time
import traceback

from luthier.jobs import webhooks
from luthier.jobs.errors import LeaseLost
from luthier.jobs.store import Store
from luthier.jobs.worker.ending import error_of_luthier
from luthier.jobs.worker.hooks import check_job
from luthier.jobs.worker.places import CLERK, places
from luthier.jobs.worker.settings import WorkerSettings
from luthier.runtime.console import note
from luthier.runtime.errors import LuthierError

__all__ = ["check_next", "run_clerk"]

ESTIMATES, SWEEP = 10.0, 600.0
CHECK_LEASE = 600.0
FAULT_SECONDS = 10.0


def run_clerk(store: Store, settings: WorkerSettings, stopping: threading.Event) -> None:
    """Until asked to stop. Webhooks have a thread of their own: an address may be slow to answer."""
    sender = threading.Thread(target=_send, args=(store, settings, stopping), name="webhooks", daemon=True)
    sender.start()
    timed = swept = 0.0
    workers = len(places(settings)) - 1
    while not stopping.is_set():
        if check_next(store, settings):
            continue
        now = time.monotonic()
        if now - timed > ESTIMATES:
            store.refresh_estimates(workers)
            timed = now
        if now - swept > SWEEP:
            store.sweep()
            swept = now
        stopping.wait(settings.workers.poll_seconds)
    sender.join(timeout=20.0)


def check_next(store: Store, settings: WorkerSettings) -> bool:
    """Check the files of the next job that waits for it; returns whether there was one."""
    job = store.claim_check(CLERK, CHECK_LEASE)
    if job is None:
        return False
    renewed = time.monotonic()

    def tick() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > CHECK_LEASE / 4:
            store.beat(job.id, CLERK, CHECK_LEASE)
            renewed = time.monotonic()

    try:
        found = check_job(job, store, settings.service, tick=tick)
        for index, message in enumerate(found.messages):
            store.add_event(job.id, "info", message, mark=f"check-{index}")
        if found.error is None:
            store.move(job.id, to="queued", by=CLERK, hyperparameters=found.hyperparameters)
        else:
            store.move(job.id, to="failed", by=CLERK, error=found.error)
    except LeaseLost as lost:  # cancelled meanwhile
        note(lost.problems[0].message, style="yellow")
    except LuthierError as error:
        store.move(job.id, to="failed", by=CLERK, error=error_of_luthier(job, error))
    except Exception as error:  # noqa: BLE001 - one file must not stop the clerk for ever
        traceback.print_exc()
        message = f"a fault in Luthier while the files were checked ({type(error).__name__})"
        store.move(job.id, to="failed", by=CLERK, error={"code": "server_error", "message": message, "param": None})
    return True


def _send(store: Store, settings: WorkerSettings, stopping: threading.Event) -> None:
    while True:
        ending = stopping.is_set()  # once more after the last job of this service has ended
        try:
            webhooks.spread(store, settings.webhooks)
            webhooks.deliver_due(store, settings.webhooks)
        except Exception:  # noqa: BLE001 - it is tried again; the thread must live
            traceback.print_exc()
            stopping.wait(FAULT_SECONDS)
        if ending:
            return
        stopping.wait(settings.workers.poll_seconds)
