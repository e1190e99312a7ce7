"""A chat answer that comes in pieces: server-sent events with `data: {...}`, closed by `data: [DONE]`.

A server that answers in one piece although it was asked to stream is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from luthier.endpoint.reply import BadReply, read_reply, text_of

__all__ = ["pieces_of"]


def pieces_of(lines: Iterable[bytes], content_type: str) -> Iterator[str]:
    """The text of an answer, piece by piece.

    Args:
        lines: of the body.
        content_type: as the server says.

    Raises:
        BadReply: what comes is no answer, or the answer broke off.
    """
    if "event-stream" not in content_type:
        yield text_of(read_reply(b"".join(lines)))[0]
        return
    ended = False
    for line in lines:
        text = line.strip()
        if not text.startswith(b"data:"):
            continue  # a comment that keeps the connection open, an event's name
        data = text[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        piece, finished = _piece(data)
        ended = ended or finished
        if piece:
            yield piece
    if not ended:
        raise BadReply("the answer broke off: the connection was closed before its end")


def _piece(data: bytes) -> tuple[str, bool]:
    """(text, whether it is the last with one) of one event."""
    try:
        value: Any = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise BadReply(f"an event is not JSON ({error}): {data[:80]!r}") from error
    if not isinstance(value, dict):
        raise BadReply(f"an event is no object: {data[:80]!r}")
    if told := value.get("error"):
        raise BadReply(f"the server stopped: {told.get('message') if isinstance(told, dict) else told}")
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    delta = first.get("delta") if isinstance(first, dict) else None
    content = delta.get("content") if isinstance(delta, dict) else None
    return content if isinstance(content, str) else "", bool(isinstance(first, dict) and first.get("finish_reason"))
