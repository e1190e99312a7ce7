"""The answer of a chat: its text, or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BadReply", "ChatRequest", "Reply", "completion_tokens", "error_of", "read_reply"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question."""

    messages: Sequence[Mapping[str, Any]]
    """As in the OpenAI API."""
    max_tokens: int
    """Longest answer."""
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the body (`response_format`, `seed`, ...); null removes a key."""
    variant: int = 0
    """Equal requests with different numbers are sampled, and kept, apart."""

    def body(self, model: str) -> dict[str, Any]:
        """What is sent."""
        value: dict[str, Any] = {
            "model": model, "messages": [dict(message) for message in self.messages],
            "max_tokens": self.max_tokens, "temperature": self.temperature, **self.extra,
        }  # fmt: skip
        return {key: item for key, item in value.items() if item is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer."""

    text: str
    finish_reason: str | None
    """`length`: it was cut at `max_tokens`; `refusal`: the model refused, in its own field of the answer."""
    cached: bool
    raw: Mapping[str, Any]
    """The whole JSON answer."""


def completion_tokens(reply: Reply) -> int:
    """Tokens of the answer as the server reports them; 0 when it does not."""
    usage = reply.raw.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


class BadReply(Exception):
    """A 200 whose body is not a chat answer; the text says what it is."""


def read_reply(body: bytes) -> dict[str, Any]:
    """Parse and check a body.

    Raises:
        BadReply: broken JSON (truncated, an HTML page), or JSON without a text in it.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except ValueError as error:
        raise BadReply(f"the answer is not JSON ({error}): {body[:80]!r}") from error
    if not isinstance(value, dict):
        raise BadReply(f"the answer is JSON, but no object: {body[:80]!r}")
    text_of(value)
    return value


def text_of(value: Mapping[str, Any]) -> tuple[str, str | None]:
    """(text, finish reason) of a parsed answer; of a refusal its words, and `refusal`.

    Raises:
        BadReply: there is no text in it.
    """
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(first, dict) or not isinstance(content, str):
        refusal = message.get("refusal") if isinstance(message, dict) else None
        if isinstance(refusal, str) and refusal:
            return refusal, "refusal"  # asking again would be refused, and paid, again
        raise BadReply("the answer holds no choices[0].message.content")
    reason = first.get("finish_reason")
    return content, reason if isinstance(reason, str) else None


def error_of(body: bytes) -> tuple[str, str | None]:
    """(message, code) of an error body; any text will do."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except ValueError:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    if isinstance(error, dict):
        message, code = error.get("message"), error.get("code") or error.get("type")
        if isinstance(message, str):
            return message[:300], code if isinstance(code, str) else None
    if isinstance(error, str):
        return error[:300], None
    return " ".join(body[:300].decode("utf-8", "replace").split()) or "no explanation", None
