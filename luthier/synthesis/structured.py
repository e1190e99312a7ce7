"""Answers that must be JSON of a known shape: asked for, checked, and what is wrong said in words for the model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from luthier.scoring.json_score import parse_json

__all__ = ["EVOLVED", "PAIRS", "PROMPTS", "SCORE", "Shape", "is_refusal", "read_shape"]

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
ResponseFormat = Literal["json_schema", "json_object", "none"]

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_REFUSALS = re.compile(
    r"\s*(?:I(?:['’]m| am) (?:very |so |really )?sorry\b.{0,40}\b(?:can(?:no|['’])t|unable|not able)\b"
    r"|(?:sorry|unfortunately|I apologi[sz]e)\b.{0,40}\bI\b.{0,20}\b(?:can(?:no|['’])t|unable|not able)\b"
    r"|I (?:can(?:no|['’])t|won['’]t|am unable to|am not able to) (?:help|assist|comply|provide|do that|answer|fulfil)"
    r"|As an AI(?: language)? model\b)",
    re.IGNORECASE,
)
_SHOWN = 160


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Pair(_Value):
    question: Text
    answer: Text
    quote: Text


class _Pairs(_Value):
    pairs: list[_Pair]


class _Prompts(_Value):
    prompts: list[Text]


class _Evolved(_Value):
    prompt: Text


class _Score(_Value):
    reason: str = ""
    score: float | int


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer must be."""

    name: str
    model: type[BaseModel]
    example: str
    """In one line, for the model."""

    def request_keys(self, how: ResponseFormat) -> dict[str, Any]:
        """Keys of the request body that ask the server for this shape."""
        if how == "none":
            return {}
        if how == "json_object":
            return {"response_format": {"type": "json_object"}}
        schema = {"name": self.name, "strict": True, "schema": _strict(self.model.model_json_schema())}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}


PAIRS = Shape("pairs", _Pairs, '{"pairs": [{"question": "...", "answer": "...", "quote": "..."}]}')
PROMPTS = Shape("prompts", _Prompts, '{"prompts": ["..."]}')
EVOLVED = Shape("evolved", _Evolved, '{"prompt": "..."}')
SCORE = Shape("score", _Score, '{"reason": "...", "score": NUMBER}')


def read_shape(text: str, shape: Shape) -> Any | str:
    """The value in an answer, or what is wrong with it, in words.

    Taken is a text that is JSON, a code fence that is, or what stands between the first `{` and the last `}`; no
    repeated keys, no further keys, the types of the shape.
    """
    bare = text.strip()
    fence = _FENCE.search(bare)
    inner = bare[bare.find("{") : bare.rfind("}") + 1]
    fault = "it is empty" if not bare else ""
    for candidate in dict.fromkeys([bare, fence[1] if fence else "", inner]):
        if not candidate:
            continue
        try:
            value = parse_json(candidate)
        except (ValueError, RecursionError) as error:
            fault = fault or f"it is not JSON ({error}): {bare[:_SHOWN]!r}"
            continue
        try:
            found = shape.model.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the value"
            return (
                f"{where}: {first['msg']} (got {json.dumps(first['input'], ensure_ascii=False, default=str)[:_SHOWN]})"
            )
        if isinstance(found, _Score) and not math.isfinite(found.score):
            return "score: not a finite number"
        return found
    return fault


def is_refusal(text: str, finish_reason: str | None) -> bool:
    """Whether an answer refuses: the server says so, or it begins as refusals do (English)."""
    return finish_reason in {"refusal", "content_filter"} or _REFUSALS.match(text) is not None


def _strict(schema: Any) -> Any:
    """As OpenAI's strict mode wants it: every property required, no defaults, no titles, no further properties."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _strict(item)
        for key, item in schema.items()
        if key not in {"default", "minLength"} and not (key == "title" and isinstance(item, str))
    }
    if kept.get("type") == "object":
        kept |= {"required": list(kept.get("properties", {})), "additionalProperties": False}
    return kept
