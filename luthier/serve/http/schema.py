"""Bodies of requests: every field known, every other one refused by name."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from luthier.data.strict_json import JsonError, parse
from luthier.serve.http.errors import ApiError, invalid, unsupported

__all__ = ["ChatBody", "CompletionBody", "LoadBody", "StreamOptions", "read_body", "read_object"]

LONG_BODY = 64 << 10
KEPT = "luthier.object"
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1_000


def _stops(value: Any) -> list[str]:
    """`stop` as a list."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be a text or a list of texts, none of them empty")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS:,} characters")
    return stops


def _biases(value: Any) -> dict[int, float]:
    """`logit_bias` with its keys as numbers."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object from token ids to numbers")
    found = {}
    for key, bias in value.items():
        if not key.isdigit() or isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError("must map token ids to numbers from -100 to 100")
        found[int(key)] = float(bias)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be finite")
    return value


Number = Annotated[float, BeforeValidator(_finite)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _Asking(_Body):
    """What chat and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_biases)] = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_stops)] = Field(default_factory=list)
    return_token_ids: bool | None = None
    """As vLLM's: tell the ids of the prompt and of the answers."""
    # They change no answer, here as at OpenAI.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(_Asking):
    """`POST /v1/chat/completions`."""

    messages: Any
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionBody(_Asking):
    """`POST /v1/completions`."""

    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: int | None = None
    suffix: None = None


class LoadBody(_Body):
    """`POST /admin/models`."""

    path: str
    name: str | None = None


B = TypeVar("B", bound=BaseModel)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that is the body of a request; read once, however often it is asked for.

    Raises:
        ApiError: 400.
    """
    if KEPT not in request.scope:
        data = await request.body()
        # A long one would hold up everybody else's streams.
        request.scope[KEPT] = await asyncio.to_thread(_parsed, data) if len(data) > LONG_BODY else _parsed(data)
    found: dict[str, Any] = request.scope[KEPT]
    return found


async def read_body(request: Request, kind: type[B]) -> B:
    """The JSON body of a request, checked.

    Raises:
        ApiError: 400 that names the field.
    """
    value = await read_object(request)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error) from error


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise invalid(None, "the body is not UTF-8", code="invalid_json") from error
    except JsonError as error:
        raise invalid(None, f"the body is not JSON: {error.message}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise invalid(None, "the body must be a JSON object", code="invalid_json")
    return value


def _first_problem(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return unsupported(param)
    if first["type"] == "missing":
        return invalid(param, f"`{param}` is missing", code="missing_required_parameter")
    if first["type"] in ("literal_error", "none_required"):
        return unsupported(param, f"cannot be {str(first['input'])[:80]!r} on this server")
    message = first["msg"].removeprefix("Value error, ")
    return invalid(param, f"`{param}`: {message[:1].lower()}{message[1:]}")
