"""`compare_runs`: all that a page, a table or another program wants to know about several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from luthier.evaluate.across.pairs import NotTested, Pair, groups_of, not_tested, tested_pairs
from luthier.evaluate.across.read import ComparedRun, read_runs
from luthier.evaluate.across.rows import ChangedRows, changed_rows
from luthier.evaluate.across.settings import Difference, facts_that_differ, settings_that_differ

__all__ = ["Comparison", "compare_runs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several runs side by side."""

    confidence: float
    """Level of the intervals and, after Holm's correction, of all words of `pairs` together."""
    runs: tuple[ComparedRun, ...]
    settings: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    """Differences of the manifests: inputs, code, versions, machine."""
    pairs: tuple[Pair, ...]
    not_tested: tuple[NotTested, ...]
    changed: tuple[ChangedRows, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values.

        Returns:
            `{confidence, correction, tests, runs, settings, facts, pairs, not_tested, changed}`. A run has `letter`,
            `name`, `folder`, `base`, `method`, `objective`, `resolved`, `scores`, `numbers`, `train_seconds`,
            `seconds` and `curves`; a score has `task`, `metric`, `n`, `score`, `low`, `high`, `confidence`,
            `higher_is_better`, `before` and `verdict` (the run's own, against its base; None where unknown).
        """
        return {
            "confidence": self.confidence,
            "correction": "Holm",
            "tests": len(self.pairs),
            "runs": [_run_json(letter, run) for letter, run in zip(ascii_uppercase, self.runs, strict=False)],
            "settings": [difference.to_json() for difference in self.settings],
            "facts": [difference.to_json() for difference in self.facts],
            "pairs": [pair.to_json() for pair in self.pairs],
            "not_tested": [item.to_json() for item in self.not_tested],
            "changed": [item.to_json() for item in self.changed],
        }


def compare_runs(
    folders: Sequence[str | PathLike[str]],
    *,
    confidence: float = 0.95,
    against_first: bool = False,
    rows: int = 20,
) -> Comparison:
    """Compare two to 26 run folders; nothing is written, no model is loaded.

    Args:
        folders: Run folders, the order is kept.
        confidence: Level of the intervals and of all words together.
        against_first: Test each run against the first one only, not every pair.
        rows: Most changed rows to pick for each task.

    Raises:
        RecipeError: too few or too many folders, one twice, one that holds no run.
        RunFailed: a file of a run is damaged.
    """
    runs = read_runs([Path(folder) for folder in folders])
    groups = groups_of(runs)
    return Comparison(
        confidence=confidence,
        runs=tuple(runs),
        settings=settings_that_differ(runs),
        facts=facts_that_differ(runs),
        pairs=tested_pairs(runs, groups, confidence=confidence, against_first=against_first),
        not_tested=not_tested(runs, groups),
        changed=changed_rows(runs, groups, limit=rows),
    )


def _run_json(letter: str, run: ComparedRun) -> dict[str, Any]:
    return {
        "letter": letter,
        "name": run.name,
        "folder": str(run.folder),
        "base": run.base,
        "method": run.method,
        "objective": run.objective,
        "resolved": run.resolved,
        "scores": [*_scores(run), *_preferences(run)],
        "numbers": run.numbers,
        "train_seconds": run.train_seconds,
        "seconds": run.seconds,
        "curves": [curve.to_json() for curve in run.curves],
    }


def _scores(run: ComparedRun) -> list[dict[str, Any]]:
    before = {result.name: result.score for result in run.before}
    return [
        {
            "task": result.name, "metric": result.metric, "n": result.n, "score": result.score, "low": result.low,
            "high": result.high, "confidence": result.confidence, "higher_is_better": result.higher_is_better,
            "before": before.get(result.name), "verdict": run.verdicts.get(result.name),
        }
        for result in run.after
    ]  # fmt: skip


def _preferences(run: ComparedRun) -> list[dict[str, Any]]:
    """Held-out pairs of a training over preferences: shown, not tested between runs."""
    summary = run.preferences
    return [
        {
            "task": "held-out preferences", "metric": measure["name"], "n": summary["n"], "score": measure["after"],
            "low": measure.get("low"), "high": measure.get("high"), "confidence": summary["confidence"],
            "higher_is_better": True, "before": measure.get("before"), "verdict": measure.get("verdict"),
        }
        for measure in summary.get("measures", [])
    ]  # fmt: skip
