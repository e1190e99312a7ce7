"""Any interleaving of create, check, claim, pause, cancel, death and end: nothing goes backward, each ends once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from luthier.jobs.errors import Conflict, LeaseLost, TooMany
from luthier.jobs.states import ALLOWED, ENDED
from tests.jobs.making import Clock, add_file, job_record, open_store

WORKERS = st.sampled_from(["w0", "w1", "w2"])
LEASE = 30.0


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.store = open_store(self.home, self.clock)
        self.file = add_file(self.store)
        self.seen: dict[str, str] = {}
        self.ends: dict[str, int] = {}
        self.held: dict[str, tuple[str, float]] = {}
        self.keys: dict[str, str] = {}

    def teardown(self) -> None:
        for id_ in self.seen:
            texts = [event.message for event in self.store.events_since(id_)]
            ended = sum(text.startswith(("The job has", "The job failed", "Fine-tuning job canc")) for text in texts)
            assert ended == (self.seen[id_] in ENDED)
        self.store.close()
        shutil.rmtree(self.home)

    def one(self, index: int) -> str:
        return list(self.seen)[index % len(self.seen)]

    @rule(key=st.sampled_from([None, "a", "b"]), priority=st.integers(0, 2), owner=st.sampled_from(["ann", "bob"]))
    def create(self, key: str | None, priority: int, owner: str) -> None:
        if len(self.seen) >= 6:
            return
        file = self.file if owner == "ann" else add_file(self.store, owner)
        record = job_record(self.store, self.file if owner == "ann" else file, owner, priority=priority)
        try:
            job, new = self.store.create_job(record, f"{owner}{key}" if key else None, digest=owner, max_queued=3)
        except TooMany:
            waiting = [row for row in self.store.jobs(owner)[0] if row.status in ("validating_files", "queued")]
            assert len(waiting) >= 3
            return
        if key:
            assert new == (f"{owner}{key}" not in self.keys)
            assert self.keys.setdefault(f"{owner}{key}", job.id) == job.id
        if new:
            self.seen[job.id] = "validating_files"

    @rule(worker=WORKERS, good=st.booleans())
    def check(self, worker: str, good: bool) -> None:
        job = self.store.claim_check(worker, LEASE)
        if job is None:
            assert "validating_files" not in self.seen.values()
            return
        error = {} if good else {"error": {"code": "invalid_training_file", "message": "bad", "param": "training_file"}}
        self.store.move(job.id, to="queued" if good else "failed", by=worker, **error)

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        before = {id_: self.store.job(id_) for id_ in self.seen}
        job = self.store.claim(worker, LEASE)
        free = [
            old for old in before.values()
            if old.wanted == "run" and (
                old.status in ("queued", "paused")
                or (old.status == "running" and (old.lease_until or 0) <= self.clock.now)
            )
        ]  # fmt: skip
        if job is None:
            assert not free
            return
        assert job.id in {old.id for old in free}
        assert job.priority == max(old.priority for old in free)
        assert job.status == "running" and job.worker == worker
        # Nobody else holds it.
        other, until = self.held.get(job.id, ("", 0.0))
        assert until <= self.clock.now or before[job.id].worker is None, other
        self.held[job.id] = (worker, self.clock.now + LEASE)

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), worker=WORKERS)
    def beat(self, index: int, worker: str) -> None:
        id_ = self.one(index)
        before = self.store.job(id_)
        try:
            self.store.beat(id_, worker, LEASE)
        except LeaseLost:
            assert before.worker != worker
            return
        assert before.worker == worker
        self.held[id_] = (worker, self.clock.now + LEASE)

    @rule(seconds=st.floats(1, 50))
    def time_passes(self, seconds: float) -> None:
        """A worker that does not beat within 30 seconds is dead."""
        self.clock.now += seconds

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), wanted=st.sampled_from(["run", "pause", "cancel"]))
    def want(self, index: int, wanted: str) -> None:
        id_ = self.one(index)
        before = self.store.job(id_)
        try:
            after = self.store.want(id_, wanted)  # type: ignore[arg-type]
        except Conflict:
            final = before.status in ENDED
            unwanted = before.wanted == "cancel" or before.status in ("validating_files", "queued")
            assert final or (wanted != "cancel" and unwanted)
            return
        assert after.wanted == wanted or after.status == "cancelled"
        if wanted == "cancel" and before.status != "running":
            assert after.status == "cancelled"

    @precondition(lambda self: self.seen)
    @rule(index=st.integers(0, 9), worker=WORKERS, to=st.sampled_from([*ALLOWED]))
    def worker_moves(self, index: int, worker: str, to: str) -> None:
        id_ = self.one(index)
        before = self.store.job(id_)
        try:
            self.store.move(id_, to=to, by=worker)
        except Conflict:
            assert before.worker != worker or to not in ALLOWED[before.status]
            assert self.store.job(id_) == before
            return
        assert before.worker == worker and to in ALLOWED[before.status]

    @invariant()
    def never_backward(self) -> None:
        for id_, old in self.seen.items():
            job = self.store.job(id_)
            assert job.status == old or _reachable(old, job.status), (old, job.status)
            if old in ENDED:
                assert job.status == old
            assert (job.finished_at is not None) == (job.status in ENDED)
            assert (job.worker is None) or job.status in ("running", "validating_files")
            self.seen[id_] = job.status


def _reachable(old: str, new: str) -> bool:
    """Whether `new` follows `old` in one or two steps (a claim may settle a pause first)."""
    return new in ALLOWED[old] or any(new in ALLOWED[middle] for middle in ALLOWED[old])


Queue.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestQueue = Queue.TestCase
