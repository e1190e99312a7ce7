"""Hash of what a row says, not of where it stands: the same content gives the same hash in any file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from luthier.data.types import Conversation

__all__ = ["content_hash", "row_hash"]


def row_hash(conversation: Conversation) -> str:
    """Hash of a row in normal form, its `ref` left out.

    The order of keys in a message does not count, the order of keys inside arguments and tools does:
    it shows in the rendered text.
    """
    value: list[Any] = [conversation.kind]
    if conversation.kind == "chat":
        value += [
            [sorted(message.items()) for message in conversation.messages],
            conversation.tools,
            list(conversation.message_weights),
            sorted((index, list(spans)) for index, spans in conversation.span_weights.items()),
        ]
    elif conversation.kind == "segments":
        value += [[segment.text, segment.weight] for segment in conversation.segments]
    else:
        value += [conversation.prompt, conversation.completion, conversation.text]
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def content_hash(conversations: Iterable[Conversation]) -> str:
    """Hash of many rows, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for conversation in conversations:
        digest.update(row_hash(conversation).encode("ascii"))
    return digest.hexdigest()
