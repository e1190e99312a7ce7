"""Server-sent events: one `data:` line an event, `[DONE]` at the end, a comment when nothing happens for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from luthier.serve.http.errors import ApiError

__all__ = ["EventStream"]

# Proxies close connections that are silent for a minute or less.
SILENCE_SECONDS = 15.0


class EventStream(StreamingResponse):
    """Sends events as they come; `on_end` is called however it ends, also when the client goes away."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_lines(events), media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    source = events.__aiter__()
    waiting: asyncio.Future[dict[str, Any]] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait({waiting}, timeout=SILENCE_SECONDS)
            if not done:
                yield ": waiting\n\n"
                continue
            try:
                event = waiting.result()
            except StopAsyncIteration:
                break
            except ApiError as error:
                yield _line(error.body())
                return
            waiting = None
            yield _line(event)
        yield "data: [DONE]\n\n"
    finally:
        if waiting is not None:
            waiting.cancel()


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
