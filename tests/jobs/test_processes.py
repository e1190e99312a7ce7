"""Several processes on one home."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

from luthier.jobs.store import Store
from tests.jobs.making import ROW, job_record


def take_all(home: str, worker: str, start, taken) -> None:  # type: ignore[no-untyped-def]
    store = Store.open(home)
    start.wait()
    mine = []
    while (job := store.claim(worker, 600.0)) is not None:
        mine.append(job.id)
        store.move(job.id, to="succeeded", by=worker)
    taken.put((worker, mine))


def test_four_processes_claim_200_jobs_each_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    file = store.add_file("ann", "t.jsonl", "fine-tune", [ROW]).id
    ids = []
    for index in range(200):
        job, _ = store.create_job(job_record(store, file, "ann", priority=index % 3))
        ids.append(store.move(job.id, to="queued").id)
    context = multiprocessing.get_context("spawn")
    start, taken = context.Barrier(4), context.Queue()
    workers = [context.Process(target=take_all, args=(str(tmp_path), f"w{index}", start, taken)) for index in range(4)]
    for process in workers:
        process.start()
    got = dict(taken.get(timeout=200) for _ in workers)
    for process in workers:
        process.join(30)
    everything = [id_ for ids_ in got.values() for id_ in ids_]
    assert sorted(everything) == sorted(ids)
    assert {store.job(id_).attempts for id_ in ids} == {1}
    assert all(store.job(id_).status == "succeeded" for id_ in ids)


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    file = store.add_file("ann", "t.jsonl", "fine-tune", [ROW]).id
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(10):
                job, _ = store.create_job(job_record(store, file))
                store.add_event(job.id, "info", name)
                store.jobs("ann", limit=5)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.jobs("ann", limit=100)[0]) == 60


def test_a_forked_child_opens_its_own_connections(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    file = store.add_file("ann", "t.jsonl", "fine-tune", [ROW]).id
    parents = list(store.database._idle)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child() -> None:
        job, _ = store.create_job(job_record(store, file))
        answers.put((job.id, any(own in parents for own in store.database._idle)))

    process = context.Process(target=child)
    process.start()
    made, shared = answers.get(timeout=200)
    process.join(30)
    assert parents and not shared
    assert store.job(made).owner == "ann"
    store.create_job(job_record(store, file))


def open_and_close(home: str, start, done) -> None:  # type: ignore[no-untyped-def]
    start.wait()
    try:
        Store.open(home).close()
        done.put("ok")
    except Exception as error:  # noqa: BLE001 - shown by the test
        done.put(repr(error))


def test_processes_may_make_the_tables_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(4), context.Queue()
    workers = [context.Process(target=open_and_close, args=(str(tmp_path), start, done)) for _ in range(4)]
    for process in workers:
        process.start()
    assert [done.get(timeout=200) for _ in workers] == ["ok"] * 4
    for process in workers:
        process.join(30)
