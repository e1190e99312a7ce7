"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.data.messages import Findings, Path, read_messages, read_tools
from luthier.runtime.errors import LuthierError
from luthier.serve.engine.grammar import Grammar, json_grammar
from luthier.serve.engine.request import Piece
from luthier.serve.host import Served
from luthier.serve.http.asking import Answers, Service, failure, sampling_of, unless_gone, usage
from luthier.serve.http.errors import from_luthier, invalid, unsupported
from luthier.serve.http.logprobs import chat_logprobs
from luthier.serve.http.schema import ChatBody, read_body
from luthier.serve.http.sse import EventStream
from luthier.serve.http.tools import ToolFormat, ToolReader, tool_format

__all__ = ["ChatRoute"]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Messages as the model reads them."""

    ids: list[int]
    tools: ToolFormat | None
    """How calls look in the answer; None when no tools are offered."""


class ChatRoute:
    """The route; called with a request."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, http: Request) -> Response:
        """Answer a conversation."""
        body = await read_body(http, ChatBody)
        served = self.service.model(body.model)
        limit = _limit(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`")
        choices = body.n or 1
        if choices > self.service.settings.max_choices:
            raise invalid("n", f"`n`: at most {self.service.settings.max_choices} answers a request on this server")
        prompt = await asyncio.to_thread(_render, served, body)
        new = self.service.room(served, prompt.ids, limit, param="messages")
        grammar = await asyncio.to_thread(_grammar, served, body)
        answers = Answers(self.service, served)
        for choice in range(choices):
            logprobs = (body.top_logprobs or 0) if body.logprobs else None
            sampling = sampling_of(body, served, logprobs=logprobs, choice=choice)
            state = None if grammar is None else await asyncio.to_thread(grammar.start)
            answers.add(prompt.ids, max_new_tokens=new, sampling=sampling, stop=body.stop, grammar=state)
        answers.submit()
        reply = _Reply(body, served, prompt, answers)
        if body.stream:
            return EventStream(reply.events(), answers.cancel)
        try:
            return JSONResponse(reply.whole(await unless_gone(http, answers.whole())))
        finally:
            answers.cancel()


def _limit(body: ChatBody) -> int | None:
    """`max_completion_tokens`, or its older name."""
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise invalid("max_tokens", "`max_tokens` and `max_completion_tokens` say different things: keep one")
    return given.pop() if given else None


def _render(served: Served, body: ChatBody) -> _Prompt:
    """Messages and tools through the same checks and the same template as rows of training."""
    findings = Findings()
    found = read_messages(body.messages, ("messages",), findings)
    tools = None if body.tools is None else read_tools(body.tools, ("tools",), findings)
    if findings.faults:
        path, message, _ = findings.faults[0]
        raise invalid(_dotted(path), f"`{_dotted(path)}`: {message}")
    if not found.messages:
        raise invalid("messages", "`messages` is empty")
    offered = _offered(tools, body.tool_choice)
    try:
        with served.lock:
            ids = served.template.prompt_ids(found.messages, offered)
            if not offered:
                return _Prompt(ids, None)
            text = served.template.render(found.messages, offered, add_generation_prompt=True)
            source = served.template.source(offered)
    except LuthierError as error:
        raise from_luthier(error, param="messages") from error
    names = [tool["function"]["name"] for tool in offered]
    if not all(name in text for name in names):
        raise unsupported("tools", f"cannot be used: the chat template of {served.name} does not show them")
    return _Prompt(ids, tool_format(source, served.template.encoder.control))


def _offered(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> list[Mapping[str, Any]] | None:
    """The tools to show, checked."""
    for index, tool in enumerate(tools or ()):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise invalid(f"tools[{index}]", f'`tools[{index}]` must be {{"type": "function", "function": {{...}}}}')
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"tools[{index}].function.name", f"`tools[{index}].function.name` must be a text")
    if choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", "can be auto or none on this server: a call cannot be forced")
    if choice is not None and not tools:
        raise invalid("tool_choice", "`tool_choice` needs `tools`")
    return None if not tools or choice == "none" else list(tools)


def _grammar(served: Served, body: ChatBody) -> Grammar | None:
    """What `response_format` asks for."""
    asked = body.response_format
    if asked is None or asked == {"type": "text"}:
        return None
    if not isinstance(asked, dict) or asked.get("type") not in ("json_object", "json_schema"):
        raise invalid("response_format", "`response_format.type` is text, json_object or json_schema")
    schema = None
    if asked["type"] == "json_schema":
        named = asked.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise invalid("response_format", "`response_format.json_schema.schema` must be a JSON schema")
    if body.tools:
        raise unsupported("response_format", "cannot be combined with `tools` on this server")
    try:
        with served.lock:
            return json_grammar(served.tokenizer, schema, served.stop_ids)
    except LuthierError as error:
        raise from_luthier(error, param="response_format") from error


def _dotted(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


class _Reply:
    """Pieces as OpenAI's objects."""

    def __init__(self, body: ChatBody, served: Served, prompt: _Prompt, answers: Answers) -> None:
        self.body, self.served, self.prompt, self.answers = body, served, prompt, answers
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}

    def whole(self, found: list[list[Piece]]) -> dict[str, Any]:
        """`chat.completion`."""
        choices = []
        for index, pieces in enumerate(found):
            reader = ToolReader(self.prompt.tools or "unknown")
            shown, calls = reader.push("".join(piece.text for piece in pieces))
            more, late = reader.finish()
            calls += late
            message: dict[str, Any] = {"role": "assistant", "content": (shown + more) or (None if calls else ""),
                                       "refusal": None}  # fmt: skip
            if calls:
                message["tool_calls"] = [call.as_dict() for call in calls]
            choice = {
                "index": index, "message": message, "logprobs": chat_logprobs(self.served, pieces, self.body.logprobs),
                "finish_reason": "tool_calls" if calls else pieces[-1].finish,
            }  # fmt: skip
            if self.body.return_token_ids:
                choice["token_ids"] = [token for piece in pieces for token in piece.ids]
            choices.append(choice)
        told = {**self.head, "object": "chat.completion", "choices": choices, "usage": usage(self.answers)}
        if self.body.return_token_ids:
            told["prompt_token_ids"] = self.prompt.ids
        return told

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk`s."""
        readers = [ToolReader(self.prompt.tools or "unknown") for _ in self.answers.requests]
        for index in range(len(readers)):
            first = self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
            if self.body.return_token_ids:
                first["prompt_token_ids"] = self.prompt.ids
            yield first
        held: list[list[Piece]] = [[] for _ in readers]
        async for index, piece in self.answers.pieces():
            if problem := failure(piece):
                raise problem
            reader = readers[index]
            before = reader.calls
            shown, calls = reader.push(piece.text)
            if piece.finish is not None:
                more, late = reader.finish()
                shown, calls = shown + more, calls + late
            held[index].append(piece)
            if not shown and not calls and piece.finish is None:
                continue
            delta: dict[str, Any] = {"content": shown} if shown else {}
            if calls:
                delta["tool_calls"] = [{"index": before + at, **call.as_dict()} for at, call in enumerate(calls)]
            yield self._chunk(index, delta, held[index])
            if piece.finish is not None:
                yield self._chunk(index, {}, finish="tool_calls" if reader.calls else piece.finish)
            held[index] = []
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage(self.answers)}

    def _chunk(
        self, index: int, delta: dict[str, Any], pieces: Sequence[Piece] = (), *, finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = chat_logprobs(self.served, pieces, self.body.logprobs) if pieces else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if self.body.return_token_ids:
            choice["token_ids"] = [token for piece in pieces for token in piece.ids]
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            chunk["usage"] = None
        return chunk
