"""What a training over preferences changed on the held-out answers: before against after, the same rows.

Of pairs, the share that a model puts in the right order, with Wilson's interval, by four yardsticks:

    log_prob        log p(chosen) > log p(rejected), summed over the answer
    log_prob_mean   the same a token: long answers have no handicap
    implicit        beta (log pi - log pi_ref) of the chosen answer is higher; of the start it is 0 for both, which says
                    nothing, so it has no "before" (a coin's 50% stands for it)
    reward          of a reward model, whose head is random before

Before and after are compared by McNemar's exact test (`stats.py`). Of rated answers, the chance that a desired answer
has the higher implicit reward than an undesired one (the area under the ROC curve).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluate.stats import paired_proportions, proportion, verdict

__all__ = ["preference_lines", "summarise"]

Row = Mapping[str, Any]


def summarise(value: Mapping[str, Any], *, confidence: float) -> dict[str, Any]:
    """The summary of `eval/preference_rows.json`; the content of `eval/preferences.json`."""
    rows: Sequence[Row] = value["rows"]
    head = {"objective": value["objective"], "n": len(rows), "confidence": confidence}
    if rows and rows[0]["label"] is not None:
        return {**head, "kind": "rated", "measures": [_rated(rows)]}
    if value["values"] == "rewards":
        return {**head, "kind": "pairs", "measures": [_compared("reward", rows, _first_higher, confidence)]}
    measures = [
        _compared("log_prob", rows, _first_higher, confidence),
        _compared("log_prob_mean", rows, _first_higher_a_token, confidence),
    ]
    if value["needs_reference"]:
        measures.insert(0, _implicit(rows, confidence))
    return {**head, "kind": "pairs", "measures": measures}


def preference_lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary in words, one line a measure."""
    lines = []
    for measure in summary["measures"]:
        if measure["name"] == "auc":
            said = "unknown, both kinds are needed" if measure["after"] is None else f"{measure['after']:.3f}"
            lines.append(f"{WORDS['auc']}: {said} (0.5 is chance) on {summary['n']} answers")
            continue
        after = f"{measure['after']:.1%} [{measure['low']:.1%}, {measure['high']:.1%}]"
        if measure["before"] is None:
            lines.append(f"{WORDS[measure['name']]}: {after} on {summary['n']} pairs (50% is chance)")
        else:
            lines.append(
                f"{WORDS[measure['name']]}: {measure['before']:.1%} -> {after} on {summary['n']} pairs, "
                f"p = {measure['p_value']:.2g}: {measure['verdict']}"
            )
    return lines


WORDS = {
    "implicit": "chosen answer gained more than the rejected one",
    "log_prob": "chosen answer is likelier",
    "log_prob_mean": "chosen answer is likelier a token",
    "reward": "chosen answer has the higher reward",
    "auc": "a desired answer gained more than an undesired one",
}


def _first_higher(values: Sequence[float], row: Row) -> float:
    return float(values[0] > values[1])


def _first_higher_a_token(values: Sequence[float], row: Row) -> float:
    return float(values[0] / row["tokens"][0] > values[1] / row["tokens"][1])


def _compared(name: str, rows: Sequence[Row], right: Any, confidence: float) -> dict[str, Any]:
    before = [right(row["before"], row) for row in rows]
    after = [right(row["after"], row) for row in rows]
    test = paired_proportions(before, after, confidence=confidence)
    return {
        "name": name, "before": sum(before) / len(rows), **_share(after, confidence), "delta": test.delta,
        "delta_low": test.interval.low, "delta_high": test.interval.high, "test": test.test, "p_value": test.p_value,
        "verdict": verdict(test, confidence=confidence, higher_is_better=True),
    }  # fmt: skip


def _implicit(rows: Sequence[Row], confidence: float) -> dict[str, Any]:
    gains = [[new - old for new, old in zip(row["after"], row["before"], strict=True)] for row in rows]
    return {"name": "implicit", "before": None, **_share([float(a > b) for a, b in gains], confidence)}


def _share(right: Sequence[float], confidence: float) -> dict[str, Any]:
    interval = proportion(round(sum(right)), len(right), confidence=confidence)
    return {"after": sum(right) / len(right), "low": interval.low, "high": interval.high}


def _rated(rows: Sequence[Row]) -> dict[str, Any]:
    """Area under the ROC curve of the gain in log-probability; None where one kind is missing."""
    from scipy.stats import mannwhitneyu

    gains = [(row["after"][0] - row["before"][0], row["label"]) for row in rows]
    desired, other = ([gain for gain, label in gains if label is kind] for kind in (True, False))
    area = None
    if desired and other:
        area = float(mannwhitneyu(desired, other).statistic) / (len(desired) * len(other))
    return {"name": "auc", "before": None, "after": area}
