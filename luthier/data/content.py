"""Hash of what a row says, not of where it stands: the same content gives the same hash in any file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from luthier.data.types import Conversation

__all__ = ["content_hash", "group_hash", "row_hash"]


def row_hash(conversation: Conversation) -> str:
    """Hash of a row in normal form, its `ref` left out.

    The order of keys in a message does not count, the order of keys inside arguments and tools does:
    it shows in the rendered text.
    """
    return _hash(_value(conversation))


def group_hash(conversation: Conversation) -> str:
    """Hash of what must stay on one side of a split: the row; of preferences only their prompt.

    Several pairs often have one prompt. The answer that one of them teaches would be known to the others.
    """
    if not conversation.answers:
        return row_hash(conversation)
    return _hash(_prompt(conversation.answers[0]))


def _hash(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def _prompt(answer: Conversation) -> list[Any]:
    """What stands before the first message that counts."""
    if answer.kind != "chat":
        return [answer.kind, answer.prompt]
    weights = zip(answer.messages, answer.message_weights, strict=True)
    counts = (
        index for index, (message, weight) in enumerate(weights) if message["role"] == "assistant" and weight != 0
    )
    before = answer.messages[: next(counts, None)]
    return [answer.kind, [sorted(message.items()) for message in before], answer.tools]


def _value(conversation: Conversation) -> list[Any]:
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
    elif conversation.answers:
        value += [[_value(answer) for answer in conversation.answers], conversation.label, conversation.margin]
    else:
        value += [conversation.prompt, conversation.completion, conversation.text]
    return value


def content_hash(conversations: Iterable[Conversation]) -> str:
    """Hash of many rows, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for conversation in conversations:
        digest.update(row_hash(conversation).encode("ascii"))
    return digest.hexdigest()
