"""`/health/details`: how the service does, for those with a key."""

from __future__ import annotations

import asyncio
import shutil
import time
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.api.asking import no_query
from luthier.api.loading import Loader
from luthier.api.problems import answering
from luthier.jobs.store import Store

__all__ = ["StatusRoutes"]


class StatusRoutes:
    """The route."""

    def __init__(self, store: Store, loader: Loader) -> None:
        self.store, self.loader, self._started = store, loader, time.monotonic()

    @answering
    async def details(self, request: Request) -> Response:
        """`GET /health/details`: jobs by status, models in memory, free disk; no path, no name of a user."""
        no_query(request)
        counts = await asyncio.to_thread(self.store.job_counts)
        free = await asyncio.to_thread(lambda: shutil.disk_usage(self.store.home).free)
        return JSONResponse(
            {
                "status": "ok", "version": version("luthier"), "seconds_up": round(time.monotonic() - self._started),
                "jobs": counts, "models_in_memory": len(self.loader.names), "disk_free_bytes": free,
            }
        )  # fmt: skip
