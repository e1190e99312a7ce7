"""A model behind an OpenAI-compatible server, to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest
from luthier.endpoint.settings import EndpointSettings

__all__ = ["RemoteTalker"]


class RemoteTalker:
    """Like `talk.Talker`, but the model runs elsewhere, and an answer comes whole.

    Args:
        base_url: Of the server, up to and with `/v1`.
        model: Its name there.
        api_key_env: Variable that holds the key; None: none is sent.
        system: First message of the conversation.
        max_new_tokens: Longest answer.
        temperature: 0 for greedy.

    Raises:
        RecipeError: settings that cannot be right.
        AccessError: the variable is not set.
    """

    def __init__(
        self, base_url: str, model: str, *, api_key_env: str | None, system: str | None, max_new_tokens: int,
        temperature: float,
    ) -> None:  # fmt: skip
        settings = EndpointSettings(base_url=base_url, model=model, api_key_env=api_key_env, max_retries=2)
        self.name = model
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._endpoint = Endpoint(settings)

    def say(self, text: str) -> Iterator[str]:
        """Add a user turn and yield the answer.

        Raises:
            AccessError, RecipeError, RunFailed: as `Endpoint.chat`.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        reply = self._endpoint.chat(
            ChatRequest(messages=asked, max_tokens=self.max_new_tokens, temperature=self.temperature)
        )
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]
        yield reply.text
