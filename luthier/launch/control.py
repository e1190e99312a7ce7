"""The machines of a run as their launchers see each other, through a store on machine 0 at the rendezvous' port.

    machine/R        who it is: host, address, number of processes, version, what it was asked to do
    beat/R           counts up every two seconds
    beats/R          heartbeats of its processes, where the run folder is not shared
    failing/A        processes of some machine have failed in attempt A
    ended/A/R        how its processes ended in attempt A
    verdict/A        what machine 0 made of that for all: the cause, and whether all start again

A machine is lost when its beat stands still for LUTHIER_MACHINE_SECONDS (30), or machine 0's store is gone. The
launcher then gives its processes time to save and end by themselves, and ends them after that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from luthier.launch.network import split_address
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, MachineLost
from luthier.train.distributed.watch import read_beats

__all__ = ["Control", "Nodes"]

BEAT_SECONDS = 2.0
GRACE_SECONDS = 12.0
"""For the processes of a machine that lost another, to save and to say what they saw."""
STORE_SECONDS = 60.0
LEAVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The machines of a run; the same command starts on each."""

    count: int = 1
    rank: int = 0
    """Of this machine."""
    rendezvous: str = "localhost:0"
    """`host:port` of machine 0."""


class Control:
    """What one launcher knows of the others."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.host, self.port = split_address(nodes.rendezvous)
        self.limit = read_env().machine_seconds
        self.about: dict[int, dict[str, Any]] = {nodes.rank: {"host": socket.gethostname()}}
        self.lost: dict[int, str] = {}
        """By machine: how that shows."""
        self._store = _open_store(self, server=nodes.rank == 0)
        self._done = threading.Event()
        self._agent: threading.Event | None = None
        """Set when the processes of the present attempt have ended."""
        self._number = 0
        self.failing = threading.Event()
        """Processes of another machine have failed."""
        self.made_to_end = False
        """The processes here did not end by themselves."""
        self._seen: dict[int, tuple[int, float]] = {}
        self._talked = time.monotonic()
        self._relayed: Path | None = None

    # -- values

    def set(self, key: str, value: Any) -> None:
        """For all machines to see."""
        self._store.set(key, json.dumps(value))

    def count_up(self, key: str) -> int:
        """How often this was called for the key, on all machines."""
        return int(self._store.add(key, 1))

    def get(self, key: str) -> Any:
        """A value that is there; None if it is not."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def wait(self, key: str, machine: int, what: str, *, until: Callable[[], bool] = lambda: False) -> Any:
        """The value that `machine` sets, as long as it takes; None if `until` comes true first.

        Raises:
            MachineLost: it does not answer any more.
        """
        began, told = time.monotonic(), False
        while not until():
            if machine in self.lost or (self.nodes.rank and 0 in self.lost):
                raise self.lost_error(machine if machine in self.lost else 0)
            try:
                found = self.get(key)
            except RuntimeError as error:  # torch's DistStoreError is one
                self.lost.setdefault(0, f"its store is gone: {_first_line(error)}")
                continue
            if found is not None:
                return found
            if not told and time.monotonic() - began > 5:
                note(f"  waiting for {self.name(machine)}: {what}", style="dim")
                told = True
            time.sleep(0.2)
        return None

    def name(self, machine: int) -> str:
        """`machine 1 (host)`."""
        host = self.about.get(machine, {}).get("host")
        return f"machine {machine} ({host})" if host else f"machine {machine}"

    def lost_error(self, machine: int, more: str = "") -> MachineLost:
        """The error that names it."""
        return MachineLost(
            code="L216", message=f"{self.name(machine)} is lost: {self.lost[machine]}{more}",
            hint="start the same command on all machines again: it goes on from the newest checkpoint",
        )  # fmt: skip

    @property
    def others(self) -> list[int]:
        """All machines but this."""
        return [rank for rank in range(self.nodes.count) if rank != self.nodes.rank]

    # -- watch

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Beat and look at the others' beats inside."""
        now = time.monotonic()
        self._seen = dict.fromkeys(self.others, (-1, now))
        self._talked = now
        threads = [threading.Thread(target=self._talk, name="luthier-machines", daemon=True),
                   threading.Thread(target=self._judge, name="luthier-judge", daemon=True)]  # fmt: skip
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._leave()
            self._done.set()

    def _leave(self) -> None:
        """Machine 0 goes last: the others still read what it said."""
        if self.nodes.rank:
            if 0 not in self.lost:
                with suppress(RuntimeError):
                    self.set(f"left/{self.nodes.rank}", True)
            return
        until = time.monotonic() + LEAVE_SECONDS
        for rank in self.others:
            with suppress(MachineLost, RuntimeError):
                self.wait(f"left/{rank}", rank, "it ends", until=lambda: time.monotonic() > until)

    @contextmanager
    def attempt(self, number: int) -> Iterator[None]:
        """Processes run inside: they are ended when a machine is lost, or its processes have failed."""
        self._agent, self._number, self.made_to_end = threading.Event(), number, False
        self.failing.clear()
        try:
            yield
        finally:
            self._agent.set()

    def relay_beats(self, folder: Path) -> None:
        """From now on the heartbeats of all processes are in this machine's run folder."""
        mine = self._my_ranks()
        for file in folder.glob("rank-*.json"):
            if file.stem.removeprefix("rank-") not in {str(rank) for rank in mine}:
                file.unlink(missing_ok=True)
        self._relayed = folder

    def _my_ranks(self) -> range:
        before = sum(int(self.about[rank]["processes"]) for rank in range(self.nodes.rank))
        return range(before, before + int(self.about[self.nodes.rank]["processes"]))

    def _talk(self) -> None:
        """A connection of its own: on a cut network a call may never come back."""
        try:
            store = _open_store(self, server=False)
            for number in range(1, 1 << 62):
                store.set(f"beat/{self.nodes.rank}", str(number))
                for rank in self.others:
                    if store.check([f"beat/{rank}"]):
                        self._hear(rank, int(store.get(f"beat/{rank}")))
                if store.check([f"failing/{self._number}"]):
                    self.failing.set()
                if self._relayed is not None:
                    self._relay(store, self._relayed)
                self._talked = time.monotonic()
                if self._done.wait(BEAT_SECONDS):
                    return
        except (RuntimeError, OSError) as error:
            if self.nodes.rank and not self._done.is_set():
                self.lost.setdefault(0, f"its launcher has ended ({_first_line(error)})")

    def _hear(self, rank: int, number: int) -> None:
        if self._seen[rank][0] != number:
            self._seen[rank] = (number, time.monotonic())

    def _relay(self, store: Any, folder: Path) -> None:
        beats = [vars_of(beat) for beat in read_beats(folder) if beat.rank in self._my_ranks()]
        store.set(f"beats/{self.nodes.rank}", json.dumps(beats))
        for rank in self.others:
            if store.check([f"beats/{rank}"]):
                for beat in json.loads(store.get(f"beats/{rank}")):
                    write_json(folder / f"rank-{beat['rank']}.json", beat)

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._done.wait(0.5):
            now = time.monotonic()
            if now - before > 3.0:  # this machine stood still: that says nothing of the others
                self._talked += now - before
                self._seen = {rank: (number, since + now - before) for rank, (number, since) in self._seen.items()}
            before = now
            if self.nodes.rank and now - self._talked > self.limit:
                self.lost.setdefault(0, f"no answer of {self.host}:{self.port} for {now - self._talked:.0f} s")
            if now - self._talked < self.limit / 2:  # what is not heard is not silent
                for rank, (_, since) in self._seen.items():
                    if now - since > self.limit and rank in self.about:
                        self.lost.setdefault(rank, f"it has not answered for {now - since:.0f} s")
            agent = self._agent
            if (self.lost or self.failing.is_set()) and agent is not None and not agent.is_set():
                self._end_processes(agent)

    def _end_processes(self, agent: threading.Event) -> None:
        """They end by themselves where they notice; where they wait for the lost machine, they are ended."""
        import psutil

        if agent.wait(GRACE_SECONDS):
            return
        self.made_to_end = True
        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.Error:
                continue
        if not agent.wait(5.0):  # torch's agent waits for the lost one's agent
            os.kill(os.getpid(), signal.SIGTERM)


def vars_of(beat: Any) -> dict[str, Any]:
    """The fields that a process wrote."""
    return {name: getattr(beat, name) for name in type(beat).__slots__ if name != "silent_seconds"}


def _open_store(control: Control, *, server: bool) -> Any:
    from torch.distributed import TCPStore

    host, port = control.host, control.port
    if not server:
        _wait_for_port(control)
    try:
        return TCPStore(
            host, port, None, server, timeout=timedelta(seconds=STORE_SECONDS), wait_for_workers=False,
            multi_tenant=True,
        )  # fmt: skip
    except RuntimeError as error:
        raise EnvironmentProblem(
            code="L212", message=f"no rendezvous at {host}:{port}: {_first_line(error)}",
            hint="`--rendezvous` is an address of machine 0 with a free port that all machines reach",
        ) from error  # fmt: skip


def _wait_for_port(control: Control) -> None:
    """Machine 0 may start later than this one."""
    began, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((control.host, control.port), timeout=5).close()
            return
        except OSError as error:
            if not told and time.monotonic() - began > 3:
                note(f"waiting for machine 0 at {control.host}:{control.port} ({error})", style="dim")
                told = True
            time.sleep(0.5)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
