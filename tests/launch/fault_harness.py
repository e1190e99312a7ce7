"""A launch that faults are done to: its processes, its moments, and what must hold of its folder afterwards."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from luthier.train.checkpoint import checkpoints, verify
from tests.launch.forked import Forked
from tests.launch.support import ROOT, environment
from tests.support.tiny import conversations, save_tiny

MARK = "LUTHIER_FAULTS_MARK"
STEPS = 12
TIMED = ("seconds", "tokens_per_second")
HANG_SECONDS = 15


def write_files(folder: Path) -> None:
    """Base, 13 rows, 4 held-out ones."""
    save_tiny(folder / "tiny")
    for name, count, seed in (("rows", 13, 0), ("held", 4, 9)):
        rows = conversations(count, seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(kw_only=True)
class Faulty:
    """A recipe, where it runs, and how."""

    files: Path
    run: Path
    strategy: str
    processes: int
    whole: bool = False
    """With scores and merge, not the training alone."""
    method: str = "full"
    overrides: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    forked: bool = False
    """Launcher and processes are forks of this one (`forked.py`)."""

    def recipe(self) -> Path:
        """12 steps of 6 sequences on 1, 2 or 3 processes; the last of an epoch has a single one."""
        file = self.run.with_suffix(".yaml")
        task = f"{{name: t, path: {self.files}/held.jsonl, metric: exact, max_new_tokens: 4}}"
        file.write_text(
            f"""
model: {{name_or_path: {self.files}/tiny, dtype: float32}}
data:
  train: [{{path: {self.files}/rows.jsonl}}]
  validation: {{path: {self.files}/held.jsonl}}
  max_length: 128
  packing: false
  decontaminate: {{action: off}}
method: {{name: {self.method}}}
train:
  {{learning_rate: 1.0e-3, num_train_epochs: 4, per_device_train_batch_size: 1, eval_steps: 3, save_steps: 2,
    gradient_accumulation_steps: {6 // self.processes}, save_total_limit: 2, logging_steps: 1}}
evaluate: {{tasks: [{task if self.whole else ""}]}}
export: {{merge: {"true" if self.whole and self.method == "lora" else "false"}}}
distributed: {{strategy: {self.strategy if self.processes > 1 else "auto"}}}
output_dir: {self.run}
"""
        )
        return file

    def start(self) -> Launched:
        """`luthier launch`, in a session of its own."""
        mark = uuid.uuid4().hex
        words = ["luthier", "launch", str(self.recipe()), *self.overrides]
        words += ["--num-processes", str(self.processes), *([] if self.whole else ["--train-only"])]
        variables = {"LUTHIER_HANG_SECONDS": str(HANG_SECONDS), "LUTHIER_CACHE": str(self.files / "cache")}
        env = environment(**{MARK: mark}, **variables, **self.variables)
        said = self.run.with_suffix(f".{mark[:6]}.log")
        with said.open("wb") as stream:
            if self.forked:
                env["FORKED_PIDS"] = str(said.with_suffix(".pids"))
                return Launched(Forked(words, env, out=stream, err=stream), mark, said)
            process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, env=env, stdout=stream, stderr=stream,
                start_new_session=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return Launched(process, mark, said)

    def lines(self, name: str) -> list[dict]:
        """Of a log of the run."""
        try:
            text = (self.run / name).read_text()
        except OSError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def events(self, kind: str, **fields: str) -> int:
        """How many there are in the log of the run."""
        asked = {"event": kind, **fields}
        return sum(all(line.get(key) == value for key, value in asked.items()) for line in self.lines("events.jsonl"))


@dataclass
class Launched:
    """A launcher that was started, and all that it started."""

    process: subprocess.Popen | Forked
    mark: str
    said: Path

    def alive(self) -> dict[int, int | None]:
        """Rank by process id; None of the launcher and of helpers that no rank has."""
        found: dict[int, int | None] = {}
        forked = isinstance(self.process, Forked)
        pids = self.said.with_suffix(".pids")
        ranks = dict(line.split() for line in pids.read_text().splitlines()) if forked and pids.exists() else {}
        own = Path("/proc/self/cmdline").read_bytes()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            try:
                held = (entry / ("cmdline" if forked else "environ")).read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state == "Z":
                continue
            if forked and held == own:  # a campaign's command line is its own
                found[int(entry.name)] = int(ranks[entry.name]) if entry.name in ranks else None
            elif not forked and f"{MARK}={self.mark}".encode() in held:
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", held)
                found[int(entry.name)] = int(rank[1]) if rank else None
        return found

    def workers(self) -> dict[int, int]:
        """Process id by rank; of several with a rank (pools) the lowest."""
        found: dict[int, int] = {}
        for pid, rank in sorted(self.alive().items(), reverse=True):
            if rank is not None:
                found[rank] = pid
        return found

    @property
    def over(self) -> bool:
        """The launcher has ended."""
        return self.process.poll() is not None

    def text(self) -> str:
        """What it wrote."""
        return self.said.read_text(errors="replace")

    def gone_within(self, seconds: float) -> float | None:
        """Seconds until nothing of it was left; None if something is (it is killed then)."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.over and not self.alive():
                return time.monotonic() - began
            time.sleep(0.2)
        self.clear()
        return None

    def clear(self) -> None:
        """End whatever is left."""
        for pid in [*self.alive(), *([] if self.over else [self.process.pid])]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


MOMENTS = (
    "start", "loading", "step", "step", "checkpoint", "checkpoint", "prune", "validation", "final", "end of training",
)  # fmt: skip
WHOLE = ("baseline", "evaluate", "merge", "report")


def reached(faulty: Faulty, moment: str, chooser: random.Random) -> Callable[[], bool]:
    """Whether a launch that starts now has come to the moment."""
    trained = len([line for line in faulty.lines("metrics.jsonl") if "loss" in line])
    started = time.monotonic()
    folder = faulty.run / "checkpoints"

    def temporary(where: Path) -> list[str]:
        try:
            return [path.name for path in where.iterdir() if path.name.startswith(".tmp-")]
        except OSError:
            return []

    def at_least(steps: int) -> bool:
        return sum("loss" in line for line in faulty.lines("metrics.jsonl")) >= steps

    def begun(stage: str) -> Callable[[], bool]:
        before = faulty.events("stage_started", stage=stage)
        return lambda: faulty.events("stage_started", stage=stage) > before

    sessions = faulty.events("training_started")
    in_session = lambda: faulty.events("training_started") > sessions  # noqa: E731
    if moment == "start":
        seconds = chooser.uniform(0, 25)
        return lambda: time.monotonic() - started > seconds
    if moment == "step":
        wanted = min(STEPS, trained + chooser.randint(1, 5))
        return lambda: in_session() and at_least(wanted)
    if moment == "checkpoint":
        return lambda: in_session() and bool(temporary(folder))
    if moment == "prune":
        first = min((item.step for item in checkpoints(folder)), default=2)
        return lambda: in_session() and f".tmp-step-{first}" in temporary(folder)
    if moment == "validation":
        wanted = min(STEPS, (trained // 3 + 1) * 3)
        return lambda: in_session() and at_least(wanted)
    if moment == "final":
        return lambda: in_session() and at_least(STEPS) and bool(temporary(faulty.run))
    if moment == "end of training":
        return lambda: in_session() and at_least(STEPS)
    if moment == "loading":
        return begun("train")
    return begun(moment)


def jitter(moment: str) -> float:
    """The longest wait after a moment, in seconds."""
    if moment in ("loading", "baseline", "merge", "evaluate"):
        return 8.0
    return 0.0 if moment in ("prune", "final") else 0.15


def whole_or_absent(run: Path) -> list[str]:
    """What is wrong with the checkpoints of a run folder."""
    return [problem.message for item in checkpoints(run / "checkpoints") for problem in verify(item.path)]


def leftovers(run: Path) -> list[str]:
    """What killed writers left."""
    return [str(path.relative_to(run)) for path in run.rglob(".tmp-*")]


def differences(run: Path, reference: Path, *, exact: bool) -> list[str]:
    """Between two finished runs: weights, and every line of the metrics but its times."""
    found = []
    names = {str(file.relative_to(reference)) for part in ("final", "merged")
             for file in (reference / part).glob("*.safetensors")}  # fmt: skip
    for name in sorted(names):
        a, b = load_file(run / name), load_file(reference / name)
        if a.keys() != b.keys():
            found.append(f"{name}: other tensors")
            continue
        largest = max(float((a[key].double() - b[key].double()).abs().max()) for key in a)
        if largest > (0.0 if exact else 5e-5):
            found.append(f"{name}: differs by {largest:.3g}")
    mine, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, reference)
    )
    steps = [line["step"] for line in mine if "loss" in line]
    if steps != list(range(1, STEPS + 1)):
        found.append(f"steps in metrics.jsonl: {steps}")
    if [sorted(line) for line in mine] != [sorted(line) for line in theirs]:
        found.append("metrics.jsonl has other lines")
    elif exact:
        for line, other in zip(mine, theirs, strict=True):
            odd = [key for key in line if key not in TIMED and line[key] != other[key]]
            found += [f"step {line['step']}: {key} {line[key]} instead of {other[key]}" for key in odd]
    return found
