"""`POST /v1/completions`: a text, or token ids, to go on with."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.serve.engine.request import Piece
from luthier.serve.host import Served
from luthier.serve.http.asking import Answers, Service, failure, sampling_of, unless_gone, usage
from luthier.serve.http.errors import invalid, unsupported
from luthier.serve.http.logprobs import completion_logprobs
from luthier.serve.http.schema import CompletionBody, read_body
from luthier.serve.http.sse import EventStream

__all__ = ["CompletionRoute"]

# OpenAI's default.
DEFAULT_TOKENS = 16


class CompletionRoute:
    """The route; called with a request."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, http: Request) -> Response:
        """Continue one or more prompts."""
        body = await read_body(http, CompletionBody)
        served = self.service.model(body.model)
        n = body.n or 1
        if body.best_of not in (None, n):
            raise unsupported("best_of", "must equal `n` on this server")
        prompts = await asyncio.to_thread(_prompts, served, body.prompt)
        if len(prompts) * n > self.service.settings.max_choices:
            limit = self.service.settings.max_choices
            raise invalid("n" if n > limit else "prompt", f"at most {limit} answers (prompts times `n`) a request")
        answers = Answers(self.service, served)
        for prompt in prompts:
            new = self.service.room(served, prompt, body.max_tokens or DEFAULT_TOKENS, param="prompt")
            for choice in range(n):
                sampling = sampling_of(body, served, logprobs=body.logprobs, choice=choice)
                answers.add(prompt, max_new_tokens=new, sampling=sampling, stop=body.stop)
        answers.submit()
        reply = _Reply(body, served, prompts, answers)
        if body.stream:
            return EventStream(reply.events(), answers.cancel)
        try:
            return JSONResponse(reply.whole(await unless_gone(http, answers.whole())))
        finally:
            answers.cancel()


def _prompts(served: Served, value: Any) -> list[list[int]]:
    """Token ids of every prompt: a text, ids, or a list of either."""
    kinds = "a text, a list of token ids, or a list of either"
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(item) is int for item in value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise invalid("prompt", f"`prompt` must be {kinds}")
    found = []
    for item in value:
        if isinstance(item, str):
            found.append(_encode(served, item))
        elif isinstance(item, list) and all(type(token) is int for token in item):
            found.append(_checked(served, item))
        else:
            raise invalid("prompt", f"`prompt` must be {kinds}")
    return found


def _encode(served: Served, text: str) -> list[int]:
    """As rows of text are encoded for training: the tokenizer's own beginning, control tokens as `control_tokens` says.

    Unless they are allowed, control tokens in the text are plain text; token ids can spell them.
    """
    encoder = served.template.encoder
    with served.lock:
        spelled = [match.span() for match in encoder.control_pattern.finditer(text)]
        kind = served.template.control_tokens
        if spelled and kind == "error":
            raise invalid("prompt", "the prompt contains a control token, which this model was trained without")
        own = kind == "allow" and bool(spelled) and text.startswith(served.tokenizer.bos_token or "\0")
        prefix = [] if own else encoder.default_prefix
        return [*prefix, *encoder.encode(text, spelled if kind == "text" else ()).ids]


def _checked(served: Served, ids: list[int]) -> list[int]:
    size = served.engine.model.get_input_embeddings().weight.shape[0]
    bad = next((token for token in ids if not 0 <= token < size), None)
    if bad is not None:
        raise invalid("prompt", f"`prompt`: token ids go from 0 to {size - 1}, not {bad}")
    return ids


class _Reply:
    """Pieces as OpenAI's objects."""

    def __init__(self, body: CompletionBody, served: Served, prompts: list[list[int]], answers: Answers) -> None:
        self.body, self.served, self.prompts, self.answers = body, served, prompts, answers
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
            "model": served.name,
        }  # fmt: skip

    def whole(self, found: list[list[Piece]]) -> dict[str, Any]:
        """`text_completion`."""
        choices = [self._choice(index, pieces, pieces[-1].finish) for index, pieces in enumerate(found)]
        each = len(found) // len(self.prompts)
        if self.body.return_token_ids:
            for index, choice in enumerate(choices):
                choice["prompt_token_ids"] = self.prompts[index // each]
        return {**self.head, "choices": choices, "usage": usage(self.answers, prompts=len(self.prompts))}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The same objects with the text that is new."""
        offsets = [0] * len(self.answers.requests)
        held: list[list[Piece]] = [[] for _ in offsets]
        counted = self.body.stream_options is not None and self.body.stream_options.include_usage
        async for index, piece in self.answers.pieces():
            if problem := failure(piece):
                raise problem
            held[index].append(piece)
            if piece.text or piece.finish is not None:
                choice = self._choice(index, held[index], piece.finish, offset=offsets[index])
                offsets[index] += len(choice["text"])
                held[index] = []
                yield {**self.head, "choices": [choice], **({"usage": None} if counted else {})}
        if counted:
            yield {**self.head, "choices": [], "usage": usage(self.answers, prompts=len(self.prompts))}

    def _choice(self, index: int, pieces: Sequence[Piece], finish: str | None, *, offset: int = 0) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": completion_logprobs(self.served, pieces, self.body.logprobs, offset=offset),
            "finish_reason": finish,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = [token for piece in pieces for token in piece.ids]
        return choice
