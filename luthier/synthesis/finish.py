"""The last steps: rows are read back as training reads them, filtered, deduplicated, judged.

What these steps take away becomes a rejected row with the reason. The steps of a recipe's `data` section that a spec
has are in `_CURATED`; they run in `curate.apply.curator`, where their order is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.curate.apply import curator
from luthier.curate.filters.run import Tools, build
from luthier.data.sources import read_conversations
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DataSection, Source
from luthier.synthesis.asking import Candidate, Driver, Failure, Halt, Made, Rejected, Steps, Work, halted
from luthier.synthesis.score import Judge, build_judge
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.templates import Templates

__all__ = ["Finished", "check_filters", "curate", "judge_rows", "row_of"]

_CURATED = tuple(name for name in DataSection.model_fields if name in SynthSpec.model_fields)
"""Keys of a spec that are keys of `data` in a recipe, with the same meaning: `filters`, `dedup`."""


@dataclass(slots=True)
class Finished:
    """What is left, and what was taken away."""

    rows: list[Candidate]
    rejected: list[Rejected] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def row_of(one: Candidate) -> dict[str, Any]:
    """A line of the output: the row, and where it came from."""
    return {**one.value, "provenance": dict(one.provenance)}


def check_filters(spec: SynthSpec) -> None:
    """Whether the filters of the spec can run, before anything is asked.

    Raises:
        RecipeError, EnvironmentProblem: as `curate.filters.run.build`.
    """
    if spec.filters is not None:
        build(spec.filters, Tools())


def curate(spec: SynthSpec, rows: Sequence[Candidate], *, cache_dir: Path | None) -> Finished:
    """Read the rows as training reads them, and take away what the spec's sections of `data` say.

    Raises:
        EnvironmentProblem: a library or model that a step needs is missing.
        RunFailed: a function of the user, as a filter, fails.
    """
    if not rows:
        return Finished([])
    with tempfile.TemporaryDirectory(prefix="luthier-synth-") as folder:
        file = Path(folder) / "candidates.jsonl"
        file.write_text("".join(json.dumps(row_of(one), ensure_ascii=False) + "\n" for one in rows), "utf-8")
        source = Source(path=str(file))
        pairs = "chosen" in rows[0].value
        asks_only = spec.seeds is not None and spec.mode == "seeds" and not spec.seeds.answer
        read = read_conversations(
            source, 0, on_empty="keep" if asks_only else "error", kind="pairs" if pairs else "tokens"
        )
        section = DataSection(train=[source], **{name: getattr(spec, name) for name in _CURATED})
        steps = curator(section, cache_dir=cache_dir)
        if steps is None:
            return Finished(list(rows))
        curated = steps(read.conversations, [])
        shown = str(read.conversations[0].ref).rpartition(":")[0] + ":"
    done = Finished([], report=curated.report)
    for dropped in curated.dropped:
        one = rows[dropped.ref.line - 1]
        outcome = "duplicate" if dropped.reason == "duplicate" else "filtered"
        done.rejected.append(
            Rejected(item=one.item, outcome=outcome, detail=dropped.detail.replace(shown, "candidate "),  # type: ignore[arg-type]
                     value=one.value, provenance=one.provenance)
        )  # fmt: skip
    before = {row.ref.line: row for row in read.conversations}
    done.rows = [_changed(rows[row.ref.line - 1], before[row.ref.line], row) for row in curated.rows]
    return done


def _changed(one: Candidate, before: Conversation, after: Conversation) -> Candidate:
    """The row as a step left it."""
    if after == before:
        return one
    if after.kind == "chat":
        return replace(one, value={"messages": _plain(after.messages)})
    assert after.kind == "pair", "rows are chats or pairs of chats"
    start = len(one.value["prompt"])
    chosen, rejected = (answer.messages for answer in after.answers)
    value = {"prompt": _plain(chosen[:start]), "chosen": _plain(chosen[start:]), "rejected": _plain(rejected[start:])}
    return replace(one, value=value)


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]


def judge_rows(
    spec: SynthSpec, templates: Templates, rows: Sequence[Candidate], driver: Driver,
    on_done: Callable[[list[Made]], None],
) -> Finished:  # fmt: skip
    """Have every row scored, and leave out low ones.

    Raises:
        Interrupted: a signal came.
        LuthierError: the judge cannot be asked.
    """
    judge = build_judge(spec, templates)
    works = [Work(one.item, partial(_judged, judge, one)) for one in rows]
    done = Finished([])
    for made in (made for result in driver.run(works, on_done) for made in result):
        if isinstance(made, Candidate):
            done.rows.append(made)
        else:
            done.rejected.append(made)
    return done


def _judged(judge: Judge, one: Candidate) -> Steps:
    *prompt, last = one.value["messages"]
    try:
        found = yield from judge.score(prompt, None, last["content"], RowRef(one.item, 0))
    except Halt as halt:
        return [halted(one, halt)]
    if isinstance(found, Failure):
        return [Rejected(item=one.item, outcome="unjudged", detail=found.detail, said=found.got.text, value=one.value,
                         provenance=one.provenance)]  # fmt: skip
    provenance = {**one.provenance, "judge_score": found.score}
    if found.accepted:
        return [replace(one, provenance=provenance)]
    return [Rejected(item=one.item, outcome="judged_low", detail=found.detail, value=one.value, provenance=provenance)]
