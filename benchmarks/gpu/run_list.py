"""Runs a list of settings, one process each, within a budget of seconds.

    python3 benchmarks/gpu/run_list.py benchmarks/gpu/lists/ours_main.txt --budget 500
    python3 benchmarks/gpu/run_list.py LIST ... --only 'llama8b.*lora'

A line of a list:

    [cap=SECONDS] bench FLAGS            benchmarks/gpu/bench.py
    [cap=SECONDS] parity|curve FLAGS     the scripts of that name
    [cap=SECONDS] peer NAME MODEL METHOD MAX_DOC ROWS FLAGS     bench_peers.py of the pack, on the path of that peer
    [cap=SECONDS] script PATH FLAGS      any Python file of the checkout
    # a comment

Two processes live at a time: one is being measured, the next does its slow imports and waits for the lock
(BENCH_LOCK). A process' cap counts from its turn. After each: `$OUT/results.jsonl` and `$OUT/all.log`; a table last.
A process that outlives its cap is ended with its whole group, and so is everything when this one ends.
Only the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[0] = str(ROOT)

from benchmarks.gpu.children import adopt_orphans, die_with_parent, end_group, kill, own_children  # noqa: E402
from benchmarks.gpu.table import HEADER, row  # noqa: E402

LOG_BYTES = 300_000
"""Of one process' output that are kept: the beginning and the end."""


@dataclass
class Job:
    """One line of the list."""

    text: str
    command: list[str]
    environment: dict[str, str]
    cap: float
    kind: str
    identity: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    turn: float = 0.0
    """When it began to be alone with the device."""


def parse_line(line: str, options: argparse.Namespace) -> Job:
    """A line as a process to start."""
    words = shlex.split(line)
    cap = options.cap
    if words[0].startswith("cap="):
        cap = float(words.pop(0)[4:])
    kind, *flags = words
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    identity: dict[str, Any] = {"peer": kind, "line": line}
    if kind in ("bench", "parity", "curve"):
        command = [str(HERE / f"{kind}.py"), *flags, *options.extra]
    elif kind == "script":
        command = [str(ROOT / flags[0]), *flags[1:], *options.extra]
    elif kind == "peer":
        name, model, method, rows_of, rows, *rest = flags
        identity.update(peer=name, model=model, method=method, max_doc=int(rows_of), tokens=int(rows_of) * int(rows))
        command = [
            str(Path(options.peers) / "bench_peers.py"), "--peer", name, "--model", model, "--method", method,
            "--seq", rows_of, "--bs", rows, "--max-seconds", "25", "--tok", options.tok,
            *rest, *options.extra,
        ]  # fmt: skip
        _peer_paths(environment, name)
    else:
        raise SystemExit(f"not a kind of line: {line!r}")
    environment["BENCH_LOCK"] = str(options.lock)
    return Job(line, [options.python, *command], environment, cap, kind, identity)


def _peer_paths(environment: dict[str, str], name: str) -> None:
    """The packages of each peer's own stack, as run_all.sh lays them out under SITE."""
    site = environment.get("SITE")
    if not site:
        return
    own = "uns" if name == "unsloth" else "trl"
    environment["PYTHONPATH"] = ":".join(f"{site}/{part}" for part in (own, "common", "fa2"))
    environment["BENCH_PLAIN_PYTHONPATH"] = ":".join(f"{site}/{part}" for part in ("trl", "common", "fa2"))
    environment["BENCH_FALLBACK"] = f"{site}/fb"


class Runner:
    """Starts, watches and ends the jobs."""

    def __init__(self, jobs: list[Job], options: argparse.Namespace) -> None:
        self.jobs, self.options = jobs, options
        self.started = time.monotonic()
        self.end = self.started + options.budget
        self.running: list[Job] = []
        self.results: list[dict[str, Any]] = []
        self.folder = Path(options.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.skipped: list[str] = []

    def run(self) -> None:
        """All jobs, first to last, until the budget is spent."""
        waiting = list(self.jobs)
        while waiting or self.running:
            while waiting and len(self.running) < self.options.at_once:
                if self._left() < self.options.min_left:
                    self.skipped += [job.text for job in waiting]
                    waiting.clear()
                    break
                self._start(waiting.pop(0))
            time.sleep(0.1)
            for job in list(self.running):
                self._look(job)

    def _left(self) -> float:
        return self.end - time.monotonic()

    def _start(self, job: Job) -> None:
        job.log = tempfile.TemporaryFile()  # noqa: SIM115  closed when the job is finished
        job.process = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=job.log, stderr=subprocess.STDOUT, env=job.environment,
            cwd=ROOT, process_group=0, preexec_fn=die_with_parent,
        )  # fmt: skip
        job.turn = time.monotonic()
        self.running.append(job)

    def _look(self, job: Job) -> None:
        assert job.process is not None
        now = time.monotonic()
        code = job.process.poll()
        if code is None and self.running[0] is not job:
            return  # its turn has not come
        deadline = min(job.turn + job.cap, self.end)
        if code is None and now < deadline:
            return
        if code is None:
            end_group(job.process)
            why = f"ended after {now - job.turn:.0f} s of its turn ({'budget' if deadline == self.end else 'cap'})"
            self._finish(job, error=why)
        else:
            end_group(job.process)
            self._finish(job, error=None if code == 0 else f"exit code {code}")

    def _finish(self, job: Job, *, error: str | None) -> None:
        had_turn = self.running[0] is job
        self.running.remove(job)
        if self.running and had_turn:
            self.running[0].turn = time.monotonic()
        assert job.log is not None
        text = _read(job.log)
        job.log.close()
        # The last line counts: bench.py says its timing first, and again with what it saw inside a step.
        found = [json.loads(line[7:]) for line in text.splitlines() if line.startswith("RESULT {")]
        result = found[-1] if found else dict(job.identity, error=error or "no RESULT line")
        result.setdefault("line", job.text)
        if error and "error" not in result and not error.startswith("exit code"):
            result["late"] = error
        self.results.append(result)
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        with (self.folder / "all.log").open("a", encoding="utf-8") as file:
            file.write(f"### {job.text}\n{text}\n")
        self._say(job, text, result)

    def _say(self, job: Job, text: str, result: dict[str, Any]) -> None:
        spent = time.monotonic() - self.started
        print(f"[{spent:4.0f} s] {row(result)}", flush=True)
        lines = [line for line in text.splitlines() if not line.startswith("RESULT ")]
        if job.kind in ("parity", "curve", "script"):
            print("\n".join(f"    {line[:190]}" for line in lines[-self.options.echo :]), flush=True)
        elif "error" in result:
            print("\n".join(f"    {line[:220]}" for line in lines[-8:]), flush=True)

    def end_all(self) -> None:
        """Every process that is still there, and every one that lost its parent."""
        for job in self.running:
            if job.process is not None:
                end_group(job.process)
        for pid in own_children():
            kill(pid)


def _read(log: IO[bytes]) -> str:
    """Output of a process, the middle left out where it is long; RESULT lines are always kept."""
    log.seek(0)
    data = log.read()
    if len(data) > LOG_BYTES:
        results = b"".join(line + b"\n" for line in data.splitlines() if line.startswith(b"RESULT {"))
        data = data[: LOG_BYTES // 4] + b"\n[...]\n" + data[-LOG_BYTES * 3 // 4 :].partition(b"\n")[2]
        if results not in data:
            data += results
    return data.decode("utf-8", errors="replace")


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", help="files of lines, or single lines in quotes")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds for everything")
    parser.add_argument("--cap", type=float, default=120.0, help="seconds of one process' turn, unless its line says")
    parser.add_argument("--min-left", type=float, default=30.0, help="start nothing with less than this left")
    parser.add_argument("--at-once", type=int, default=2, choices=[1, 2])
    parser.add_argument("--echo", type=int, default=40, help="lines shown of the output of parity, curve and scripts")
    parser.add_argument("--only", help="regular expression that a line must match")
    parser.add_argument("--out", default=os.environ.get("OUT", "out"))
    parser.add_argument("--peers", default=str(ROOT / ".gpu" / "pack" / "peers"))
    parser.add_argument("--tok", default=f"{os.environ.get('SITE', 'site')}/tok", help="SmolLM2's tokenizer, for peers")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--extra", type=shlex.split, default=[], help="flags added to every line")
    options = parser.parse_args()
    options.lock = Path(tempfile.mkdtemp(prefix="bench_")) / "lock"
    return options


def read_lists(options: argparse.Namespace) -> list[str]:
    """Lines of all lists, in order, comments left out."""
    lines: list[str] = []
    for item in options.lists:
        text = Path(item).read_text("utf-8") if Path(item).is_file() else item
        lines += [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and (not options.only or re.search(options.only, line))]


def main() -> int:
    """Run; the exit code is 1 if a process failed."""
    options = parse()
    adopt_orphans()
    runner = Runner([parse_line(line, options) for line in read_lists(options)], options)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(130))
    try:
        runner.run()
    finally:
        runner.end_all()
        print(f"\n{HEADER}")
        print("\n".join(row(result) for result in runner.results))
        for text in runner.skipped:
            print(f"not run, budget spent: {text}")
        print(f"spent {time.monotonic() - runner.started:.0f} of {options.budget:.0f} s", flush=True)
    return int(any("error" in result for result in runner.results))


if __name__ == "__main__":
    sys.exit(main())
