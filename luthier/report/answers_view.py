"""Answers on the page: rows whose score changed, and those that are still wrong."""

from __future__ import annotations

from typing import Any

from luthier.report.diff import word_diff
from luthier.report.read import RunFiles, by_name
from luthier.report.svg import number

__all__ = ["examples", "still_wrong"]

_MOST_EXAMPLES = 12


def examples(run: RunFiles) -> list[dict[str, Any]]:
    """Rows whose score changed, losses first (they are what a reader must not miss), then wins."""
    before, after = by_name(run.before), by_name(run.after)
    found: list[dict[str, Any]] = []
    for name, compared in by_name(run.comparison).items():
        if name not in before or name not in after:
            continue
        rows = [
            (before[name]["rows"][index], after[name]["rows"][index])
            for index in compared.get("changed", [])
            if index < min(len(before[name]["rows"]), len(after[name]["rows"]))
        ]
        lower_is_better = not before[name].get("higher_is_better", compared.get("metric") != "loss")
        found += [_example(name, old, new, lower_is_better) for old, new in rows]
    losses = [example for example in found if not example["won"]]
    wins = [example for example in found if example["won"]]
    return [*losses[: _MOST_EXAMPLES // 2], *wins[: _MOST_EXAMPLES - min(len(losses), _MOST_EXAMPLES // 2)]]


def still_wrong(run: RunFiles) -> list[dict[str, Any]]:
    """Rows the tuned model still gets wrong (right/wrong metrics only): its answer against the expected one."""
    found = []
    for name, task in by_name(run.after).items():
        if task.get("metric") == "loss":
            continue
        for row in task["rows"]:
            if float(row["score"]) == 0 and isinstance(row.get("reference"), str):
                wanted, said, marked = word_diff(row["reference"], row.get("output") or "")
                found.append({"task": name, "ref": str(row.get("ref", "")), "question": _question(row),
                              "wanted": wanted, "said": said, "marked": marked})  # fmt: skip
    return found


def _question(row: dict[str, Any]) -> str:
    """The last user message, or the prompt."""
    users = [message for message in row.get("messages") or [] if message.get("role") == "user"]
    question = users[-1].get("content") if users else row.get("prompt", "")
    return question if isinstance(question, str) else str(question)


def _example(task: str, old: dict[str, Any], new: dict[str, Any], lower_is_better: bool) -> dict[str, Any]:
    left, right, marked = word_diff(old.get("output") or "", new.get("output") or "")
    change = float(new["score"]) - float(old["score"])
    return {
        "task": task,
        "ref": str(new.get("ref", "")),
        "question": _question(new),
        "reference": new.get("reference"),
        "before": left,
        "after": right,
        "marked": marked,
        "scores": (number(float(old["score"])), number(float(new["score"]))),
        "won": change < 0 if lower_is_better else change > 0,
        "cut": [label for label, row in (("before", old), ("after", new)) if row.get("finish_reason") == "length"],
    }
