"""How far the work is, how fast it goes, how far annotators agree."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import combinations
from typing import Any

from luthier.annotate.agreement import binomial_p, cohen_kappa, krippendorff_alpha
from luthier.annotate.items import Items
from luthier.annotate.labels import Labels, lost_of, outcome_of
from luthier.annotate.record import Record

__all__ = ["status"]


def status(items: Items, labels: Labels) -> dict[str, Any]:
    """All numbers, as JSON.

    Speed is the median of the seconds from showing a row to the decision that stands (pauses do not move a median);
    what remains takes that many seconds a row. Agreement is over rows that both decided on, in the classes accept,
    reject and edit (of pairs: first, second, tie, reject); two different edits agree in their class and are a conflict.
    """
    by_annotator = {name: _own(items, labels, name) for name in labels.annotators}
    decided = {hash_: labels.decisions(hash_) for hash_ in items.by_hash}
    changed, gone = lost_of(labels, items)
    return {
        "rows": len(items.all),
        "distinct": len(items.by_hash),
        "decided": sum(bool(found) for found in decided.values()),
        "remaining": sum(not found for found in decided.values()),
        "annotators": by_annotator,
        "agreement": _agreement(labels, decided),
        "krippendorff_alpha": krippendorff_alpha(
            [[outcome_of(record).category for record in found.values()] for found in decided.values()]
        ),
        "conflicts": [
            {"file": item.ref.file, "line": item.ref.line, **{"said": _said(found)}}
            for hash_, found in decided.items()
            if len({outcome_of(record) for record in found.values()}) > 1 and (item := items.first(hash_))
        ],
        "changed": [
            {"file": record.file, "line": record.line, "annotator": record.annotator, "was": record.action}
            for record in changed.values()
        ],
        "gone": len(gone),
    }


def _own(items: Items, labels: Labels, name: str) -> dict[str, Any]:
    standing = [labels.standing(name, hash_) for hash_ in items.by_hash]
    decisions = [one.decision for one in standing if one.decision is not None]
    seconds = [record.seconds for record in decisions if record.seconds is not None]
    median = statistics.median(seconds) if seconds else None
    remaining = len(standing) - len(decisions)
    found: dict[str, Any] = {
        "decided": len(decisions),
        "remaining": remaining,
        "skipped": sum(one.skipped for one in standing),
        "outcomes": dict(Counter(outcome_of(record).category for record in decisions)),
        "edited": sum(bool(record.edits) for record in decisions),
        "tags": dict(Counter(tag for one in standing for tag in one.tags)),
        "notes": sum(bool(one.note) for one in standing),
        "median_seconds": median,
        "rows_per_hour": round(3600 / median, 1) if median else None,
        "remaining_seconds": round(remaining * median) if median is not None else None,
    }
    chosen = [record for record in decisions if record.action == "choose"]
    if chosen:
        found["left"] = _left(chosen)
    return found


def _left(chosen: list[Record]) -> dict[str, Any]:
    """Whether the place of an answer moved the choice: left and right are as likely if it did not."""
    left = sum(record.choice == record.left for record in chosen)
    return {"chosen": left, "of": len(chosen), "p": round(binomial_p(left, len(chosen)), 4)}


def _agreement(labels: Labels, decided: dict[str, dict[str, Record]]) -> list[dict[str, Any]]:
    found = []
    for first, second in combinations(labels.annotators, 2):
        both = [one for one in decided.values() if first in one and second in one]
        ours = [outcome_of(one[first]).category for one in both]
        theirs = [outcome_of(one[second]).category for one in both]
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        found.append({
            "annotators": [first, second],
            "rows": len(both),
            "equal": equal,
            "kappa": cohen_kappa(ours, theirs),
        })  # fmt: skip
    return found


def _said(found: dict[str, Record]) -> dict[str, str]:
    """Annotator -> outcome, with the edited text where there is one."""
    return {
        name: outcome.category + "".join(f": {text[2]}" for text in outcome.texts)
        for name, record in found.items()
        if (outcome := outcome_of(record))
    }
