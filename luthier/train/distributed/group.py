"""The processes of a run as one group: who they are, and what process 0 does for all.

Values of process 0 travel through the store that started the group, under a name: the others wait for the name, not
for their turn, and as long as it takes. Tensors travel through torch's collectives only (`step.py`, `masters.py`).
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, LuthierError, RunFailed
from luthier.runtime.heartbeat import current, mark
from luthier.runtime.spread import Spread

if TYPE_CHECKING:
    from luthier.runtime.device import Device

__all__ = ["Group", "join"]

Result = TypeVar("Result")
POLL_SECONDS = 0.1
SPARE_SECONDS = 120.0
"""How much longer than the watch a collective operation waits: the watch names the process, torch does not."""


class Group:
    """All processes of a run. Alone, it does everything itself and imports no torch."""

    def __init__(self, *, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store

    @property
    def is_main(self) -> bool:
        """This process writes the run's files and prints."""
        return self.rank == 0

    @property
    def keeps_records(self) -> bool:
        """This process keeps the run's records on a machine that does not see process 0's run folder."""
        env = read_env()
        return env.unshared and env.machine > 0 and env.local_rank == 0

    def from_main(self, name: str, action: Callable[[], Result]) -> Result:
        """What `action` returns in process 0, in every process. `name` is used once in a run.

        Raises:
            LuthierError: in process 0 what `action` raised, elsewhere `RunFailed` with its text.
        """
        if self.size == 1:
            return action()
        key = f"luthier/{name}"
        if self.is_main:
            return self._publish(key, action)
        ok, value = pickle.loads(self._await(key, f"process 0: {name}"))
        if not ok:
            raise RunFailed(code="T462", message=f"process 0 failed, so this one stops too: {value}")
        result: Result = value
        return result

    def spread(self, label: str) -> Spread:
        """Items dealt to all processes, results exchanged through the store: texts and numbers, no tensors.

        `label` tells apart what is done twice in a run under one name.
        """
        read: list[str] = []

        def exchange(name: str, value: Any) -> list[Any]:
            found = self._exchange(f"{label}: {name}", value)
            # All have come to this exchange, so all have read the last one: the store need not keep it.
            while self.size > 1 and read:
                self._store.delete_key(f"luthier/{label}: {read.pop()}/{self.rank}")
            read.append(name)
            return found

        return Spread(rank=self.rank, size=self.size, exchange=exchange)

    def _exchange(self, name: str, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        self._store.set(f"luthier/{name}/{self.rank}", pickle.dumps(value))
        ranks = range(self.size)
        return [pickle.loads(self._await(f"luthier/{name}/{rank}", f"process {rank}: {name}")) for rank in ranks]

    def _await(self, key: str, what: str) -> bytes:
        before = current()
        mark(f"waiting for {what}", exchange=True, watched=False)
        while not self._store.check([key]):
            time.sleep(POLL_SECONDS)
        value: bytes = self._store.get(key)
        mark(before.name, exchange=before.exchange, watched=before.watched)
        return value

    def _publish(self, key: str, action: Callable[[], Result]) -> Result:
        try:
            value = action()
        except LuthierError as error:
            self._store.set(key, pickle.dumps((False, str(error))))
            raise
        except BaseException as error:
            self._store.set(key, pickle.dumps((False, f"{type(error).__name__}: {error}")))
            raise
        self._store.set(key, pickle.dumps((True, value)))
        return value


@contextmanager
def join(device: Callable[[], Device]) -> Iterator[Group]:
    """The group that the launcher started this process in; a group of one without a launcher.

    `device` is asked for only where there are several.

    Raises:
        EnvironmentProblem: more processes on this machine than GPUs.
    """
    env = read_env()
    if env.world_size == 1:
        yield Group()
        return
    found = device()
    _require_one_gpu_each(found)
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    limit = timedelta(seconds=env.hang_seconds + SPARE_SECONDS)
    mark("meeting the other processes", exchange=True)
    if found.type == "cuda":
        torch.cuda.set_device(found.index)
    PartialState(cpu=found.type == "cpu", timeout=limit)
    store = dist.PrefixStore("luthier", dist.distributed_c10d._get_default_store())
    try:
        yield Group(rank=env.rank, size=env.world_size, store=store)
        mark("leaving together", exchange=True)
        dist.barrier()  # one that leaves while others still talk to it makes those abort
    except Exception as error:
        if not lost_contact(error):
            raise
        raise RunFailed(
            code="L141",
            message=f"process {env.rank} lost the others in `{current().name}`: {_first_line(error)}",
            hint="another process ended first: its error is the cause",
        ) from error
    dist.destroy_process_group()


def lost_contact(error: BaseException) -> bool:
    """Whether torch failed because another process is gone or did not answer."""
    import torch.distributed as dist

    if isinstance(error, LuthierError):
        return False
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection closed"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _require_one_gpu_each(device: Device) -> None:
    env = read_env()
    if device.type == "mps":
        raise EnvironmentProblem(
            code="L101", message="an Apple GPU is one device: it takes one process", hint="start it without a launcher"
        )
    if device.type != "cuda":
        return
    import torch

    there = torch.cuda.device_count()
    if env.local_world_size > there:
        raise EnvironmentProblem(
            code="L101",
            message=f"{env.local_world_size} processes on this machine, which shows {there} GPU(s): each needs its own",
            hint=f"start {there} processes, or `--num-processes {env.local_world_size}` for CPUs",
        )
