"""Rows whose outcome is not the same in all runs: which run is right, which wrong, and what each answered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.across.pairs import Group
from luthier.evaluate.across.read import ComparedRun

__all__ = ["ChangedRows", "changed_rows"]

_LONGEST = 1_200
"""Characters of an answer that are kept: the middle of a longer one is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRows:
    """One task, the runs that meet on it."""

    task: str
    metric: str
    runs: tuple[str, ...]
    rows: int
    """Rows scored."""
    right_or_wrong: bool
    """Every score is 0 or 1; else there are no patterns, and rows are ordered by how far the scores lie apart."""
    indices: tuple[int, ...]
    """Of all rows that changed, ascending."""
    patterns: tuple[dict[str, Any], ...]
    """`{right, wrong, rows}`: how many rows exactly these runs got right; most frequent first."""
    shown: tuple[dict[str, Any], ...]
    """`{index, ref, question, reference, outcomes: [{run, score, right, answer}]}` of the rows picked."""

    def to_json(self) -> dict[str, Any]:
        """As lists."""
        value = {name: getattr(self, name) for name in self.__slots__}
        return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def changed_rows(runs: Sequence[ComparedRun], groups: Sequence[Group], *, limit: int) -> tuple[ChangedRows, ...]:
    """Of every group of two runs or more.

    Args:
        runs: The runs.
        groups: From `groups_of`.
        limit: Most rows of a group to pick; patterns take turns, so that a frequent one does not hide the others.
    """
    return tuple(
        _changed([runs[index].name for index in group.runs], group, limit) for group in groups if len(group.runs) > 1
    )


def _changed(names: Sequence[str], group: Group, limit: int) -> ChangedRows:
    scores = [tuple(float(row["score"]) for row in same) for same in zip(*(r.rows for r in group.results), strict=True)]
    binary = all(score in (0.0, 1.0) for row in scores for score in row)
    indices = [index for index, row in enumerate(scores) if len(set(row)) > 1]
    by_pattern: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index in indices if binary else ():
        by_pattern[scores[index]].append(index)
    ordered = sorted(by_pattern.items(), key=lambda item: -len(item[1]))
    if binary:
        picked = [rows[turn] for turn in range(limit) for _, rows in ordered if turn < len(rows)][:limit]
    else:
        picked = sorted(indices, key=lambda index: min(scores[index]) - max(scores[index]))[:limit]
    return ChangedRows(
        task=group.task,
        metric=group.results[0].metric,
        runs=tuple(names),
        rows=len(scores),
        right_or_wrong=binary,
        indices=tuple(indices),
        patterns=tuple(
            {
                "right": [name for name, score in zip(names, pattern, strict=True) if score],
                "wrong": [name for name, score in zip(names, pattern, strict=True) if not score],
                "rows": len(rows),
            }
            for pattern, rows in ordered
        ),
        shown=tuple(_row(names, group, index, binary=binary) for index in picked),
    )


def _row(names: Sequence[str], group: Group, index: int, *, binary: bool) -> dict[str, Any]:
    first = group.results[0].rows[index]
    reference = first.get("reference")
    return {
        "index": index,
        "ref": str(first.get("ref", "")),
        "question": _short(_question(first)),
        "reference": reference if reference is None else _short(str(reference)),
        "outcomes": [
            {
                "run": name,
                "score": float(result.rows[index]["score"]),
                "right": bool(result.rows[index]["score"]) if binary else None,
                "answer": None if (text := result.rows[index].get("output")) is None else _short(str(text)),
                "cut": result.rows[index].get("finish_reason") == "length",
            }
            for name, result in zip(names, group.results, strict=True)
        ],
    }


def _question(row: Mapping[str, Any]) -> str:
    """The last user message, or the prompt."""
    users = [message for message in row.get("messages") or () if message.get("role") == "user"]
    content = users[-1].get("content") if users else row.get("prompt", "")
    return content if isinstance(content, str) else str(content)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
