"""What became of every row: used, held out, dropped, changed. Nothing vanishes.

    rows read + pairs split = used + held out + dropped        for each source

Pairs that are read as rated answers become two rows each. A row that is used several times (a source's weight) counts
once, one that is left out by a weight counts as dropped. A changed row is used or held out, so changes are counted
apart; a row that was changed and then dropped is only listed as dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.data.sources import SourceResult
from luthier.data.tally import Tally
from luthier.data.types import Dropped, RowRef
from luthier.runtime.errors import Problem, RunFailed

__all__ = ["Losses", "account", "account_stored", "loss_lines", "note_records"]

_EXAMPLES = 3
_FAULT = "this is a fault in Luthier: please report it"
_ALTERED = ("template trims", "template changes", "template writes less", "template adds", "tokenizer ")
"""Beginnings of the notes that say that a row's text is not the file's (`data/saying.py`, `data/mask.py`,
`data/tokenize.py`)."""


class _Placed(Protocol):
    @property
    def ref(self) -> RowRef: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The report of loss."""

    records: list[dict[str, Any]]
    """One for each dropped row and each change, for `data/losses.jsonl`: `file`, `line`, `source`, `reason` (dropped)
    or `changed`, `detail`, and what the step adds (`stage`, `similarity`, ...)."""
    summary: dict[str, Any]
    """Totals by reason, stage and source, and examples, for the manifest."""


def account(
    results: Sequence[SourceResult],
    *,
    used: Sequence[_Placed],
    held_out: Sequence[_Placed],
    dropped: Sequence[Dropped],
    full: Mapping[int, Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
) -> Losses:
    """List every loss and prove that the rows add up.

    Args:
        results: What each source gave, the validation file last.
        used: Training rows; the same object again where a row is repeated.
        held_out: Validation rows.
        dropped: All dropped rows.
        full: id of an item of `dropped` -> its record in full, where a step made one.
        changes: Records of changes of rows that are used or held out.

    Raises:
        RunFailed: the rows do not add up: a fault in Luthier.
    """
    records = [dict(full.get(id(item)) or _record(item)) for item in dropped]
    changed = [dict(record) for record in changes]
    once = list({id(row): row for row in used}.values())
    summary = {
        "dropped": _by_stage(records, "reason"),
        "changed": _by_stage(changed, "changed"),
        "sources": _sources(results, once, held_out, dropped, changed),
        "examples": _examples([*records, *changed]),
    }
    return Losses(records=[*records, *changed], summary=summary)


def account_stored(
    results: Sequence[SourceResult], *, used: Mapping[int, int], held_out: Mapping[int, int], tally: Tally
) -> Losses:
    """The same for rows that are kept on disk: all are counted, the first ten thousand of a kind are listed.

    Args:
        results: What each source gave; without its rows.
        used: Source -> training rows, each once.
        held_out: Source -> validation rows.
        tally: What was dropped and cut.

    Raises:
        RunFailed: the rows do not add up: a fault in Luthier.
    """
    records = [_record(item) for item in tally.dropped_rows]
    cut = [
        {"file": ref.file, "line": ref.line, "source": ref.source, "changed": "cut", "detail": detail}
        for ref, detail in tally.truncated_rows
    ]
    sources, problems = [], []
    for index, result in enumerate(results):
        lost = {key.partition(":")[2]: count for key, count in tally.by_source.items() if key.startswith(f"{index}:")}
        to_train, to_validate = used.get(index, 0), held_out.get(index, 0)
        sources.append({"path": result.path, "rows_read": result.rows, "pairs_split": 0, "used": to_train,
                        "validation": to_validate, "dropped": lost, "changed": {}})  # fmt: skip
        if result.rows != to_train + to_validate + sum(lost.values()):
            problems.append(_not_adding_up(result, 0, to_train, to_validate, sum(lost.values())))
    if problems:
        raise RunFailed(problems=problems, hint=_FAULT)
    summary = {
        "dropped": {reason: {"": count} for reason, count in tally.dropped.most_common()},
        "changed": {"cut": {"": tally.truncated}} if tally.truncated else {},
        "sources": sources,
        "examples": _examples([*records, *cut]),
    }
    return Losses(records=[*records, *cut], summary=summary)


def note_records(ref: RowRef, notes: Iterable[str]) -> list[dict[str, Any]]:
    """Records of what tokenising changed: those of a row's notes that say that its text was cut or altered."""
    place = {"file": ref.file, "line": ref.line, "source": ref.source}
    kinds = [(note, "cut" if note.startswith("truncated ") else "template") for note in notes]
    return [
        {**place, "changed": kind, "detail": note} for note, kind in kinds if kind == "cut" or note.startswith(_ALTERED)
    ]


def _record(item: Dropped) -> dict[str, Any]:
    ref = item.ref
    return {"file": ref.file, "line": ref.line, "source": ref.source, "reason": item.reason, "detail": item.detail}


def _by_stage(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, int]]:
    """Reason -> stage (empty where there is none) -> count."""
    counts = Counter((str(record[key]), str(record.get("stage", ""))) for record in records)
    found: dict[str, dict[str, int]] = {}
    for (reason, stage), count in counts.most_common():
        found.setdefault(reason, {})[stage] = count
    return found


def _sources(
    results: Sequence[SourceResult], used: Sequence[_Placed], held_out: Sequence[_Placed], dropped: Sequence[Dropped],
    changed: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    to_train, to_validate = (Counter(row.ref.source for row in rows) for rows in (used, held_out))
    lost = Counter(item.ref.source for item in dropped)
    reasons = {index: Counter(item.reason for item in dropped if item.ref.source == index) for index in lost}
    altered = Counter((record["source"], record["changed"]) for record in changed)
    found: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for index, result in enumerate(results):
        split = len(result.conversations) + len(result.dropped) - result.rows
        entry = {
            "path": result.path,
            "rows_read": result.rows,
            "pairs_split": split,
            "used": to_train[index],
            "validation": to_validate[index],
            "dropped": dict(reasons.get(index, {})),
            "changed": {what: count for (source, what), count in altered.items() if source == index},
        }
        found.append(entry)
        if result.rows + split != to_train[index] + to_validate[index] + lost[index]:
            problems.append(_not_adding_up(result, split, to_train[index], to_validate[index], lost[index]))
    if problems:
        raise RunFailed(problems=problems, hint=_FAULT)
    return found


def _not_adding_up(result: SourceResult, split: int, used: int, held_out: int, lost: int) -> Problem:
    told = f"{result.rows:,} rows read and {split:,} pairs split, but {used:,} used, "
    told += f"{held_out:,} held out and {lost:,} dropped"
    return Problem(code="D257", message=f"rows of {result.path} do not add up: {told}")


def _examples(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first few of each reason and stage."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for record in records:
        kind = (str(record.get("reason", record.get("changed"))), str(record.get("stage", "")))
        seen[kind] += 1
        if seen[kind] <= _EXAMPLES:
            keys = ("file", "line", "reason", "changed", "stage", "detail")
            chosen.append({key: record[key] for key in keys if key in record})
    return chosen


def loss_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What `data check` says: totals by reason and stage, then each source that lost or changed something."""
    losses = manifest.get("losses")
    if losses is None:
        return [f"dropped, {reason}: {count:,}" for reason, count in manifest["dropped"].items()]
    lines = []
    for title in ("dropped", "changed"):
        for reason, stages in losses[title].items():
            lines += [f"{title}, {', '.join(filter(None, (reason, stage)))}: {n:,}" for stage, n in stages.items()]
    for source in losses["sources"]:
        if not source["dropped"] and not source["changed"]:
            continue
        split = f" (+ {source['pairs_split']:,}: pairs are two rows)" if source["pairs_split"] else ""
        told = [f"{count:,} {reason}" for reason, count in source["dropped"].items()]
        altered = [f"{count:,} {what}" for what, count in source["changed"].items()]
        lines.append(
            f"{source['path']}: {source['rows_read']:,} rows{split} = {source['used']:,} to train + "
            f"{source['validation']:,} to validate + {sum(source['dropped'].values()):,} dropped"
            + (f" ({', '.join(told)})" if told else "")
            + (f"; changed: {', '.join(altered)}" if altered else "")
        )
    return lines
