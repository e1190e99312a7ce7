"""Before and after: scores with intervals, wins and losses, answers side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.report.diff import word_diff
from luthier.report.preference_view import WORDS
from luthier.runtime.errors import RecipeError
from luthier.studio.clean import clean, finite
from luthier.studio.names import as_argument
from luthier.studio.scores import ScoreFiles

__all__ = ["AskedAnswers", "answer_of", "answer_rows", "evaluations", "question_of"]

ONLY = ("all", "changed", "wins", "losses", "wrong")
_PREFERENCES = ("kind", "objective", "n", "confidence", "measures")
SORTS = ("change", "-change", "row", "score")
_LABELS = {"before": "base", "after": "tuned"}
_LONGEST_DIFF = 20_000
"""Characters; longer answers are shown without marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAnswers:
    """A question about the rows of a task."""

    offset: int = 0
    limit: int = 50
    sort: str = "change"
    only: str = "all"
    q: str = ""


def evaluations(folder: Path, line: Mapping[str, Any], files: ScoreFiles) -> dict[str, Any]:
    """All tasks of a run."""
    before, after, comparison, judge, preferences = (
        files.read(folder / "eval" / f"{name}.json")
        for name in ("before", "after", "comparison", "judge", "preferences")
    )
    scored = {"base": _by_name(before), "tuned": _by_name(after)}
    names = list(dict.fromkeys(name for tasks in scored.values() for name in tasks))
    compared, judged = _by_name(comparison), _by_name(judge)
    tasks = [_task(name, scored, compared.get(name), judged.get(name)) for name in names]
    told = {key: value for key, value in judge.items() if key != "tasks"}
    return {
        "tasks": tasks,
        "regressions": [task["name"] for task in tasks if (task["comparison"] or {}).get("verdict") == "worse"],
        "preferences": _preferences(preferences) if preferences else None,
        "judge": clean(told) if told else None,
        "report": f"/studio/api/runs/{line['id']}/report" if (folder / "report.html").is_file() else None,
        "command": f"luthier compare {shlex.quote(as_argument(folder, line))}",
    }  # fmt: skip


def _preferences(file: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out pairs or rated answers; each measure with what it counts in words."""
    found = {name: file.get(name) for name in _PREFERENCES}
    measures = [one for one in file.get("measures") or [] if isinstance(one, dict)]
    named = [{**one, "what": WORDS.get(str(one.get("name")), str(one.get("name")))} for one in measures]
    value: dict[str, Any] = clean({**found, "measures": named})
    return value


def _by_name(file: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tasks = file.get("tasks")
    return {str(task.get("name")): task for task in tasks if isinstance(task, dict)} if isinstance(tasks, list) else {}


def _task(
    name: str, scored: Mapping[str, Mapping[str, dict[str, Any]]], compared: dict[str, Any] | None,
    judged: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    found = {label: tasks[name] for label, tasks in scored.items() if name in tasks}
    any_one = next(iter(found.values()))
    settings = any_one.get("settings") or {}
    kind = "harness" if settings.get("harness") else "forgetting" if name.startswith("forgetting") else "task"
    value = {
        "name": name, "metric": any_one.get("metric"), "n": any_one.get("n"), "confidence": any_one.get("confidence"),
        "higher_is_better": any_one.get("higher_is_better", any_one.get("metric") != "loss"),
        "columns": [
            {"label": label, "score": finite(task.get("score")), "low": finite(task.get("low")),
             "high": finite(task.get("high")), "tokens_per_second": finite(task.get("tokens_per_second")),
             "secondary": dict(task.get("secondary") or {})}
            for label, task in found.items()
        ],
        "comparison": None if compared is None else _compared(compared),
        "judge": None if judged is None else {key: _without_rows(item) for key, item in judged.items()},
        "has_rows": bool(any_one.get("rows")), "kind": kind,
    }  # fmt: skip
    cleaned: dict[str, Any] = clean(value)
    return cleaned


def _compared(task: Mapping[str, Any]) -> dict[str, Any]:
    names = ("delta", "low", "high", "before", "after", "test", "verdict", "wins", "losses", "confidence")
    wins, losses, n = (int(task.get(name) or 0) for name in ("wins", "losses", "n"))
    return {**{name: task.get(name) for name in names}, "p": task.get("p_value"), "ties": max(0, n - wins - losses)}


def _without_rows(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "rows"} if isinstance(value, dict) else value


def answer_rows(folder: Path, task: str, asked: AskedAnswers, files: ScoreFiles) -> dict[str, Any]:
    """Answers to the rows of a task, those that changed most first.

    Raises:
        RecipeError: W132: no such task; W103: an unknown order or selection.
    """
    if asked.sort not in SORTS or asked.only not in ONLY:
        raise RecipeError(code="W103", message=f"sort: {', '.join(SORTS)}; only: {', '.join(ONLY)}")
    found = {}
    for name, label in _LABELS.items():
        tasks = _by_name(files.read(folder / "eval" / f"{name}.json"))
        if task in tasks:
            found[label] = tasks[task]
    if not found:
        raise RecipeError(code="W132", message=f"this run has no scores of a task {task[:100]!r}")
    rows = {label: list(one.get("rows") or []) for label, one in found.items()}
    better = 1.0 if next(iter(found.values())).get("higher_is_better", True) else -1.0
    count = min(len(own) for own in rows.values())
    changes = [_change(rows, index) for index in range(count)]
    words = asked.q.lower().split()
    chosen = [index for index in range(count) if _wanted(rows, index, changes[index], better, asked.only)
              and all(word in _words(rows, index) for word in words)]  # fmt: skip
    if asked.sort.endswith("change"):
        sign = -better if asked.sort.startswith("-") else better
        chosen.sort(key=lambda index: (sign * (changes[index] or 0.0), index))
    elif asked.sort == "score":
        last = list(rows.values())[-1]
        chosen.sort(key=lambda index: (better * (finite(last[index].get("score")) or 0.0), index))
    judged = _verdicts(files.read(folder / "eval" / "judge.json"), task)
    page = [
        _row(rows, index, changes[index], judged.get(index))
        for index in chosen[asked.offset : asked.offset + asked.limit]
    ]
    return {"total": len(chosen), "offset": asked.offset, "limit": asked.limit, "rows": page}


def _change(rows: Mapping[str, Sequence[Mapping[str, Any]]], index: int) -> float | None:
    if len(rows) < 2:
        return None
    before, after = (finite(own[index].get("score")) for own in rows.values())
    return None if before is None or after is None else after - before


def _wanted(rows: Mapping[str, Any], index: int, change: float | None, better: float, only: str) -> bool:
    if only == "all":
        return True
    if only == "wrong":
        last = list(rows.values())[-1]
        return better < 0 or (finite(last[index].get("score")) or 0.0) < 1.0
    signed = better * (change or 0.0)
    return {"changed": signed != 0, "wins": signed > 0, "losses": signed < 0}[only]


def _words(rows: Mapping[str, Any], index: int) -> str:
    parts = []
    for own in rows.values():
        row = own[index]
        parts += [str(row.get("prompt") or ""), str(row.get("output") or ""), str(row.get("reference") or "")]
    return "\n".join(parts).lower()


def _row(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], index: int, change: float | None, judged: dict[str, Any] | None
) -> dict[str, Any]:  # fmt: skip
    first = next(iter(rows.values()))[index]
    answers = [answer_of(label, own[index]) for label, own in rows.items()]
    diff = None
    if len(answers) == 2 and sum(len(answer["output"]) for answer in answers) <= _LONGEST_DIFF:
        left, right, marked = word_diff(answers[0]["output"], answers[1]["output"])
        diff = {"before": [list(piece) for piece in left], "after": [list(piece) for piece in right], "marked": marked}
    value = {**question_of(index, first), "change": change, "answers": answers, "diff": diff, "judge": judged}
    cleaned: dict[str, Any] = clean(value)
    return cleaned


def question_of(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked in a row, and what is right."""
    messages = [
        {"role": str(turn.get("role")), "content": _content(turn.get("content"))}
        for turn in row.get("messages") or []
        if isinstance(turn, dict)
    ]
    return {
        "row": index, "ref": _place(str(row.get("ref") or "")), "messages": messages,
        "prompt": str(row.get("prompt") or ""),
        "reference": None if row.get("reference") is None else _content(row["reference"]),
    }  # fmt: skip


def answer_of(label: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a model answered, and its score."""
    extracted = row.get("extracted")
    return {
        "label": label, "output": _content(row.get("output")),
        "extracted": None if extracted is None else _content(extracted),
        "score": finite(row.get("score")), "secondary": dict(row.get("secondary") or {}),
        "finish_reason": row.get("finish_reason"), "new_tokens": row.get("new_tokens"), "reason": _reason(row),
    }  # fmt: skip


def _reason(row: Mapping[str, Any]) -> str | None:
    """Why the score is what it is, as far as the files say."""
    if row.get("grader_error"):
        return f"the grader failed: {row['grader_error']}"
    if row.get("finish_reason") == "length":
        return "cut off: the longest answer of the task was reached"
    if "extracted" in row and row["extracted"] is None and row.get("output"):
        return "no answer was found in the text"
    if row.get("extracted") is not None and row.get("reference") is not None and row["extracted"] != row["output"]:
        return f"compared: {_content(row['extracted'])} with {_content(row['reference'])}"
    return None


def _content(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _place(ref: str) -> str:
    """File and line without folders of this machine."""
    return ref.rpartition("/")[2] if ref.startswith("/") else ref


def _verdicts(judge: Mapping[str, Any], task: str) -> dict[int, dict[str, Any]]:
    """What a judge said of each row, in pairs."""
    pairs = (_by_name(judge).get(task) or {}).get("pairwise") or {}
    found = {}
    for index, record in enumerate(pairs.get("rows") or []):
        reasons = [str(reason) for reason in record.get("reasons") or [] if reason]
        found[index] = {"verdict": str(record.get("outcome")), "reason": " / ".join(reasons) or None}
    return found
