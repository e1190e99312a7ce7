"""Server-sent events with names and ids (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from luthier.studio.clean import dumps
from luthier.studio.runs.live import Event

__all__ = ["NamedEvents", "encoded"]


class NamedEvents(StreamingResponse):
    """A stream of events; it ends when the client goes away."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_texts(events), media_type="text/event-stream", headers=headers)


async def _texts(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for event in events:
        yield encoded(event)


def encoded(event: Event) -> str:
    """One event; JSON has no line feed in it, so data is one line."""
    name, data, ident = event
    if data is None:
        return ": idle\n\n"
    head = f"id: {ident}\n" if ident is not None else ""
    return f"{head}event: {name}\ndata: {dumps(data)}\n\n"
