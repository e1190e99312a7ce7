"""JSON Lines and JSON files: strict, every bad row found in one pass, values exactly as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from luthier.data.files import DataFile
from luthier.data.rows import MAX_LINE_BYTES, Row, row_problem, show_value
from luthier.data.streams import open_bytes, split_lines
from luthier.data.strict_json import JsonError, parse, parse_at, skip_space, value_end
from luthier.data.types import RowRef
from luthier.runtime.errors import Problem

__all__ = ["MAX_JSON_CHARACTERS", "read_json", "read_jsonl"]

MAX_JSON_CHARACTERS = 2 * 2**30
"""Largest `.json` file: it is held in memory as a whole. JSON Lines has no such limit."""


def read_jsonl(file: DataFile, *, source: int, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Yield one row, or what is wrong with it, for each line that is not blank.

    Counts blank lines in `notes`.
    """
    with open_bytes(file.path, file.shown) as stream:
        for ref, line in split_lines(stream, file=file.shown, source=source, notes=notes):
            if isinstance(line, Problem):
                yield line
            elif not line.strip(" \t\r"):
                notes["blank lines skipped"] += 1
            else:
                yield _row(line, ref)


def _row(line: str, ref: RowRef) -> Row | Problem:
    try:
        value = parse(line)
    except JsonError as fault:
        return _fault_problem(fault, line, ref, offset=fault.offset)
    if isinstance(value, dict):
        return Row(value=value, ref=ref, text=line)
    hint = "a JSON list belongs into a `.json` file" if isinstance(value, list) else None
    return row_problem(
        "D207", f"expected one object a line, got {show_value(value)}", ref, text=line, column=1, hint=hint
    )


def _fault_problem(fault: JsonError, line: str, ref: RowRef, *, offset: int) -> Problem:
    hint = None
    if line.strip() in {"[", "{", "[{"}:
        hint = "a JSON document over several lines belongs into a `.json` file"
    elif fault.code == "D202" and (offset >= len(line.rstrip()) or "unterminated" in fault.message):
        hint = "the line ends too early: is the file cut off?"
    return row_problem(fault.code, fault.message, ref, text=line.rstrip("\r"), column=offset + 1, hint=hint)


def read_json(file: DataFile, *, source: int, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Yield the rows of a `.json` file: a list of objects, `{"data": [...]}`, or JSON Lines under this name."""
    text = _whole_text(file, source, notes)
    if isinstance(text, Problem):
        yield text
        return
    ref = RowRef(file.shown, 1, source)
    start = skip_space(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _list_rows(text, start, file=file.shown, source=source)
        return
    end = value_end(text, start) if text[start] == "{" else None
    if end is not None and text[skip_space(text, end) : skip_space(text, end) + 1] == "{":
        notes["`.json` file read as JSON Lines"] += 1
        del text
        yield from read_jsonl(file, source=source, notes=notes)
        return
    yield from _data_rows(text, start, ref=ref, file=file.shown, notes=notes)


def _whole_text(file: DataFile, source: int, notes: Counter[str]) -> str | Problem:
    """Text of the file, decoded line by line so that a bad byte is told with its line."""
    lines: list[str] = []
    size = 0
    with open_bytes(file.path, file.shown) as stream:
        for ref, line in split_lines(stream, file=file.shown, source=source, notes=notes, limit=MAX_JSON_CHARACTERS):
            if isinstance(line, Problem):
                return line
            size += len(line) + 1
            if size > MAX_JSON_CHARACTERS:
                return row_problem(
                    "D204", f"more than {MAX_JSON_CHARACTERS:,} characters", ref, hint="use JSON Lines (`.jsonl`)"
                )
            lines.append(line)
    return "\n".join(lines)


def _data_rows(text: str, start: int, *, ref: RowRef, file: str, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Rows of `{"data": [...]}`: the object is walked key by key so that each row keeps its line."""
    expected = 'expected a list of objects or {"data": [...]}'
    if text[start] != "{":
        yield _at(text, start, JsonError("D207", f"{expected}, got {text[start : start + 20]!r}", start), ref)
        return
    keys: list[str] = []
    found: int | None = None
    position = skip_space(text, start + 1)
    try:
        while position < len(text) and text[position] != "}":
            key, position = parse_at(text, position)
            position = skip_space(text, position)
            if not isinstance(key, str) or text[position : position + 1] != ":":
                raise JsonError("D202", "invalid JSON: expected a key and a colon", position)
            position = skip_space(text, position + 1)
            keys.append(key)
            if key == "data" and text[position : position + 1] == "[" and found is None:
                found = position
            end = value_end(text, position)
            if end is None:
                if found is not None:
                    break
                parse_at(text, position)
                raise JsonError("D202", "invalid JSON", position)
            position = skip_space(text, end)
            if text[position : position + 1] == ",":
                position = skip_space(text, position + 1)
            elif text[position : position + 1] != "}":
                raise JsonError("D202", "invalid JSON: expected a comma or the end of the object", position)
    except JsonError as fault:
        yield _at(text, fault.offset, fault, ref)
        return
    if found is None:
        listed = ", ".join(keys) or "none"
        hint = "one object a line belongs into a `.jsonl` file"
        yield row_problem("D207", f"{expected}, got an object with the keys: {listed}", ref, column=1, hint=hint)
        return
    for key in keys:
        if key != "data":
            notes[f"key `{key}` beside `data` not used"] += 1
    yield from _list_rows(text, found, file=file, source=ref.source, nested=True)


def _list_rows(text: str, start: int, *, file: str, source: int, nested: bool = False) -> Iterator[Row | Problem]:
    """Objects of the list that begins at `start`, each with the line on which it begins.

    A row that is JSON but not strict JSON is a problem of its own; after a row that is no JSON at all
    nothing more can be told, because its end is unknown.
    """
    position, line, counted = skip_space(text, start + 1), 1, 0
    first = True
    while True:
        line += text.count("\n", counted, position)
        counted = position
        ref = RowRef(file, line, source)
        if position >= len(text):
            cut = JsonError("D202", "invalid JSON: the list has no end: is the file cut off?", len(text))
            yield _at(text, max(0, len(text) - 1), cut, ref)
            return
        if first and text[position] == "]":
            break
        first = False
        end: int | None
        try:
            value, end = parse_at(text, position)
            yield _element(text, position, end, value, ref)
        except JsonError as fault:
            yield _at(text, fault.offset, fault, ref)
            end = value_end(text, position)
            if end is None:
                return
        position = skip_space(text, end)
        if text[position : position + 1] == ",":
            position = skip_space(text, position + 1)
        elif text[position : position + 1] == "]":
            break
        else:
            cut_off = position >= len(text)
            what = "the list has no end: is the file cut off?" if cut_off else "expected a comma or the end of the list"
            stray = JsonError("D202", f"invalid JSON: {what}", position)
            yield _at(text, min(position, len(text) - 1), stray, ref)
            return
    rest = skip_space(text, position + 1)
    if not nested and rest != len(text):
        yield _at(text, rest, JsonError("D202", "something follows the end of the JSON list", rest), ref)


def _element(text: str, start: int, end: int, value: Any, ref: RowRef) -> Row | Problem:
    if not isinstance(value, dict):
        return _at(text, start, JsonError("D207", f"expected an object, got {show_value(value)}", start), ref)
    if end - start > MAX_LINE_BYTES:
        message = f"row of {end - start:,} characters; the limit is {MAX_LINE_BYTES:,}"
        return _at(text, start, JsonError("D204", message, start), ref)
    return Row(value=value, ref=ref)


def _at(text: str, offset: int, fault: JsonError, ref: RowRef) -> Problem:
    """The problem at a character of the whole file, told by line and column."""
    line = text.count("\n", 0, offset) + 1
    begin = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    return row_problem(
        fault.code,
        fault.message,
        RowRef(ref.file, line, ref.source),
        text=text[begin : end if end >= 0 else len(text)].rstrip("\r"),
        column=offset - begin + 1,
    )
