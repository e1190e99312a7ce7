"""JSON as the standard says, and nothing else.

Python's parser is used for speed, with its leniencies closed: repeated keys (it keeps the last), NaN and
Infinity, numbers beyond a double, lone surrogates, NUL characters, and nesting without bounds are
faults. A slow second pass runs only on a text that has one, to tell where it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from luthier.data.rows import MAX_DEPTH, MAX_KEYS

__all__ = ["JsonError", "locate", "parse", "parse_at", "skip_space", "value_end"]

_MAX_DIGITS = 400
"""Longest integer. Beyond about 309 digits no double holds it, and Python's conversion is quadratic."""
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")
_LONE = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..")
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"')
_SCALAR = re.compile(r"[^\s\[\]{},:\"]+")


class JsonError(ValueError):
    """What is wrong with a JSON text, and the 0-based character at which it shows."""

    def __init__(self, code: str, message: str, offset: int) -> None:
        super().__init__(message)
        self.code, self.message, self.offset = code, message, offset


class _SuspectError(Exception):
    """A hook met something forbidden; the position is found by `_find_fault`."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs) or len(value) > MAX_KEYS:
        raise _SuspectError
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _SuspectError
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _SuspectError
    return int(text)


def _constant(text: str) -> NoReturn:
    raise _SuspectError


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant)
# Only finds where a value ends: numbers are not converted, objects not built.
_LENIENT = json.JSONDecoder(
    object_pairs_hook=lambda pairs: None, parse_float=len, parse_int=len, parse_constant=lambda text: None
)


def parse(text: str) -> Any:
    """Parse one whole JSON text.

    Raises:
        JsonError: not JSON, something after the value, or one of the faults named at the top.
    """
    value, end = parse_at(text, skip_space(text, 0))
    end = skip_space(text, end)
    if end != len(text):
        raise JsonError("D202", "something follows the end of the JSON value", end)
    return value


def parse_at(text: str, start: int) -> tuple[Any, int]:
    """Parse the JSON value that begins at `start`; returns it and the offset after it.

    Raises:
        JsonError: as `parse`; `offset` counts from the beginning of `text`.
    """
    try:
        value, end = _STRICT.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError("D202", _plain(error.msg), error.pos) from error
    except StopIteration as error:
        raise JsonError("D202", "invalid JSON: expected a value", start) from error
    except (_SuspectError, RecursionError) as error:
        raise _find_fault(text, start) from error
    piece_is_whole = start == 0 and end == len(text)
    piece = text if piece_is_whole else text[start:end]
    if piece.count("[") + piece.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _find_fault(text, start)
    if "\\u0000" in piece and _NUL.search(piece):
        raise _find_fault(text, start)
    if "\\u" in piece and _SURROGATE.search(piece) and not _encodable(value):
        raise _find_fault(text, start)
    return value, end


def value_end(text: str, start: int) -> int | None:
    """Offset after the value at `start`, be it strict or not; None if it cannot be told."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except (ValueError, StopIteration, RecursionError):
        return None


def skip_space(text: str, start: int) -> int:
    """Offset of the next character that is not JSON white space."""
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _plain(message: str) -> str:
    return "invalid JSON: " + message[:1].lower() + message[1:]


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if isinstance(node, (dict, list)):
            deepest = max(deepest, depth)
            stack.extend((child, depth + 1) for child in (node.values() if isinstance(node, dict) else node))
    return deepest


def _find_fault(text: str, start: int) -> JsonError:
    """First fault at or after `start`, told from the tokens alone (no recursion, no values built)."""
    open_objects: list[set[str] | None] = []
    position, key_expected = start, False
    while (position := skip_space(text, position)) < len(text):
        character = text[position]
        if character in "{[":
            open_objects.append(set() if character == "{" else None)
            key_expected = character == "{"
            if len(open_objects) > MAX_DEPTH:
                return JsonError("D204", f"nested deeper than {MAX_DEPTH} levels", position)
            position += 1
        elif character in "}]":
            if open_objects:
                open_objects.pop()
            position += 1
        elif character in ",:":
            key_expected = character == "," and bool(open_objects) and open_objects[-1] is not None
            position += 1
        elif match := _STRING.match(text, position):
            fault = _string_fault(match.group(), position, open_objects[-1] if key_expected and open_objects else None)
            if fault:
                return fault
            position, key_expected = match.end(), False
        elif match := _SCALAR.match(text, position):
            if fault := _scalar_fault(match.group(), position):
                return fault
            position = match.end()
        else:
            break
        if not open_objects:
            break
    return JsonError("D202", "invalid JSON", min(position, max(0, len(text) - 1)))


def _string_fault(token: str, position: int, keys: set[str] | None) -> JsonError | None:
    if match := _NUL.search(token):
        return JsonError("D203", "NUL character (\\u0000) in a string", position + match.end() - len("\\u0000"))
    try:
        content = json.loads(token)
    except json.JSONDecodeError as error:
        return JsonError("D202", _plain(error.msg), position + error.pos)
    if not _encodable(content):
        match = _LONE.search(token)
        start = match.start() if match else 0
        return JsonError("D203", "lone surrogate (half a character) in a string", position + start)
    if keys is not None:
        if content in keys:
            return JsonError("D203", f"key {token[:60]} stands twice in one object", position)
        keys.add(content)
        if len(keys) > MAX_KEYS:
            return JsonError("D204", f"more than {MAX_KEYS:,} keys in one object", position)
    return None


def _scalar_fault(token: str, position: int) -> JsonError | None:
    if token in {"NaN", "Infinity", "-Infinity"}:
        return JsonError("D203", f"{token} is not JSON", position)
    if token in {"true", "false", "null"}:
        return None
    if len(token) > _MAX_DIGITS:
        return JsonError("D204", f"number of {len(token):,} characters; the limit is {_MAX_DIGITS}", position)
    try:
        if not math.isfinite(float(token)):
            return JsonError("D203", f"number {token[:60]} does not fit into a double", position)
    except ValueError:
        return JsonError("D202", f"invalid JSON: {token[:60]!r} is not a value", position)
    return None


def locate(text: str, path: Sequence[str | int]) -> int | None:
    """0-based offset of the value at `path` in a valid JSON text; None if the path leads nowhere.

    The longest part of the path that exists is taken: for a missing key, the object that lacks it.
    """
    position = skip_space(text, 0)
    for step in path:
        found = _child(text, position, step)
        if found is None:
            break
        position = found
    return position if position < len(text) else None


def _child(text: str, position: int, step: str | int) -> int | None:
    is_object = text[position] == "{"
    if text[position] not in "{[" or is_object != isinstance(step, str):
        return None
    position, index = skip_space(text, position + 1), 0
    while position < len(text) and text[position] not in "}]":
        name: str | int = index
        if is_object:
            name, position = json.JSONDecoder().raw_decode(text, position)
            position = skip_space(text, skip_space(text, position) + 1)
        if name == step:
            return position
        end = value_end(text, position)
        if end is None:
            return None
        position, index = skip_space(text, end), index + 1
        if position < len(text) and text[position] == ",":
            position = skip_space(text, position + 1)
    return None
