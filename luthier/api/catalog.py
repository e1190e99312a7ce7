"""From a name in a request to something that can be loaded: a base, a tuned model, a checkpoint of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from luthier.api.caller import Caller
from luthier.api.loading import Loading
from luthier.jobs.records import ModelRecord
from luthier.jobs.store import Store
from luthier.model.attach import is_adapter
from luthier.pipeline.serving import resolve
from luthier.recipe.schema import ModelSection
from luthier.serve.host import Target

__all__ = ["Catalog"]


class Catalog:
    """Looks names up in the store, each time anew: a model that was deleted or belongs to another is not found."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def find(self, name: str, caller: Caller) -> Callable[[], Loading]:
        """How to load a model.

        Raises:
            NotFound: there is none of this name that the caller may use.
        """
        record = await asyncio.to_thread(self.store.model, name, caller.sees)
        return lambda: self._loading(record)

    def _loading(self, record: ModelRecord) -> Loading:
        """What to load; read in a thread."""
        if record.path is None:
            target = Target(name=record.name, section=ModelSection(name_or_path=record.base))
            return Loading(target=target, weights=_base_weights(target), tuned=False)
        target = replace(resolve(record.path, record.name), base_name=None)
        shares = target.folder is not None and is_adapter(Path(target.folder))
        weights = _base_weights(target) if shares else ("own", record.name)
        return Loading(target=target, weights=weights, tuned=True)


def _base_weights(target: Target) -> tuple[str, ...]:
    section = target.section
    return ("base", section.name_or_path, section.revision or "", target.quantization, *section.new_tokens)
