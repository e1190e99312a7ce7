"""The body of a request: how much of it is read, how long it may take, and what happens to one that is refused.

An answer that comes before the body has ended closes the connection, but not at once: what is on its way is read
for some seconds and thrown away (nginx calls it lingering). Most clients read only when they have sent everything,
and would see a broken connection instead of the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.types import Message, Receive, Send

from luthier.serve.http.errors import ApiError

__all__ = ["Body", "too_large"]

LINGER_SECONDS, LINGER_IDLE_SECONDS = 15.0, 2.0


class Body:
    """Stands between server and application for one request."""

    def __init__(
        self, receive: Receive, send: Send, headers: Mapping[str, str], *, limit: int, idle_seconds: float
    ) -> None:
        self._receive, self._send, self.limit, self.idle_seconds = receive, send, limit, idle_seconds
        self.read = 0
        self.ended = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        """Whether all of it has come."""
        self.answered = False
        """Whether an answer was begun."""

    async def receive(self) -> Message:
        """The next part of the body; once it has ended, whatever comes (the client leaving).

        Raises:
            ApiError: 413 over the limit (a chunked body states no length), 408 when nothing comes.
        """
        if self.ended:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self.idle_seconds)
        except TimeoutError:
            message_ = f"no byte of the body came for {self.idle_seconds:g} s"
            raise ApiError(408, message_, code="body_timeout") from None
        if message["type"] == "http.disconnect":
            self.ended = True
            return message
        self.read += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.read > self.limit:
            raise too_large(self.limit)
        return message

    async def send(self, message: Message) -> None:
        """Part of the answer."""
        if message["type"] == "http.response.start":
            self.answered = True
            if not self.ended:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False) and not self.ended:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        until = time.monotonic() + LINGER_SECONDS
        while not self.ended and (left := until - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), min(left, LINGER_IDLE_SECONDS))
            except TimeoutError:
                return
            self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")
