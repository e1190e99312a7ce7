"""From a name in a request to something that can be loaded: a base, a tuned model, a checkpoint of the caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from luthier.api.caller import Caller
from luthier.api.loading import Loading
from luthier.jobs.records import ALL_OWNERS, ModelRecord
from luthier.jobs.settings import EMBEDDED, ApiSettings
from luthier.jobs.store import Store
from luthier.model.attach import is_adapter
from luthier.pipeline.rerun import recipe_of_run
from luthier.pipeline.serving import resolve
from luthier.recipe.paths import looks_local
from luthier.recipe.schema import ModelSection
from luthier.serve.host import Target

__all__ = ["Catalog"]


class Catalog:
    """Bases are those of the configuration; tuned ones are looked up in the store, each time anew."""

    def __init__(self, store: Store, settings: ApiSettings) -> None:
        self.store = store
        hub = {base: base for base in settings.models.values() if not looks_local(base, suffixes=())}
        now = int(time.time())
        self.bases = {
            name: ModelRecord(name=name, owner=ALL_OWNERS, created=now, kind="base", base=base)
            for name, base in {**settings.models, **hub, EMBEDDED: EMBEDDED}.items()
        }

    async def record(self, name: str, caller: Caller) -> ModelRecord:
        """What a name stands for.

        Raises:
            NotFound: there is none of this name that the caller may use.
        """
        base = self.bases.get(name)
        return base if base is not None else await asyncio.to_thread(self.store.model, name, caller.sees)

    async def records(self, caller: Caller) -> list[ModelRecord]:
        """All that the caller may use: bases, then tuned models with their checkpoints."""
        own = await asyncio.to_thread(self.store.models, caller.sees)
        return [*self.bases.values(), *(record for record in own if record.name not in self.bases)]

    async def find(self, name: str, caller: Caller) -> Callable[[], Loading]:
        """How to load a model.

        Raises:
            NotFound: as `record`.
        """
        record = await self.record(name, caller)
        return lambda: _loading(record)


def _loading(record: ModelRecord) -> Loading:
    """What to load; it reads the disk."""
    if record.path is None:
        target = Target(name=record.name, section=ModelSection(name_or_path=record.base))
        return Loading(target=target, weights=_base_weights(target), tuned=False)
    folder = Path(record.path)
    target = _checkpoint(record.name, folder) if record.kind == "checkpoint" else resolve(str(folder), record.name)
    # The base is shared, but not served under a name that nobody gave it.
    target = replace(target, base_name=None)
    shares = target.folder is not None and is_adapter(target.folder)
    return Loading(target=target, weights=_base_weights(target) if shares else ("own", record.name), tuned=True)


def _checkpoint(name: str, folder: Path) -> Target:
    """RUN/served/step-N, with the settings of its run; the run need not be finished."""
    run = folder.parent.parent
    if not (run / "manifest.json").is_file():
        return resolve(str(folder), name)
    recipe = recipe_of_run(run)
    return Target(
        name=name, section=recipe.model, folder=folder,
        quantization="nf4" if recipe.method.name == "qlora" else "none", control_tokens=recipe.data.control_tokens,
    )  # fmt: skip


def _base_weights(target: Target) -> tuple[str, ...]:
    section = target.section
    return ("base", section.name_or_path, section.revision or "", target.quantization, *section.new_tokens)
