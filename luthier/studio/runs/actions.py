"""What can be asked of a run: pause, stop, resume; of a job through its queue.

A run that is asked to stop gets the signal that Ctrl-C sends: it saves a checkpoint and ends. A second one ends it at
once. Resuming starts the same recipe again, which goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import LuthierError, RecipeError
from luthier.studio.clean import read_json
from luthier.studio.names import run_folder
from luthier.studio.runs.index import Index
from luthier.studio.runs.launch import start_process
from luthier.studio.runs.processes import alive, born
from luthier.studio.runs.spread import processes_of

__all__ = ["ACTIONS", "act", "launched", "overrides_of", "resume_arguments"]

ACTIONS = ("pause", "stop", "stop_now", "resume", "cancel", "save")
_GRACE_SECONDS = 5.0
_PLAIN_KEYS = ("name", "output_dir", "version")
"""Keys of a recipe that are in no section."""


def act(index: Index, ident: str, action: str) -> str:
    """Do it, and say what was done.

    Raises:
        RecipeError: W103: no such action; W120: not possible in the run's status; W104: no such run.
    """
    if action not in ACTIONS:
        raise RecipeError(code="W103", message=f"action must be one of {', '.join(ACTIONS)}; got {action[:40]!r}")
    line = index.one(ident)
    if action not in line["actions"]:
        can = ", ".join(line["actions"]) or "nothing"
        message = f"{action} is not possible: {line['name']} is {line['status']}; what can be asked now: {can}"
        raise RecipeError(code="W120", message=message)
    if line["job"] is not None:
        return _job(index, line["job"], action)
    if action == "resume":
        return _resume(index, ident)
    return _stop(index, ident, action)


def _job(index: Index, job: str, action: str) -> str:
    assert index.jobs is not None
    index.jobs.want(job, {"pause": "pause", "resume": "run", "cancel": "cancel"}[action])
    return {"pause": "it will pause after a checkpoint", "resume": "it waits for a worker", "cancel": "cancelling"}[
        action
    ]


def _stop(index: Index, ident: str, action: str) -> str:
    pid = index.pid(ident)
    child = index.store.children().get(ident)
    if pid is None and child is not None and alive(child.pid) and born(child.pid) == child.born:
        pid = child.pid  # it has not taken its folder yet
    if pid is None:
        raise RecipeError(code="W120", message="its process has ended meanwhile")
    stopping = child is not None and child.wanted in ("stop", "pause", "stop_now")
    index.store.want(ident, action)
    _signal(pid, signal.SIGINT)
    if action == "stop_now":
        if not stopping:
            _signal(pid, signal.SIGINT)
        began = born(pid)
        timer = threading.Timer(_GRACE_SECONDS, _kill, (pid, began))
        timer.daemon = True
        timer.start()
        return "it ends at once; its last complete checkpoint stays"
    return "it saves a checkpoint, then it stops"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise RecipeError(
            code="W120", message=f"process {pid} belongs to another user", hint="ask that user to stop it"
        ) from error


def _kill(pid: int, began: str) -> None:
    """What does not end by two signals, hangs."""
    if alive(pid) and born(pid) == began:
        os.kill(pid, signal.SIGKILL)


def _resume(index: Index, ident: str) -> str:
    folder = run_folder(index.settings.runs, ident)
    arguments, where = resume_arguments(folder, default=index.settings.root)
    start_process(index.settings, index.store, ident, arguments, folder=where)
    return f"started: luthier {shlex.join(arguments)}"


def resume_arguments(folder: Path, *, default: Path) -> tuple[list[str], Path]:
    """The command that goes on with a run, and the folder to run it in: its own recipe, overrides and processes.

    Raises:
        RecipeError: W123: the folder it was started in is gone, or it ran on several machines.
    """
    manifest = read_json(folder / "manifest.json")
    command = [str(word) for word in manifest.get("command") or []]
    overrides = overrides_of(command)
    where = Path(str(manifest.get("working_directory") or default))
    if not where.is_dir():
        raise RecipeError(code="W123", message=f"the folder this run was started in is gone: {where.name}")
    file = folder / "recipe.yaml"
    output = _output_dir(file, manifest)
    if output is not None and (where / output).resolve() != folder.resolve():
        overrides = [word for word in overrides if not word.startswith("output_dir=")]
        overrides.append(f"output_dir={folder.resolve()}")
    return [*launched(folder, str(file.resolve())), *overrides], where


def launched(folder: Path, recipe: str) -> list[str]:
    """`run RECIPE`, or `launch RECIPE --num-gpus N` for a run that was on several processes.

    Raises:
        RecipeError: W123: it was on several machines.
    """
    facts = processes_of(folder)
    if facts is None:
        return ["run", recipe]
    if (facts.machines or 1) > 1:
        raise RecipeError(
            code="W123", message=f"this run was on {facts.machines} machines; the studio starts runs on its own",
            hint="the command it was started with, on each machine, goes on from its checkpoint",
        )  # fmt: skip
    option = "--num-processes" if facts.device == "cpu" else "--num-gpus"
    return ["launch", recipe, option, str(facts.processes)]


def overrides_of(command: Sequence[Any]) -> list[str]:
    """What a command line changed of its recipe, as `key=value` and `~key` (`cli/common.split_overrides`)."""
    words, found = iter([str(word) for word in command]), []
    for word in words:
        name, equals, _ = word.removeprefix("--").removeprefix("~").partition("=")
        if not all(part.isidentifier() or part.isdigit() for part in name.split(".")):
            continue
        if word.startswith("--") and "." not in name and name not in _PLAIN_KEYS:
            continue  # an option of the command: `--nodes=1`
        if equals or word.startswith("~"):
            found.append(word.removeprefix("--"))
        elif word.startswith("--") and (value := next(words, None)) is not None:
            found.append(f"{name}={value}")
    return found


def _output_dir(file: Path, manifest: dict[str, Any]) -> str | None:
    recipe = manifest.get("recipe")
    if isinstance(recipe, dict) and recipe.get("output_dir"):
        return str(recipe["output_dir"])
    try:
        value = parse_yaml(file.read_text("utf-8", errors="replace"), origin=str(file)).value
    except (OSError, LuthierError):
        return None
    return str(value["output_dir"]) if isinstance(value, dict) and value.get("output_dir") else None
