"""One chat message of a row: checked, with its loss control taken out. Nothing is coerced.

Loss control a message may carry (removed from the dict before a template sees it):
  `weight`        a number >= 0 (OpenAI: 0 or 1); `null` means none
  `train`, `training`  true or false (Axolotl): weight 1 or 0
  `spans`         [{"start", "end", "weight"}], half-open character ranges of `content`
  `train_detail`  [{"begin_offset", "end_offset", "train"}] (Axolotl): `end_offset` is the last character
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from luthier.data.rows import MAX_MESSAGES, show_value
from luthier.data.strict_json import JsonError, parse

__all__ = ["ROLES", "Findings", "Messages", "Path", "is_blank", "is_weight", "read_messages", "read_tools"]

Path = tuple[str | int, ...]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_LOSS_KEYS = ("weight", "train", "training", "spans", "train_detail")
_TEXT_OR_NULL = ("reasoning_content", "reasoning", "thinking", "refusal")


@dataclass(slots=True)
class Findings:
    """What is wrong with one row: (path, message, code), and the first reason to find nothing to train on in it."""

    faults: list[tuple[Path, str, str]] = field(default_factory=list)
    empty: tuple[Path, str] | None = None
    equal: str | None = None
    """Why a pair has no better answer: both are the same."""

    def add(self, path: Path, message: str, *, code: str = "D207") -> None:
        """Record a fault at a path such as `("messages", 1, "content")`."""
        self.faults.append((path, message, code))

    def wrong(self, path: Path, expected: str, got: Any) -> None:
        """Record a value of the wrong type."""
        self.add(path, f"expected {expected}, got {show_value(got)}")

    def nothing_to_train(self, path: Path, message: str) -> None:
        """Record why the row has nothing to train on; the first reason stands."""
        self.empty = self.empty or (path, message)


@dataclass(slots=True)
class Messages:
    """Messages without their loss control, which stands beside them."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    weights: list[float | None] = field(default_factory=list)
    spans: dict[int, tuple[tuple[int, int, float], ...]] = field(default_factory=dict)

    def prepend_system(self, text: str) -> None:
        """Put a system message in front."""
        self.messages.insert(0, {"role": "system", "content": text})
        self.weights.insert(0, None)
        self.spans = {index + 1: spans for index, spans in self.spans.items()}

    def extend(self, other: Messages) -> None:
        """Append the messages of another list."""
        offset = len(self.messages)
        self.messages += other.messages
        self.weights += other.weights
        self.spans.update({index + offset: spans for index, spans in other.spans.items()})

    def has_system(self) -> bool:
        """Whether a system (or developer) message is there."""
        return any(message["role"] in {"system", "developer"} for message in self.messages)


def read_messages(value: Any, path: Path, findings: Findings) -> Messages:
    """Check a list of OpenAI messages; faults go to `findings`, the good messages are returned."""
    result = Messages()
    if not isinstance(value, list):
        findings.wrong(path, "a list of messages", value)
        return result
    if len(value) > MAX_MESSAGES:
        findings.add(path, f"{len(value):,} messages; the limit is {MAX_MESSAGES:,}", code="D204")
        return result
    for index, message in enumerate(value):
        at = (*path, index)
        if not isinstance(message, dict):
            findings.wrong(at, "an object with role and content", message)
            continue
        _check_message(message, at, findings)
        kept = {key: item for key, item in message.items() if key not in _LOSS_KEYS}
        spans = _spans(message, at, findings)
        if spans:
            result.spans[len(result.messages)] = spans
        result.messages.append(kept)
        result.weights.append(_weight(message, at, findings))
    return result


def _check_message(message: Mapping[str, Any], at: Path, findings: Findings) -> None:
    role = message.get("role")
    if "role" not in message:
        listed = ", ".join(message) or "none"
        hint = "; `from` and `value` belong to `format: sharegpt`" if "from" in message else ""
        findings.add(at, f"no `role`; its keys are: {listed}{hint}")
    elif not isinstance(role, str):
        findings.wrong((*at, "role"), "string", role)
    elif role not in ROLES:
        findings.add((*at, "role"), f"unknown role {show_value(role)}; roles are: {', '.join(ROLES)}", code="D208")
    _check_content(message, at, findings)
    if message.get("tool_calls") is not None:
        if role in ROLES and role != "assistant":
            findings.add((*at, "tool_calls"), f"only assistant messages call tools, this one is by {role}")
        _check_tool_calls(message["tool_calls"], (*at, "tool_calls"), findings)
    if message.get("function_call") is not None:
        _check_function(message["function_call"], (*at, "function_call"), findings)
    for key in ("name", "tool_call_id", *_TEXT_OR_NULL):
        if message.get(key) is not None and not isinstance(message[key], str):
            findings.wrong((*at, key), "string", message[key])


def _check_content(message: Mapping[str, Any], at: Path, findings: Findings) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, (*at, "content", index), findings)
    elif content is not None:
        findings.wrong((*at, "content"), "string", content)
    elif message.get("role") == "assistant" and _says_something_else(message):
        return
    elif "content" in message:
        findings.add((*at, "content"), "expected string, got null (null is for assistant messages with tool_calls)")
    else:
        findings.add(at, f"no `content`; its keys are: {', '.join(message) or 'none'}")


def _check_part(part: Any, at: Path, findings: Findings) -> None:
    if not isinstance(part, dict):
        findings.wrong(at, "an object {type: text, text: ...}", part)
    elif part.get("type") != "text":
        got = show_value(part.get("type"))
        findings.add((*at, "type") if "type" in part else at, f'expected "text", got {got} (only text is trained)')
    elif not isinstance(part.get("text"), str):
        findings.wrong((*at, "text"), "string", part.get("text"))


def _check_tool_calls(calls: Any, at: Path, findings: Findings) -> None:
    if not isinstance(calls, list):
        findings.wrong(at, "a list of tool calls", calls)
        return
    for index, call in enumerate(calls):
        here = (*at, index)
        if not isinstance(call, dict):
            findings.wrong(here, "an object", call)
            continue
        if call.get("id") is not None and not isinstance(call["id"], str):
            findings.wrong((*here, "id"), "string", call["id"])
        if call.get("type", "function") != "function":
            findings.add((*here, "type"), f'expected "function", got {show_value(call["type"])}')
        if "function" in call:
            _check_function(call["function"], (*here, "function"), findings)
        else:
            _check_function(call, here, findings)


def _check_function(function: Any, at: Path, findings: Findings) -> None:
    if not isinstance(function, dict):
        findings.wrong(at, "an object with name and arguments", function)
        return
    if not isinstance(function.get("name"), str) or not function["name"]:
        findings.wrong((*at, "name"), "the name of a function", function.get("name"))
    if not isinstance(function.get("arguments", {}), (str, dict)):
        findings.wrong((*at, "arguments"), "a JSON string or an object", function["arguments"])


def _says_something_else(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def is_blank(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message says nothing: white space only, no tool call, no reasoning."""
    if _says_something_else(message):
        return False
    content = message.get("content")
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    texts += [message.get(key) for key in _TEXT_OR_NULL]
    return not any(isinstance(text, str) and text.strip() for text in texts)


def is_weight(value: Any) -> bool:
    """Whether a value is a loss weight: a finite number >= 0, and not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)


def _weight(message: Mapping[str, Any], at: Path, findings: Findings) -> float | None:
    given = [key for key in ("weight", "train", "training") if message.get(key) is not None]
    if len(given) > 1:
        findings.add(at, f"{' and '.join(f'`{key}`' for key in given)} say the same thing: keep one")
        return None
    if not given:
        return None
    key, value = given[0], message[given[0]]
    if key == "weight":
        if is_weight(value):
            return float(value)
        findings.wrong((*at, key), "a number >= 0", value)
    elif isinstance(value, bool):
        return float(value)
    else:
        findings.wrong((*at, key), "true or false", value)
    return None


def _spans(message: Mapping[str, Any], at: Path, findings: Findings) -> tuple[tuple[int, int, float], ...]:
    given = [key for key in ("spans", "train_detail") if message.get(key) is not None]
    if len(given) > 1:
        findings.add(at, "`spans` and `train_detail` say the same thing: keep one")
    if len(given) != 1:
        return ()
    key, items, content = given[0], message[given[0]], message.get("content")
    if not isinstance(items, list):
        findings.wrong((*at, key), "a list of ranges", items)
        return ()
    if not isinstance(content, str):
        findings.add((*at, key), "ranges need `content` to be one string")
        return ()
    spans = []
    for index, item in enumerate(items):
        span = _span(item, (*at, key, index), findings, inclusive=key == "train_detail")
        if span is None:
            continue
        if span[1] > len(content):
            findings.add((*at, key, index), f"range ends at {span[1]}, but `content` has {len(content)} characters")
        spans.append(span)
    spans.sort()
    for left, right in pairwise(spans):
        if right[0] < left[1]:
            findings.add((*at, key), f"ranges {left[0]}..{left[1]} and {right[0]}..{right[1]} overlap")
    return tuple(spans)


def _span(item: Any, at: Path, findings: Findings, *, inclusive: bool) -> tuple[int, int, float] | None:
    names = ("begin_offset", "end_offset", "train") if inclusive else ("start", "end", "weight")
    if not isinstance(item, dict) or set(item) != set(names):
        findings.wrong(at, f"an object with {', '.join(names)}", sorted(item) if isinstance(item, dict) else item)
        return None
    start, end, weight = (item[name] for name in names)
    for name, number in zip(names[:2], (start, end), strict=True):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            findings.wrong((*at, name), "a whole number >= 0", number)
            return None
    if inclusive:
        end += 1
        if not isinstance(weight, bool):
            findings.wrong((*at, "train"), "true or false", weight)
            return None
    elif not is_weight(weight):
        findings.wrong((*at, "weight"), "a number >= 0", weight)
        return None
    if end <= start:
        findings.add(at, f"range {start}..{end} is empty")
        return None
    return start, end, float(weight)


def read_tools(value: Any, path: Path, findings: Findings) -> Sequence[Mapping[str, Any]] | None:
    """Check a list of tool definitions; a JSON string of such a list is read (LLaMA-Factory, parquet files)."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = parse(value)
        except JsonError as fault:
            findings.add(path, f"a string that is no JSON list: {fault.message}")
            return None
    if not isinstance(value, list):
        findings.wrong(path, "a list of tool definitions", value)
        return None
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            findings.wrong((*path, index), "an object", tool)
    return value
