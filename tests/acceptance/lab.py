"""A place to run commands in: fixture T on disk, the command line, runs that several checks share."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.tiny import conversations, save_tiny

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 300


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    command: str
    code: int
    out: str
    err: str
    cpu: float
    """Seconds of processor time, children included."""

    @property
    def json(self) -> Any:
        """What it said on stdout."""
        try:
            return json.loads(self.out)
        except json.JSONDecodeError as error:
            raise AssertionError(
                f"no JSON from `{self.command}` (exit {self.code}): {self.out[:200]!r}; {self.err[-600:]}"
            ) from error


@dataclass(frozen=True)
class Run:
    """A run folder and the command that made it."""

    folder: Path
    ran: Ran

    @property
    def ok(self) -> Run:
        """Itself, if the command succeeded."""
        assert self.ran.code == 0, f"`{self.ran.command}` ended with {self.ran.code}: {self.ran.err[-1500:]}"
        return self

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Its lines of training steps."""
        return [line for line in self.metrics if "loss" in line]

    def losses(self) -> list[float]:
        """Logged loss of each step."""
        return [line["loss"] for line in self.steps]

    def weights(self, where: str = "final") -> dict[str, Any]:
        """All tensors of a folder of safetensors."""
        return tensors(self.folder / where)

    def read(self, name: str) -> Any:
        """A JSON file of the run folder."""
        return json.loads((self.folder / name).read_text("utf-8"))


def tensors(folder: Path, pattern: str = "*.safetensors") -> dict[str, Any]:
    """All tensors of a folder's safetensors files."""
    from safetensors.torch import load_file

    files = sorted(folder.glob(pattern))
    assert files, f"no {pattern} in {folder}"
    return {name: value for file in files for name, value in load_file(file).items()}


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """d(A, B): the largest difference of any weight."""
    assert first.keys() == second.keys(), f"different tensors: {sorted(first.keys() ^ second.keys())[:4]}"
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@dataclass
class Lab:
    """Everything a check needs. `fork`: commands as forks of a process with the libraries loaded (see nursery.py)."""

    folder: Path
    fork: bool = False
    tree: Path = ROOT
    """The tree whose `luthier` is tested."""
    commands: int = 0
    _runs: dict[str, Run] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)
    _nurseries: list[subprocess.Popen[str]] = field(default_factory=list)

    # -- fixture T

    @cached_property
    def base(self) -> Path:
        """The untied base in fp32."""
        return save_tiny(self.folder / "base", tied=False)

    @cached_property
    def tied(self) -> Path:
        """The tied base in fp32."""
        return save_tiny(self.folder / "tied", tied=True)

    @cached_property
    def rows(self) -> Path:
        """32 conversations of 2 to 25 words a message."""
        return write_rows(self.folder / "rows.jsonl", conversations(32))

    @cached_property
    def held_out(self) -> Path:
        """20 others."""
        return write_rows(self.folder / "held-out.jsonl", conversations(20, seed=7))

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, by the `tokenizers` library alone."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.base / "tokenizer.json"))

    def prepare(self) -> None:
        """Make what is shared before threads start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "io").mkdir(exist_ok=True)
        _ = self.base, self.tied, self.rows, self.held_out, self.tokenizer

    # -- recipes

    def recipe(self, name: str, **changes: Any) -> Path:
        """Write a recipe: full fine-tuning of 32 rows, 8 a step, 2 epochs.

        `section__key` (or a whole section) changes it, None removes a key.
        """
        value: dict[str, Any] = {
            "model": {"name_or_path": str(self.base), "dtype": "float32"},
            "data": {"train": [{"path": str(self.rows)}], "max_length": 256, "packing": False},
            "method": {"name": "full"},
            "train": {
                "num_train_epochs": 2, "learning_rate": 1e-3, "warmup_steps": 0, "save_steps": 100,
                "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            },
            "export": {"merge": False},
            "output_dir": str(self.folder / "runs" / name),
        }  # fmt: skip
        for key, change in changes.items():
            section, _, inner = key.partition("__")
            if inner and change is None:
                value[section].pop(inner, None)
            elif inner:
                value.setdefault(section, {})[inner] = copy.deepcopy(change)
            else:
                value[section] = copy.deepcopy(change)
        path = self.folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1), "utf-8")  # JSON is YAML
        return path

    def run(self, name: str, verb: str = "train", **changes: Any) -> Run:
        """A run shared by all who ask for this name; the first caller makes it."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._runs:
                ran = self.luthier(verb, self.recipe(name, **changes))
                self._runs[name] = Run(self.folder / "runs" / name, ran)
            return self._runs[name]

    def again(self, name: str, verb: str = "train", *more: str, **how: Any) -> Run:
        """The command of a run once more, with overrides; nothing is remembered."""
        return Run(self.folder / "runs" / name, self.luthier(verb, self.folder / f"{name}.yaml", *more, **how))

    def copy_of(self, name: str, new: str) -> str:
        """A copy of a run folder and its recipe under another name."""
        shutil.copytree(self.folder / "runs" / name, self.folder / "runs" / new)
        recipe = json.loads((self.folder / f"{name}.yaml").read_text("utf-8"))
        recipe["output_dir"] = str(self.folder / "runs" / new)
        (self.folder / f"{new}.yaml").write_text(json.dumps(recipe, indent=1), "utf-8")
        return new

    # -- the command line

    def luthier(
        self,
        *arguments: Any,
        plan: dict[str, Any] | None = None,
        file_limit: int = 0,
        env: dict[str, str] | None = None,
    ) -> Ran:
        """One command; `plan` is an accident (driver.py), `file_limit` a largest file in bytes."""
        with self._guard:
            self.commands += 1
            number = self.commands
        words = [str(argument) for argument in arguments]
        out, err = (self.folder / "io" / f"{number}.{name}" for name in ("out", "err"))
        launch = self._forked if self.fork else self._executed
        code, cpu = launch(words, out, err, plan, file_limit, env or {})
        text = " ".join(["luthier", *words])
        return Ran(text, code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace"), cpu)

    def environment(self) -> dict[str, str]:
        """One thread, no network, own cache."""
        own = {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_COLOR": "1",
            "TOKENIZERS_PARALLELISM": "false", "LUTHIER_CACHE": str(self.folder / "cache"), "COLUMNS": "200",
            "LUTHIER_FORCE_CPU": "1", "PYTHONPATH": os.pathsep.join([str(self.tree), str(ROOT)]),
        }  # fmt: skip
        return {**os.environ, **own}

    def _executed(
        self, words: list[str], out: Path, err: Path, plan: Any, file_limit: int, env: dict[str, str]
    ) -> tuple[int, float]:
        script = ["-m", "luthier"] if plan is None else [str(Path(__file__).with_name("driver.py")), json.dumps(plan)]

        def limit() -> None:
            if file_limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, *script, *words], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                env={**self.environment(), **env}, cwd=self.folder, preexec_fn=limit,
            )  # fmt: skip
        stop = threading.Timer(TIME_LIMIT, process.kill)
        stop.start()
        _, status, used = os.wait4(process.pid, 0)
        stop.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_utime + used.ru_stime

    def _forked(
        self, words: list[str], out: Path, err: Path, plan: Any, file_limit: int, env: dict[str, str]
    ) -> tuple[int, float]:
        nursery = getattr(self._local, "nursery", None)
        if nursery is None:
            nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, cwd=self.folder, env=self.environment(),
            )  # fmt: skip
            self._local.nursery = nursery
            self._nurseries.append(nursery)
        request = {
            "arguments": words, "out": str(out), "err": str(err), "plan": plan, "file_limit": file_limit, "env": env,
        }  # fmt: skip
        nursery.stdin.write(json.dumps(request) + "\n")
        nursery.stdin.flush()
        answer = json.loads(nursery.stdout.readline())
        return answer["code"], answer["cpu"]

    def close(self) -> None:
        """End the helpers."""
        for nursery in self._nurseries:
            if nursery.stdin is not None:
                nursery.stdin.close()
            nursery.wait(30)


# -- what a check found


@dataclass(frozen=True)
class Measure:
    """One comparison."""

    text: str
    ok: bool
    failed: bool = False
    """A command that should have worked did not."""


class Check:
    """Collects the comparisons of one check."""

    def __init__(self, number: str, title: str, *, refuses: bool = False) -> None:
        self.number, self.title, self.refuses = number, title, refuses
        self.measures: list[Measure] = []
        self.seconds = 0.0

    def at_most(self, what: str, value: float, bound: float) -> None:
        """A number and its tolerance."""
        self.measures.append(Measure(f"{what} = {value:.3g} (<= {bound:g})", value <= bound))

    def at_least(self, what: str, value: float, bound: float) -> None:
        """A number that must be as large."""
        self.measures.append(Measure(f"{what} = {value:.4g} (>= {bound:g})", value >= bound))

    def equal(self, what: str, value: Any, wanted: Any) -> None:
        """Exactly equal."""
        text = (
            f"{what} = {_short(value)}" if value == wanted else f"{what} = {_short(value)} (must be {_short(wanted)})"
        )
        self.measures.append(Measure(text, bool(value == wanted)))

    def refused(self, what: str, ran: Ran, code: int | tuple[int, ...], *mentions: str) -> None:
        """A command that must end with a reason: exit code, words on stderr or stdout, no trace."""
        codes = code if isinstance(code, tuple) else (code,)
        said = ran.err + ran.out
        missing = [word for word in mentions if word not in said]
        trace = "Traceback" in said or "error[R799]" in said
        text = f"{what}: exit {ran.code}"
        if ran.code not in codes:
            text += f" (must be {codes})"
        text += f", not said: {missing}" if missing else ""
        text += ", with a trace" if trace else ""
        wrong = ran.code not in codes or missing or trace
        # An error of another kind is a failure; exit 0 where a refusal is due is the silent kind.
        self.measures.append(Measure(text + (f": {said[-300:]!r}" if wrong else ""), not wrong, failed=ran.code != 0))

    def fail(self, text: str) -> None:
        """A command that should have worked did not."""
        self.measures.append(Measure(text, ok=False, failed=True))

    @property
    def verdict(self) -> str:
        """One of the three words, or `failed`."""
        wrong = [measure for measure in self.measures if not measure.ok]
        if wrong:
            return "failed" if all(measure.failed for measure in wrong) else "silently wrong"
        if not self.measures:
            return "failed"
        return "refused with a reason" if self.refuses else "correct"

    def line(self) -> str:
        """The verdict and the numbers behind it; of many equal ones the first and the count."""
        shown = [measure for measure in self.measures if not measure.ok] or self.measures
        texts = [measure.text for measure in shown]
        more = f"; and {len(texts) - 6} more" if len(texts) > 6 else ""
        return f"{self.number:>3}  {self.verdict:<22} {self.title}: {'; '.join(texts[:6])}{more}"


CheckFunction = Callable[[Lab, Check], None]
CHECKS: list[tuple[str, str, bool, CheckFunction]] = []


def check(number: str, title: str, *, refuses: bool = False) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check of section 3 of the catalogue; `refuses`: what it wants to see is an error."""

    def register(function: CheckFunction) -> CheckFunction:
        CHECKS.append((number, title, refuses, function))
        return function

    return register


def perform(lab: Lab, number: str, title: str, refuses: bool, function: CheckFunction) -> Check:
    """Run one check; an error in it is a failure of the check, never silence."""
    found = Check(number, title, refuses=refuses)
    started = time.monotonic()
    try:
        function(lab, found)
    except Exception as error:  # noqa: BLE001 - one broken check must not end the others
        text = str(error) or repr(error)
        found.fail(f"{type(error).__name__}: {text[-1200:]}")
    found.seconds = time.monotonic() - started
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."
