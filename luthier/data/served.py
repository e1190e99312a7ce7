"""A message as servers hand it to the chat template.

OpenAI's API has the arguments of a tool call as a JSON text. vLLM (`chat_utils`, `_postprocess_messages`) and SGLang
(`serving_chat`) parse it before they render, because templates write the arguments as JSON: of a text, most of them
would make a quoted text of a text. A model trained on that would answer with calls that no parser reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.strict_json import JsonError, parse

__all__ = ["as_served"]


def as_served(message: dict[str, Any]) -> dict[str, Any]:
    """The message, with arguments of tool calls that are the JSON text of an object as that object.

    An empty text is an object without keys. Any other text stays as it is.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call(call) for call in calls]}


def _call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _function(call["function"])}
    return _function(call)


def _function(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        value = parse(arguments) if arguments.strip() else {}
    except JsonError:
        return function
    return {**function, "arguments": value} if isinstance(value, dict) else function
