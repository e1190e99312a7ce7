"""Models in memory: loaded when a request first names them, dropped when others need the room.

Adapters of one base share its weights (`luthier/serve/host.py`), so many tuned models are cheap and bases are not;
each has its own bound. A model that a request is using is never dropped.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from luthier.api.problems import NO_RETRY, as_api_error
from luthier.api.settings import ServerSection
from luthier.runtime.console import note
from luthier.runtime.errors import LuthierError
from luthier.serve.host import Host, Served, Target
from luthier.serve.http.errors import ApiError

__all__ = ["Loader", "Loading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """A model to be had."""

    target: Target
    weights: tuple[str, ...]
    """Equal for models that stand on the same weights in memory."""
    tuned: bool
    """Whether it counts as a tuned model (else as a base)."""


class Loader:
    """`lease` a model for as long as a request needs it. Used from one event loop."""

    def __init__(self, host: Host, settings: ServerSection) -> None:
        self.host, self.settings = host, settings
        self._held: OrderedDict[str, Loading] = OrderedDict()
        """By name, the one used least recently first."""
        self._users: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._change = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """What is in memory."""
        return list(self._held)

    @asynccontextmanager
    async def lease(self, name: str, find: Callable[[], Loading]) -> AsyncIterator[Served]:
        """The model of this name, loaded if need be; it stays until the block ends.

        Args:
            name: As requests call it.
            find: Where it comes from; called in a thread, when it is not in memory.

        Raises:
            ApiError: 503: it cannot be loaded, or all places are in use.
        """
        self._users[name] += 1
        try:
            served = None if name in self._leaving else self.host.find(name)
            if served is None:
                async with self._change:
                    served = self.host.find(name) or await self._load(name, find)
            self._held.move_to_end(name)
            yield served
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]

    async def forget(self, name: str) -> None:
        """A model was deleted: it goes out of memory with its checkpoints, or when the next one needs its place."""
        async with self._change:
            for held in [one for one in self._held if one == name or one.startswith(f"{name}:ckpt-step-")]:
                if not self._users[held]:
                    await self._remove(held)

    async def _load(self, name: str, find: Callable[[], Loading]) -> Served:
        loading = await asyncio.to_thread(find)
        await self._make_room(loading)
        note(f"loading {name}")
        try:
            served = await asyncio.to_thread(self.host.add, loading.target)
        except LuthierError as error:
            note(f"{name} cannot be loaded: {error.problems[0].message}")
            answer = as_api_error(error)
            answer.status, answer.headers = 503, {**answer.headers, **NO_RETRY}
            raise answer from error
        self._held[name] = loading
        return served

    async def _make_room(self, new: Loading) -> None:
        """Drop what was used least recently until the new one fits."""
        while new.tuned and sum(one.tuned for one in self._held.values()) >= self.settings.max_loaded_models:
            await self._drop_oldest(lambda one: one.tuned)
        while new.weights not in (held := {one.weights for one in self._held.values()}):
            if len(held) < self.settings.max_loaded_bases:
                break
            # All that stands on one set of weights has to go before its memory is free.
            idle = held - {self._held[name].weights for name in self._held if self._users[name]}
            oldest = next((one.weights for one in self._held.values() if one.weights in idle), None)
            if oldest is None:
                raise _full(self.settings.max_loaded_bases)
            await self._drop_oldest(lambda one, oldest=oldest: one.weights == oldest)  # type: ignore[misc]

    async def _drop_oldest(self, which: Callable[[Loading], bool]) -> None:
        idle = [name for name, one in self._held.items() if which(one) and not self._users[name]]
        # Adapters before the base they stand on.
        for name in sorted(idle, key=lambda name: not self._held[name].tuned):
            if await self._remove(name):
                return
        raise _full(self.settings.max_loaded_models)

    async def _remove(self, name: str) -> bool:
        """Whether it is out of memory; one with weights of its own stays while a stream of it goes on."""
        self._leaving.add(name)
        try:
            await asyncio.to_thread(self.host.remove, name)
        except LuthierError:
            return False
        finally:
            self._leaving.discard(name)
        del self._held[name]
        note(f"{name} is out of memory again")
        return True


def _full(places: int) -> ApiError:
    return ApiError(
        503, f"all {places} places for models are in use; try again when they are idle", code="A121",
        headers={"Retry-After": "5"},
    )  # fmt: skip
