"""Before the processes start: who takes part, what the machines share, and whether they prepared the same."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.launch.control import Control
from luthier.launch.network import Interface, interface_to
from luthier.runtime.atomic import write_text
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem, LuthierError, Problem, RecipeError, RunFailed

__all__ = ["Shared", "find_shared", "introduce", "prepare_everywhere"]

LOOK_SECONDS = 4.0
"""A network file system may show a new file late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all machines see."""

    run: bool
    cache: bool


def introduce(control: Control, *, processes: int, asked: Mapping[str, str]) -> Interface | None:
    """Wait for all machines; returns the interface of this one that the others reach.

    Args:
        control: The machines.
        processes: Of this machine.
        asked: What each has to have been asked for in the same words: recipe, overrides, version.

    Raises:
        RecipeError: two machines have one number, or were started with different recipes or versions.
    """
    rank, count = control.nodes.rank, control.nodes.count
    mine = interface_to(control.host)
    if control.count_up(f"joined/{rank}") > 1:
        raise RecipeError(
            code="L213", message=f"there is a machine {rank} already at {control.host}:{control.port}",
            hint=f"each machine has its own `--node-rank`, 0 to {count - 1}; or wait until the earlier run has ended",
        )  # fmt: skip
    known = {**control.about[rank], "address": mine.address if mine else None, "processes": processes, "asked": asked}
    control.about[rank] = known
    control.set(f"machine/{rank}", known)
    for other in control.others:
        control.about[other] = control.wait(f"machine/{other}", other, "it joins")
    _require_same_words(control)
    hosts = ", ".join(f"{control.about[one]['host']}: {control.about[one]['processes']}" for one in range(count))
    note(f"{count} machines, processes on each: {hosts}")
    if rank == 0:
        # The name of machine 0 may be an address of itself alone (127.0.1.1 in /etc/hosts): take the others'.
        address = control.about[1]["address"] if count > 1 else None
        return interface_to(address) if address else mine
    return mine


def _require_same_words(control: Control) -> None:
    first = control.about[0]["asked"]
    problems = [
        Problem(
            code="L214", message=f"{control.name(rank)} and {control.name(0)} were started with another {what}",
            hint="start the same command, with the same recipe and version of Luthier, on each machine",
        )
        for rank in range(1, control.nodes.count)
        for what, value in control.about[rank]["asked"].items()
        if first.get(what) != value
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems=problems)


def find_shared(control: Control, *, run: Path, cache: Path) -> Shared:
    """Machine 0 leaves a file in each folder, the others look for it; what one does not see is not shared."""
    rank = control.nodes.rank
    folders = {"run": run, "cache": cache}
    if rank == 0:
        name = f".luthier-{uuid.uuid4().hex}"
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, "looked for by the other machines of a run\n")
        control.set("token", name)
    name = str(control.wait("token", 0, "it writes into the run folder"))
    control.set(f"sees/{rank}", {what: _sees(folder / name) for what, folder in folders.items()})
    seen = [control.wait(f"sees/{other}", other, "it looks for the run folder") for other in range(control.nodes.count)]
    if rank == 0:
        for folder in folders.values():
            with suppress(OSError):
                (folder / name).unlink()
    found = Shared(run=all(one["run"] for one in seen), cache=all(one["cache"] for one in seen))
    words = {True: "shared", False: "not shared"}
    kept = "" if found.run else "; checkpoints and results are machine 0's, the others get what they need from it"
    note(f"  run folder: {words[found.run]}, cache: {words[found.cache]}{kept}", style="dim")
    return found


def _sees(file: Path) -> bool:
    until = time.monotonic() + LOOK_SECONDS
    while not file.is_file():
        if time.monotonic() > until:
            return False
        with suppress(OSError):
            list(file.parent.iterdir())  # makes NFS look again
        time.sleep(0.2)
    return True


def prepare_everywhere(
    control: Control, *, shared: Shared, whole: Callable[[], None], cached: Callable[[], None],
    hashes: Callable[[], dict[str, str]],
) -> None:  # fmt: skip
    """Machine 0 prepares the data; so does each that does not see machine 0's; and they have to be the same.

    Args:
        control: The machines.
        shared: What they share.
        whole: Prepares into cache and run folder.
        cached: Into the cache alone: the run folder is machine 0's.
        hashes: Of what is used here: `data`, `base`.

    Raises:
        LuthierError: of this machine.
        RunFailed: another machine could not prepare.
        EnvironmentProblem: the machines have different data, or another base.
    """
    rank = control.nodes.rank
    try:
        if rank == 0 or not shared.run:
            whole()
        elif not shared.cache:
            control.wait("prepared/0", 0, "it prepares the data")
            cached()
        else:
            control.wait("prepared/0", 0, "it prepares the data")
        control.set(f"prepared/{rank}", {"hashes": hashes()})
    except LuthierError as error:
        with suppress(RuntimeError):
            control.set(f"prepared/{rank}", {"error": error.problems[0].message})
        raise
    said = {one: control.wait(f"prepared/{one}", one, "it prepares the data") for one in range(control.nodes.count)}
    failed = [f"{control.name(one)}: {value['error']}" for one, value in said.items() if "error" in value]
    if failed:
        raise RunFailed(code="L217", message="the run cannot start: " + "; ".join(failed))
    problems = [
        Problem(code="L215", message=_differs(control, said, what), hint=_ADVICE[what])
        for what in ("data", "base")
        if len({value["hashes"][what] for value in said.values()}) > 1
    ]
    if problems:
        raise EnvironmentProblem(problems=problems)


_ADVICE = {
    "data": "copy the same files to each machine: rows, recipe, tokenizer, lists and functions of filters",
    "base": "copy the same model folder to each machine, or name the same `model.revision`",
}


def _differs(control: Control, said: Mapping[int, Any], what: str) -> str:
    words = {"data": "the prepared data differ", "base": "the files of the base differ"}[what]
    each = ", ".join(f"{control.name(one)} {str(value['hashes'][what])[:12]}" for one, value in said.items())
    return f"{words} between machines: {each}"
