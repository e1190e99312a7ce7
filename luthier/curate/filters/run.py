"""`data.filters`: every filter in its order over the rows that the ones before it left.

    listed              rows that a person named: the others need not be looked at
    encoding, pii       mend and redact first: all that follows sees, shows and sends the changed text
    length ... python   drop; a row goes at the first filter that says so
    judge               last, because it costs

Nothing is dropped or changed without a record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.curate.filters.base import Change, Drop, Filter
from luthier.curate.filters.boilerplate import Boilerplate
from luthier.curate.filters.echo import Echo
from luthier.curate.filters.encoding import Encoding
from luthier.curate.filters.endings import Endings
from luthier.curate.filters.judge import Judge
from luthier.curate.filters.language import Language
from luthier.curate.filters.length import Length, counter
from luthier.curate.filters.listed import Listed
from luthier.curate.filters.own import Own
from luthier.curate.filters.personal import Personal
from luthier.curate.filters.refusals import Refusals
from luthier.curate.filters.repetition import Repetition
from luthier.curate.steps import Curation
from luthier.data.types import Conversation, Dropped
from luthier.recipe.filter_schema import FilterSection
from luthier.runtime.console import progress

__all__ = ["Looked", "Tools", "build", "filter_rows"]

_PROGRESS_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What filters need beside their settings."""

    tokenizer: Any = None
    """For `length` in tokens."""
    cache_dir: Path | None = None
    """Where a judge's answers are kept."""
    dry: bool = False
    """Send nothing to a judge."""


@dataclass(slots=True)
class Looked:
    """What was found, for a person to look at; nothing of it is stored."""

    marks: dict[str, list[tuple[Conversation, Drop | Change]]] = field(default_factory=dict)
    """Filter -> rows as they were, and why they go or change."""


def build(section: FilterSection, tools: Tools) -> list[tuple[str, Filter]]:
    """The filters that are asked for, in their order.

    Raises:
        RecipeError: settings that cannot be used: no tokenizer, an unknown language, a file that cannot be imported.
        EnvironmentProblem: a library that is missing.
    """
    answers = section.answers
    made: dict[str, Callable[[Any], Filter]] = {
        "listed": Listed,
        "encoding": lambda own: Encoding(own.action),
        "pii": lambda own: Personal(own.action, own.kinds),
        "length": lambda own: Length(own, counter(own.unit, tools.tokenizer), answers),
        "echo": lambda own: Echo(own.min_characters, answers),
        "endings": lambda own: Endings(own.min_words, answers),
        "refusals": lambda own: Refusals.of(own.patterns, answers),
        "boilerplate": lambda own: Boilerplate(own, answers),
        "repetition": lambda own: Repetition(own, answers),
        "language": lambda own: Language(own, answers),
        "judge": lambda own: Judge(own, tools.cache_dir, tools.dry),
    }
    found: list[tuple[str, Filter]] = []
    for name in section.named():
        if name == "python":
            found += [("python", Own.of(one)) for one in section.python]
        else:
            found.append((name, made[name](getattr(section, name))))
    return found


def filter_rows(
    curation: Curation, section: FilterSection, tools: Tools, *, looked: Looked | None = None
) -> dict[str, dict[str, Any]]:
    """Run every filter; rows leave and change in `curation`.

    Returns:
        Of each filter: rows looked at, dropped, changed, seconds, and its own counts. Also in `curation.report`.

    Raises:
        RecipeError, EnvironmentProblem: as `build`.
        RunFailed: a function of the user fails, or a judge.
    """
    stages: dict[str, dict[str, Any]] = {}
    for number, (name, one) in enumerate(build(section, tools)):
        key = name if name not in stages else f"{name} {number}"
        stages[key] = _run(curation, name, one, looked)
    curation.report["filters"] = {
        "settings": section.model_dump(mode="json", exclude_none=True),
        "stages": stages,
    }
    return stages


def _run(curation: Curation, name: str, one: Filter, looked: Looked | None) -> dict[str, Any]:
    rows = curation.train
    started = time.monotonic()
    dropped: dict[int, tuple[Dropped, dict[str, Any]]] = {}
    changed: dict[int, tuple[Conversation, dict[str, Any]]] = {}
    with _bar(name, len(rows)) as advance:
        for index, verdict in enumerate(one.look(rows)):
            advance()
            if verdict is None:
                continue
            if looked is not None:
                looked.marks.setdefault(name, []).append((rows[index], verdict))
            ref = rows[index].ref
            record = {"file": ref.file, "line": ref.line, "source": ref.source}
            told = {"stage": name, "detail": verdict.detail, **verdict.facts}
            if isinstance(verdict, Drop):
                why = Dropped(ref, "filtered", f"{name}: {verdict.detail}")
                dropped[index] = (why, {**record, "reason": "filtered", **told})
            else:
                changed[index] = (verdict.row, {**record, "changed": verdict.what, **told})
    if isinstance(one, Judge):
        curation.scores = dict(one.scores)
        places = [(row.ref, one.scores[id(row)]) for row in rows if id(row) in one.scores]
        curation.scored = [
            {"file": ref.file, "line": ref.line, "source": ref.source, "score": score} for ref, score in places
        ]
    curation.change(changed)
    curation.drop(dropped)
    seconds = round(time.monotonic() - started, 3)
    counts = {"rows": len(rows), "dropped": len(dropped), "changed": len(changed), "seconds": seconds}
    return {**counts, **one.report()}


@contextmanager
def _bar(name: str, rows: int) -> Iterator[Callable[[], None]]:
    """A progress bar, for many rows."""
    if rows < _PROGRESS_ROWS or name == "judge":
        yield lambda: None
        return
    with progress(f"filter {name}", rows, "rows") as bar:
        yield bar.advance
