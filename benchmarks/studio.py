"""How long pages of the studio take: 10,000 runs in the list, 100,000 rows in the explorer, through real HTTP.

    python benchmarks/studio.py --out benchmarks/results/studio.md

Each question is asked `--times` times on one kept connection; what is told is the median and the slowest, first and
later askings apart (an order of rows that was asked for before is a cut). The first look at folders never seen before
goes on in the background and is timed by itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from luthier.api.settings import ServerSection
from luthier.data.types import Example, RowRef
from luthier.runs.manifest import cpu_name
from luthier.serve.server import make_server
from luthier.serve.settings import ServeSettings
from luthier.studio.app import studio_app
from luthier.studio.context import Studio
from luthier.studio.data.asked import file_rows
from luthier.studio.data.stored import ViewWriter
from luthier.studio.http.session import COOKIE, Sessions
from luthier.studio.settings import StudioSettings
from tests.studio.folders import many_runs

LIST = {
    "first page": "",
    "filter: words": "q=run-09&",
    "filter: status, sort: delta": "status=finished&sort=-delta&",
    "sort: loss": "sort=loss&",
    "last page": "offset=9950&sort=name&",
}
ROWS = {
    "first page": "",
    "page in the middle": "offset=50000&",
    "last page": "offset=99950&",
    "sort: tokens": "sort=-tokens&",
    "filter: chip": "chip=c0&",
    "search: word of one row": "q=word77777&",
    "search: word of 1,111 rows": "q=word98&",
    "search: word of every row": "q=customer&",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chdir(root)
        lines = measured(root, asked.runs, asked.rows, asked.times)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if asked.out is not None:
        (Path(__file__).parents[1] / asked.out).write_text(text, "utf-8")


def measured(root: Path, runs: int, rows: int, times: int) -> list[str]:
    (root / "runs").mkdir()
    many_runs(root / "runs", runs)
    view = write_rows(root, rows)
    settings = StudioSettings(runs=root / "runs", root=root, program=("luthier",))
    studio, sessions = Studio.open(settings), Sessions()
    started, used = time.perf_counter(), time.process_time()
    studio.index.scan()
    first_look, first_cpu = time.perf_counter() - started, time.process_time() - used
    started = time.perf_counter()
    studio.index.scan()
    again = time.perf_counter() - started
    app = studio_app(studio, ServerSection(), sessions)
    listens = threading.Event()
    server, socket = make_server(app, ServeSettings(port=0, drain_seconds=1), ready=lambda url: listens.set())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    assert listens.wait(60)
    connection = Connection(socket.getsockname()[1], sessions.enter(sessions.new_link()) or "")
    found = {
        f"{count:,} {what}": [(name, connection.ask(f"{base}{q}limit=50", times)) for name, q in queries.items()]
        for count, what, base, queries in ((runs, "runs", "/studio/api/runs?", LIST), (rows, "rows", view, ROWS))
    }
    server.should_exit = True
    thread.join(20)
    return report(found, first_look, first_cpu, again)


def write_rows(root: Path, rows: int) -> str:
    """A prepared view of a file, as `luthier.studio.data.build` leaves it; where its rows are asked for."""
    (root / "rows.jsonl").write_text("{}\n", "utf-8")
    asked = file_rows(root, {"path": "rows.jsonl"})
    folder = root / "runs" / ".studio" / "views" / asked.key
    folder.mkdir(parents=True)
    writer, generator = ViewWriter(folder), np.random.default_rng(0)
    sizes = generator.integers(40, 400, rows)
    weights = np.ones(400, np.float32)
    for number in range(rows):
        size = int(sizes[number])
        ref = RowRef(str(root / "rows.jsonl"), number + 1)
        row = Example(ids=generator.integers(0, 49_152, size).astype(np.int32), weights=weights[:size], ref=ref)
        text = f"word{number} " + "a customer asks for a refund of an order that never came, " * (size // 40)
        writer.add(
            ref=ref,
            split="train",
            source="rows.jsonl",
            turns=[("user", text, ""), ("assistant", text[:80], "")],
            notes=(),
            why="",
            tokens=row,
        )
    chips = [{"key": "c0", "label": "half", "group": "problem", "command": None, "rows": rows // 2}]
    about = {"asked": asked.to_json(), "summary": {"more_chips": "offered"}, "chips": chips, "model": {}}
    writer.close(about, packs=[], chips={"c0": [number % 2 == 0 for number in range(rows)]})
    return "/studio/api/files/data/rows?path=rows.jsonl&"


class Connection:
    """One kept connection with a session."""

    def __init__(self, port: int, cookie: str) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", port)
        self.headers = {"Cookie": f"{COOKIE}={cookie}"}

    def ask(self, path: str, times: int) -> tuple[float, float, list[float], int]:
        """Seconds of the first answer, of processors for it, seconds of the later ones, and bytes of one."""
        seconds, used = [], []
        size = 0
        for _ in range(times):
            started, before = time.perf_counter(), time.process_time()
            self.http.request("GET", path, headers=self.headers)
            answer = self.http.getresponse()
            body = answer.read()
            seconds.append(time.perf_counter() - started)
            used.append(time.process_time() - before)
            value: dict[str, Any] = json.loads(body)
            assert answer.status == 200 and value["total"] > 0, (path, body[:300])
            size = len(body)
        return seconds[0], used[0], seconds[1:], size


def report(found: dict[str, list[Any]], first_look: float, first_cpu: float, again: float) -> list[str]:
    load = os.getloadavg()[0]
    lines = [
        "# Pages of the studio",
        "",
        f"`python benchmarks/studio.py --out benchmarks/results/studio.md` on {cpu_name()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; load of the machine while it ran: {load:.1f}. Milliseconds of a whole "
        "HTTP request on a kept connection, 50 lines or rows a page. The goal is 200 ms.",
        "",
    ]
    for title, rows in found.items():
        lines += [
            f"## {title}",
            "",
            "| question | first | of it processor | median | slowest | KiB |",
            "|---|---|---|---|---|---|",
        ]
        for name, (first, used, later, size) in rows:
            told = [first, used, statistics.median(later), max(later)]
            lines.append(f"| {name} | " + " | ".join(f"{1000 * one:.1f}" for one in told) + f" | {size / 1024:.0f} |")
        lines.append("")
    return [
        *lines,
        f"Folders never seen before are read in the background: {first_look:.1f} s ({first_cpu:.1f} s of processor "
        "time) for all of them, once; pages show what is known meanwhile. Looking again whether any changed: "
        f"{again:.2f} s, at most a tenth of the time. Rows are prepared once, by the code that trains; then pages are "
        "read from disk.",
    ]


if __name__ == "__main__":
    main()
