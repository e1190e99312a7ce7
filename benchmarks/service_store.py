"""How long the store of the fine-tuning service takes, with many jobs. python benchmarks/service_store.py [--jobs N]"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.jobs.core import new_id
from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store

ROW = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}\n'


def record(file: str, index: int) -> JobRecord:
    id_ = new_id("ftjob-")
    hyperparameters = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}
    return JobRecord(
        id=id_, owner=f"u{index % 20}", created_at=1, model="gpt-4o-mini-2024-07-18", base="smollm2-135m-instruct",
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        hyperparameters=hyperparameters, training_file=file, seed=1, run_name=id_,
        metadata={"team": str(index % 7), "run": str(index)},
    )  # fmt: skip


def best(call: Callable[[], Any], repeats: int = 20) -> float:
    """Milliseconds of the fastest call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    count = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        file = store.add_file("u0", "train.jsonl", "fine-tune", [ROW]).id
        with store.database.writing() as connection:
            for index in range(count):
                store._insert(connection, record(file, index))
        middle = store.jobs("*", limit=10_000)[0][min(count, 10_000) // 2].id
        rows = {
            "first page of 20, all owners": lambda: store.jobs("*"),
            "first page of 100, all owners": lambda: store.jobs("*", limit=100),
            "page of 100 from the middle": lambda: store.jobs("*", limit=100, after=middle),
            "page of 100 of one owner": lambda: store.jobs("u3", limit=100),
            "one job by metadata": lambda: store.jobs("*", metadata={"run": str(count // 2)}),
            "page of 20 by metadata that a seventh has": lambda: store.jobs("*", metadata={"team": "3"}),
            "one job": lambda: store.job(middle),
            "a claim with all others waiting": lambda: store.claim("w", 60),
            "a create, flushed to the disk": lambda: store.create_job(record(file, 0)),
            "estimates of the whole line": lambda: store.refresh_estimates(8),
        }
        with store.database.writing() as connection:
            connection.execute("UPDATE jobs SET status = 'queued', planned_seconds = 60")
        for name, call in rows.items():
            print(f"| {name} | {best(call, 3 if 'estimates' in name else 20):.2f} |")
        store.close()


if __name__ == "__main__":
    main()
