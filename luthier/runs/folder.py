"""The run folder: everything a run leaves, and everything a page or a command shows of it.

runs/NAME/
  recipe.yaml        as the user wrote it
  resolved.yaml      every value, with the reason of each derived one
  manifest.json      commit, versions, hardware, hashes of data and base, seeds
  stages/STAGE.json  a finished stage: what it depended on, what it made, how long it took
  events.jsonl       what happened, one JSON object a line
  metrics.jsonl      one line per logged training step
  samples.jsonl      of online RL: a prompt with its completions and their rewards, at each logged step
  plan.json          what the plan decided and expected; measured.json: what became of it
  data/              manifest of rows, dropped rows
  checkpoints/step-N complete or absent
  served/step-N      the same as an adapter or model that servers load (`export.checkpoints`)
  final/             adapter, or the trained model
  merged/, gguf/     the model to serve
  eval/              before and after: scores and every answer; their comparison
  export/            what the merge, the GGUF files and the upload came to
  report.html
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runtime.atomic import explain_os_error, fsync_path, sweep, write_json, write_text
from luthier.runtime.errors import EnvironmentProblem, RunFailed
from luthier.runtime.lock import owned

__all__ = ["RunFolder", "StageRecord"]

WRITTEN = ("stages", "data", "checkpoints", "eval", "export", "served")
"""Folders of a run in which files or folders are written beside their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A finished stage."""

    stage: str
    depends_on: dict[str, Any]
    """Everything the result depends on; compared key by key to decide on reuse."""
    result: dict[str, Any]
    """What the stage hands on (paths relative to the run folder, counts, scores)."""
    seconds: float
    finished_at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk. Creating the object touches nothing; `create` makes the folder."""

    path: Path

    def create(self) -> RunFolder:
        """Make the folder and check that it can be written. What is in it may be another process' work."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        return self

    def _clean(self) -> None:
        """Remove what killed writers left, and end a log's torn last line: its owner does, before anything else."""
        for folder in (self.path, *(self.path / name for name in WRITTEN)):
            sweep(folder)
        for log in self.path.glob("*.jsonl"):
            with log.open("rb+") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - 1))
                if stream.read() not in (b"", b"\n"):
                    stream.write(b"\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder while writing; a second owner is refused. Released when the process ends."""
        self.create()
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        with owned(handle, self._in_use):
            try:
                self._clean()
            except OSError as error:
                raise explain_os_error(error, self.path) from error
            yield

    def _in_use(self, owner: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            code="R723",
            message=f"{self.path} is in use by process {owner}",
            hint="wait for it, stop it, or choose another `output_dir`",
        )

    # -- files

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the run; None if there is none.

        Raises:
            RunFailed: it is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return None
        try:
            value = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise RunFailed(
                code="R722", message=f"{file} is damaged: {error}", hint="run the stage that writes it again"
            ) from error
        if not isinstance(value, dict):
            raise RunFailed(code="R722", message=f"{file} holds {type(value).__name__}, not an object")
        return value

    # -- stages

    def stage(self, name: str) -> StageRecord | None:
        """The record of a finished stage, or None."""
        file = self.path / "stages" / f"{name}.json"
        if not file.is_file():
            return None
        try:
            return StageRecord(**json.loads(file.read_text("utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise RunFailed(
                code="R721", message=f"{file} is damaged: {error}", hint=f"delete {file}; the stage will run again"
            ) from error

    def finish_stage(
        self, name: str, *, depends_on: dict[str, Any], result: dict[str, Any], seconds: float
    ) -> StageRecord:
        """Record a stage as finished."""
        record = StageRecord(
            stage=name, depends_on=depends_on, result=result, seconds=round(seconds, 3), finished_at=utc_now()
        )
        write_json(
            self.path / "stages" / f"{name}.json", {slot: getattr(record, slot) for slot in StageRecord.__slots__}
        )
        return record

    def forget_stage(self, name: str) -> None:
        """The stage counts as not done (before it runs again)."""
        (self.path / "stages" / f"{name}.json").unlink(missing_ok=True)

    # -- logs

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event. One JSON object a line, control characters escaped."""
        self._append("events.jsonl", {"time": utc_now(), "event": kind, **fields})

    def metric(self, **fields: Any) -> None:
        """Append one line of training metrics, floats at full precision."""
        self._append("metrics.jsonl", fields)

    def append(self, name: str, **fields: Any) -> None:
        """Append one line to another log of the run."""
        self._append(name, fields)

    def flush(self, name: str) -> None:
        """What a log holds so far is on the disk, also after a power cut."""
        path = self.path / name
        if path.exists():
            fsync_path(path)

    def roll_back(self, name: str, *, step: int, eval_step: int | None = None) -> None:
        """Drop lines of steps after `step` (they will be run again) and a torn last line; of validation, those after
        `eval_step` too."""
        last = step if eval_step is None else eval_step
        if (self.path / name).exists():
            kept = [
                line for line in self.read_lines(name)
                if int(line.get("step", 0)) <= (last if "eval_loss" in line else step)
            ]  # fmt: skip
            write_text(self.path / name, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """All objects of `events.jsonl` or `metrics.jsonl`; a torn last line is left out."""
        file = self.path / name
        if not file.is_file():
            return []
        lines = []
        for text in file.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def _append(self, name: str, value: dict[str, Any]) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n")
        except OSError as error:
            raise explain_os_error(error, self.path / name) from error


def utc_now() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
