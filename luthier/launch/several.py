"""`luthier launch`: one machine, or this one of several."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from luthier.launch.attempts import Ended, run_attempts
from luthier.launch.control import Control, Nodes
from luthier.launch.meet import Shared, find_shared, introduce, prepare_everywhere
from luthier.launch.network import on_interface
from luthier.launch.processes import launch_processes, stopped_by
from luthier.pipeline.run import run_recipe
from luthier.pipeline.session import Session
from luthier.recipe.online import require_processes
from luthier.runs.folder import RunFolder
from luthier.runs.manifest import code_version
from luthier.runtime.env import read_env
from luthier.runtime.hashing import hash_json
from luthier.train.distributed.watch import FOLDER

if TYPE_CHECKING:
    from luthier.recipe.load import LoadedRecipe

__all__ = ["Launch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A recipe on processes of this machine, or of several."""

    loaded: LoadedRecipe
    arguments: tuple[str, ...]
    """Of each process, after `luthier`."""
    processes: int
    """Of this machine."""
    cpu: bool
    max_restarts: int = 0

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.loaded.recipe.output_dir)

    def here(self) -> None:
        """On this machine alone.

        Raises:
            LuthierError: what ended the run.
        """
        require_processes(self.loaded.recipe, self.processes)
        with _stopping(self.folder):
            self._prepare()
            run_attempts(lambda attempt: self._start(attempt, Nodes()), max_restarts=self.max_restarts)

    def one_of(self, nodes: Nodes) -> None:
        """As machine `nodes.rank`; returns when the run has ended on all.

        Raises:
            LuthierError: what ended the run, on whichever machine.
        """
        control = Control(nodes)
        with _stopping(self.folder), control.watching():
            asked = {
                "recipe": hash_json(self.loaded.recipe.model_dump(mode="json", exclude={"output_dir"})),
                "command": hash_json([self.max_restarts, *filter(_not_place, self.arguments[2:])]),
                "version": hash_json(code_version()),
            }  # fmt: skip
            interface = introduce(control, processes=self.processes, asked=asked)
            shared = find_shared(control, run=self.folder, cache=read_env().cache_dir)
            session = Session(self.loaded.recipe, RunFolder(self.folder))
            prepare_everywhere(
                control, shared=shared, whole=self._prepare, cached=lambda: self._fill_cache(session),
                hashes=lambda: self._hashes(session),
            )  # fmt: skip
            if not shared.run:
                control.relay_beats(self.folder / FOLDER)
            reaches = control.name(0 if nodes.rank else 1)
            with on_interface(interface, reaches=reaches):
                run_attempts(
                    lambda attempt: self._start_together(attempt, control, shared),
                    max_restarts=self.max_restarts, control=control,
                )  # fmt: skip

    def _prepare(self) -> None:
        run_recipe(self.loaded.recipe, recipe_text=self.loaded.text, only=("data",))

    def _fill_cache(self, session: Session) -> None:
        session.prepared  # noqa: B018

    def _hashes(self, session: Session) -> dict[str, str]:
        return {"data": str(session.stage_result("data")["hash"]), "base": hash_json(session.identity)}

    def _start(self, attempt: int, nodes: Nodes, *, unshared: bool = False) -> Ended:
        words: Sequence[str] = self.arguments
        if attempt:  # it goes on from a checkpoint
            words = [word for word in words if word != "--restart"]
        return launch_processes(
            words, processes=self.processes, cpu=self.cpu, run=self.folder, nodes=nodes, unshared=unshared
        )

    def _start_together(self, attempt: int, control: Control, shared: Shared) -> Ended:
        nodes = control.nodes
        if attempt:
            # The first attempt's keys are still in the store: another attempt takes another one.
            if nodes.rank == 0:
                control.set(f"port/{attempt}", _free_port())
            port = control.wait(f"port/{attempt}", 0, "it starts again")
            nodes = replace(nodes, rendezvous=f"{control.host}:{port}")
        return self._start(attempt, nodes, unshared=not shared.run)


@contextmanager
def _stopping(run: Path) -> Iterator[None]:
    """A signal while no processes run (data are prepared, machines meet) ends with an error; agents have handlers."""
    mine = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != mine:  # a helper that inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise stopped_by(signal.Signals(number).name, run)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, stop)
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _not_place(word: str) -> bool:
    """Machines may keep their files in other places."""
    return not word.startswith("output_dir=")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
