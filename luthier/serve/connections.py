"""Connections that do not wait for ever: a client that opens one and says nothing, or half a header, is cut off.

uvicorn ends idle connections only between requests, and counts no open ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PatientProtocol"]


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 over h11 (which bounds headers to 16 KiB), with a bound on time and on their number."""

    header_seconds = 10.0
    """From the connection, or the first byte of a further request, to the end of the headers."""
    max_connections = 1_000
    """Open at once; more are closed at once."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: perhaps the last of the headers, perhaps the first of the next request."""
        super().data_received(data)
        if self._busy():
            self._forget()
        elif self._deadline is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._forget()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._give_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self._busy() and not self.transport.is_closing():
            self.transport.close()
