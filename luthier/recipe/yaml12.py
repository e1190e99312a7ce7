"""YAML 1.2 (core schema) to plain values, with the place of each and nothing that executes.

ruamel.yaml scans and parses; the values are made here from its events, because that keeps three
promises in one place: scalars follow YAML 1.2 (`1e-4` is a number, `no` is text, `012` is 12),
every key and value keeps its place, and nothing in a file can cost much time or memory (aliases,
nesting and size are limited). Tags are refused: a recipe is text, numbers, lists and mappings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from luthier.recipe.positions import Document, KeyPath, Lines, Spot, dotted

__all__ = ["MAX_BYTES", "copy_plain", "parse_yaml", "plain_scalar", "whole_text"]

MAX_BYTES = 1 << 20
"""Recipes are a few kilobytes; the longest chat templates some tens."""
MAX_DEPTH = 32
MAX_NODES = 10_000
"""Values after aliases are expanded. Nine levels of nine aliases would be 387 million."""

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


def whole_text(text: str) -> str:
    """`text` with surrogate pairs (`"\\ud83d\\ude00"`, as JSON writes them) joined to characters.

    Raises:
        ValueError: half a pair is left: no file could hold it.
    """
    try:
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("the text holds half of a surrogate pair, or bytes that are not UTF-8") from None


def plain_scalar(text: str) -> Any:
    """The value of an unquoted scalar under the core schema of YAML 1.2 (section 10.3.2).

    Raises:
        ValueError: a number that is not finite or does not fit 64 bits; text that is not Unicode.
    """
    text = whole_text(text)
    if text in _WORDS:
        return _WORDS[text]
    number: int | float
    if _NOT_FINITE.match(text):
        raise ValueError(f"numbers must be finite, got {text}")
    if _INT.match(text) or _OCTAL.match(text) or _HEX.match(text):
        if len(text) > 24:
            raise ValueError(f"whole numbers must fit 64 bits, got one of {len(text)} characters")
        number = int(text) if _INT.match(text) else int(text, 0)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"whole numbers must fit 64 bits, got {text}")
        return number
    if _FLOAT.match(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"numbers must be finite, got {text}, which is too large for a 64-bit float")
        return number
    return text


def parse_yaml(text: str, *, origin: str) -> Document:
    """Read one YAML 1.2 document; what is wrong is in its `problems`.

    Args:
        text: the document, without byte-order mark.
        origin: what messages call it.
    """
    document = Document(origin=origin, text=text, value=None)
    document.lines = Lines(text)
    _Builder(document).build()
    return document


class _StopError(Exception):
    """Reading cannot go on; the problem is recorded."""


class _Builder:
    """Turns ruamel's events into plain values and spots."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.spots = document.spots
        self.order: list[KeyPath] = []
        """Paths as their spots were recorded: what lies inside an anchor is one slice."""
        self.anchors: dict[str, tuple[Any, dict[KeyPath, Spot]]] = {}
        self.open_anchors: set[str] = set()
        self.nodes = 0

    def build(self) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError
        from ruamel.yaml.reader import ReaderError

        document = self.document
        try:
            self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(document.text)
            document.value = self._stream()
            return
        except MarkedYAMLError as error:
            self._syntax(error)
        except ReaderError as error:
            code = error.character if isinstance(error.character, int) else ord(error.character)
            message = f"the character U+{code:04X} may not stand in YAML"
            self._report((error.position, error.position + 1), "C101", message)
        except _StopError:
            pass
        document.readable = False

    def _report(self, span: tuple[int, int], code: str, message: str, hint: str | None = None) -> None:
        self.document.problems.append(self.document.place_of(*span).problem(code, message, hint=hint))

    def _syntax(self, error: Any) -> None:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context}"
        if error.problem and error.context:
            start = error.context_mark
            since = (
                f", line {self.document.place_of(start.index, 0).line}" if start and start.index != mark.index else ""
            )
            message += f" ({error.context}{since})"
        hint = "indent with spaces, never with tabs" if "\\t" in message else None
        self._report((mark.index, mark.index + 1), "C101", " ".join(message.split()), hint)

    # -- events

    def _stream(self) -> Any:
        value: Any = None
        documents = 0
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    self._fail(event, "C101", "a recipe is one document; here a second one starts")
                if event.version is not None and tuple(event.version) != (1, 2):
                    self._fail(
                        event,
                        "C101",
                        f"recipes are YAML 1.2, not {event.version[0]}.{event.version[1]}",
                        "remove this line",
                    )
            elif kind in {"ScalarEvent", "MappingStartEvent", "SequenceStartEvent", "AliasEvent"}:
                value = self._node(event, (), key=_span(event))
        return value

    def _fail(self, event: Any, code: str, message: str, hint: str | None = None) -> None:
        self._report(_span(event), code, message, hint)
        raise _StopError

    def _count(self, event: Any, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self._fail(event, "C106", f"more than {MAX_NODES:,} values, aliases expanded")
        if depth > MAX_DEPTH:
            self._fail(event, "C106", f"nested more than {MAX_DEPTH} levels deep")

    def _place(self, path: KeyPath, spot: Spot) -> None:
        self.spots[path] = spot
        self.order.append(path)

    def _node(self, event: Any, path: KeyPath, *, key: tuple[int, int]) -> Any:
        """Value of the node that starts with `event`; its spots are recorded under `path`."""
        kind = type(event).__name__
        if kind == "AliasEvent":
            return self._alias(event, path, key)
        self._count(event, 1, len(path))
        start, end = _span(event)
        if event.tag is not None:
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report((start, end), "C106", f"tags such as {shown} are not read in recipes", "write the plain value")
            self.document.bad.add(path)
        if event.anchor is not None:
            self.open_anchors.add(event.anchor)
        before = len(self.order)
        value: Any
        if kind == "ScalarEvent":
            value = self._scalar(event, path)
        else:
            value = self._mapping(path) if kind == "MappingStartEvent" else self._sequence(path)
            end = self._line_end(start)
        self._place(path, Spot(key=key, value=(start, end)))
        if event.anchor is not None:
            self.open_anchors.discard(event.anchor)
            self.anchors[event.anchor] = (value, {at[len(path) :]: self.spots[at] for at in self.order[before:]})
        return value

    def _line_end(self, start: int) -> int:
        """A list or mapping is underlined on its first line only."""
        ends = [found for mark in "\r\n" if (found := self.document.text.find(mark, start)) >= 0]
        return min(ends, default=len(self.document.text))

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        try:
            return plain_scalar(event.value) if event.implicit[0] else whole_text(event.value)
        except ValueError as error:
            self._report(_span(event), "C103", f"`{dotted(path)}`: {error}")
            self.document.bad.add(path)
            return None

    def _alias(self, event: Any, path: KeyPath, key: tuple[int, int]) -> Any:
        if event.anchor in self.open_anchors:
            self._fail(event, "C106", f"*{event.anchor} contains itself")
        if event.anchor not in self.anchors:
            self._fail(event, "C106", f"*{event.anchor} is not defined above")
        value, inside = self.anchors[event.anchor]
        self._count(event, len(inside), len(path) + max(len(at) for at in inside))
        for at, spot in inside.items():
            if at:
                self._place(path + at, spot)
        self._place(path, Spot(key=key, value=_span(event)))
        return copy_plain(value)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, tuple[int, int]] = {}
        for event in self.events:
            if type(event).__name__ == "MappingEndEvent":
                break
            if type(event).__name__ != "ScalarEvent":
                self._fail(event, "C101", "a key must be text, not a list, a mapping or an alias")
            span = _span(event)
            try:
                name = whole_text(event.value)
            except ValueError as error:
                self._fail(event, "C103", str(error))
            if event.tag is not None or event.anchor is not None:
                self._fail(event, "C106", "a key takes no tag and no anchor")
            value = self._node(next(self.events), (*path, name), key=span)
            if name in first:
                line = self.document.place_of(*first[name]).line
                message = f'the key "{name}" is here for the second time; the first is on line {line}'
                self._report(span, "C105", message, "keep one of them")
            first.setdefault(name, span)
            result[name] = value
        return result

    def _sequence(self, path: KeyPath) -> list[Any]:
        result: list[Any] = []
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            result.append(self._node(event, (*path, len(result)), key=_span(event)))
        return result


def _span(event: Any) -> tuple[int, int]:
    return event.start_mark.index, event.end_mark.index


def copy_plain(value: Any) -> Any:
    """A deep copy of plain values, so that an override of one place leaves every other alone."""
    if isinstance(value, dict):
        return {key: copy_plain(item) for key, item in value.items()}
    return [copy_plain(item) for item in value] if isinstance(value, list) else value
