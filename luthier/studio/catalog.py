"""Models for the chat routes: those of the API's store, and beside them those of every run that the studio shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from luthier.api.caller import Caller
from luthier.api.catalog import Catalog
from luthier.api.loading import Loading
from luthier.jobs.errors import NotFound
from luthier.jobs.settings import ApiSettings
from luthier.jobs.store import Store
from luthier.model.attach import is_adapter
from luthier.pipeline.serving import resolve
from luthier.runtime.errors import RecipeError
from luthier.serve.host import Target
from luthier.studio.context import Studio
from luthier.studio.models import Named, named_model

__all__ = ["RunCatalog"]


class RunCatalog(Catalog):
    """Looks in the store first."""

    def __init__(self, store: Store, settings: ApiSettings, studio: Studio) -> None:
        super().__init__(store, settings)
        self.studio = studio

    async def find(self, name: str, caller: Caller) -> Callable[[], Loading]:
        """How to load a model; those of runs are for the admin (the studio's session is one).

        Raises:
            NotFound: there is none of this name that the caller may use.
        """
        try:
            return await super().find(name, caller)
        except NotFound as missing:
            if not caller.admin:
                raise
            try:
                named = await asyncio.to_thread(named_model, self.studio, name)
            except RecipeError:
                raise missing from None
            return lambda: loading_of(named)


def loading_of(named: Named) -> Loading:
    """What to load; it reads the disk."""
    if named.path is None:
        target = Target(name=named.name, section=named.section)
        return Loading(target=target, weights=_weights(target), tuned=False)
    target = replace(resolve(named.path, named.name), base_name=None)
    shares = target.folder is not None and is_adapter(target.folder)
    return Loading(target=target, weights=_weights(target) if shares else ("own", named.name), tuned=True)


def _weights(target: Target) -> tuple[str, ...]:
    """Equal for models on one set of weights, as in `luthier.api.catalog`."""
    section = target.section
    return ("base", section.name_or_path, section.revision or "", target.quantization, *section.new_tokens)
