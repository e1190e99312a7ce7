"""Compare an answer with a reference as JSON: the whole value, and field by field.

Types count: `1`, `1.0`, `"1"` and `true` are four values. Order of keys and white space do not.
A field is a leaf of the value (string, number, true, false, null, empty object or list) with the
path that leads to it; precision and recall are over fields, after Rijsbergen's F1 = 2TP / (2TP + FP + FN).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_DEPTH", "FieldCounts", "count_fields", "parse_json", "same_json"]

MAX_DEPTH = 200
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """Fields that are right, wrong or too many, and missing."""

    right: int = 0
    extra: int = 0
    missing: int = 0

    def __add__(self, other: FieldCounts) -> FieldCounts:
        return FieldCounts(self.right + other.right, self.extra + other.extra, self.missing + other.missing)

    @property
    def f1(self) -> float:
        """Micro F1; 1 when there is no field on either side."""
        total = 2 * self.right + self.extra + self.missing
        return 2 * self.right / total if total else 1.0


def parse_json(text: str) -> Any:
    """Parse one JSON value that fills the whole text.

    Raises:
        ValueError: not JSON; also NaN and infinity, a key that is there twice, and values nested
            deeper than `MAX_DEPTH` (nobody's answer, and comparing them could exhaust the stack).
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    for _ in _leaves(value, {}):
        pass
    return value


def same_json(one: Any, other: Any) -> bool:
    """Whether two parsed values are equal, types included."""
    counts = count_fields(one, other)
    return counts.extra == counts.missing == 0


def count_fields(answer: Any, reference: Any) -> FieldCounts:
    """Fields of an answer (None of them when it could not be parsed: pass `...`) against the reference's."""
    paths: dict[tuple[int, Any], int] = {}
    expected = dict(_leaves(reference, paths))
    got = {} if answer is ... else dict(_leaves(answer, paths))
    right = sum(1 for path, leaf in got.items() if expected.get(path, _NOTHING) == leaf)
    return FieldCounts(right, len(got) - right, len(expected) - right)


def _leaves(value: Any, paths: dict[tuple[int, Any], int]) -> Iterator[tuple[int, tuple[str, Any]]]:
    """(number of the path, (type, leaf)) of every leaf. `paths` gives equal paths equal numbers."""
    waiting: list[tuple[Any, int, int]] = [(value, 0, 0)]
    while waiting:
        node, path, depth = waiting.pop()
        children = list(_children(node))
        if not children:
            leaf = repr(node) if isinstance(node, (dict, list, float)) else node
            yield path, (type(node).__name__, leaf)
            continue
        if depth == MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        for key, child in children:
            waiting.append((child, paths.setdefault((path, key), len(paths) + 1), depth + 1))


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    """(step, child): the step names the kind of container, so that `{"0": x}` is not `[x]`."""
    if isinstance(node, dict):
        yield from ((("key", key), child) for key, child in node.items())
    elif isinstance(node, list):
        yield from ((("index", index), child) for index, child in enumerate(node))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value
