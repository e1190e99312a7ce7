"""`data.decontaminate` of a recipe: training rows against evaluation tasks, validation file and further files.

Without the key a quick look is taken all the same and only warns: at most 20,000 training rows against 2,000 evaluation
rows, evenly spread. What was found is kept in Luthier's cache under the content of the rows and the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.curate import memory
from luthier.curate.contamination.run import Decontaminated, Match, decontaminate, part_name
from luthier.curate.dedup.embed import find_model
from luthier.curate.steps import Curation
from luthier.data.content import content_hash
from luthier.data.sources import read_conversations
from luthier.data.types import Conversation, Dropped
from luthier.recipe.decontaminate_schema import AgainstSource, DecontaminateSection
from luthier.recipe.schema import DataSection, Source, ValidationSection
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, LuthierError, Problem
from luthier.runtime.hashing import hash_folder

__all__ = [
    "STAGE", "Evaluation", "EvaluationSet", "check", "found_in", "in_words", "read_against", "record_of", "sure_counts",
]  # fmt: skip

STAGE = "decontaminate"
"""`stage` of the records."""
_QUICK_ROWS = 20_000
_QUICK_AGAINST = 2_000
_SURE = 0.25
"""Least certainty of what is warned of unasked. Of the clean rows of GSM8K none but variants reaches it."""
_LISTED = 50
_MODEL_FILES = ("*.safetensors", "*.json")
_HINT = "`data.decontaminate: {action: drop}` leaves them out, {action: off} looks for none"


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Rows that a model is measured with."""

    name: str
    """Task, or file."""
    rows: Sequence[Conversation]
    limit: int | None = None
    """Most rows that were read of it (`limit` of a task): others are not scored, and not looked for."""

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"name": self.name, "rows": len(self.rows), **({} if self.limit is None else {"limit": self.limit})}


Evaluation = Callable[[], Sequence[EvaluationSet]]
"""Reads the tasks of a recipe."""


def read_against(sources: Sequence[AgainstSource]) -> list[EvaluationSet]:
    """The files of `data.decontaminate.against`. Of a row without an answer the prompt is looked for all the same.

    Raises:
        DataError: files or rows that cannot be read; all are told.
    """
    found: list[EvaluationSet] = []
    problems: list[Problem] = []
    for index, source in enumerate(sources):
        try:
            rows = read_conversations(Source(**source.model_dump()), index, on_empty="keep").conversations
            found.append(EvaluationSet(source.path, rows))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems=problems)
    return found


def found_in(
    rows: Sequence[Conversation],
    against: Sequence[Conversation],
    settings: DecontaminateSection,
    *,
    cache_dir: Path | None = None,
) -> Decontaminated:
    """`decontaminate`, from the cache when rows and settings are those of an earlier time."""
    own = settings.model_dump(mode="json", exclude={"against", "action", "variants"})
    model = hash_folder(find_model(settings.embedding_model), _MODEL_FILES) if settings.embedding is not None else None
    parts = {
        "what": STAGE,
        "rows": content_hash(rows),
        "against": content_hash(against),
        "settings": own,
        "model": model,
    }
    known = memory.load_value(cache_dir, parts)
    if known is not None:
        spans = ("spans", "of_spans", "kinds")
        matches = [
            Match(**{**item, **{key: tuple(map(tuple, item[key]) if key != "kinds" else item[key]) for key in spans}})
            for item in known["matches"]
        ]
        return Decontaminated(**{**known, "matches": matches})
    found = decontaminate(rows, against, settings)
    memory.save_value(cache_dir, parts, asdict(found))
    return found


def check(
    curation: Curation, *, section: DataSection, evaluation: Evaluation | None, cache_dir: Path | None = None
) -> None:
    """Report, drop or refuse the training rows that hold evaluation rows.

    Raises:
        DataError: `action: error`, and there are such rows; or evaluation files that cannot be read.
    """
    settings = section.decontaminate or DecontaminateSection()
    asked = section.decontaminate is not None
    if settings.action == "off":
        return
    sets = _sets(curation, settings, evaluation, asked=asked, validation=section.validation)
    against = [row for one in sets for row in one.rows]
    if not against:
        return
    names = [one.name for one in sets for _ in one.rows]
    rows, places = list(curation.train), list(range(len(curation.train)))
    every = 1
    if not asked:
        places = places[:: -(-len(rows) // _QUICK_ROWS) or 1]
        every = -(-len(against) // _QUICK_AGAINST) or 1
    looked, compared = [rows[place] for place in places], against[::every]
    found = found_in(looked, compared, settings, cache_dir=cache_dir)
    counted = {match.row for match in found.matches if match.verdict != "variant" or settings.variants}
    gone = counted if settings.action == "drop" else set()
    records = {
        places[match.row]: (
            record_of(match, looked, compared, names[match.of * every], dropped=match.row in gone), match,
        )
        for match in found.matches
    }  # fmt: skip
    bad = {place: pair for place, pair in records.items() if pair[1].row in counted}
    if settings.action == "error" and bad:
        raise _refused([(rows[place], pair[1], compared) for place, pair in bad.items()])
    curation.report[STAGE] = {
        "settings": settings.model_dump(mode="json"),
        "against": [one.to_json() for one in sets],
        "rows": found.rows, "of_rows": len(rows), "against_rows": found.against, "found": found.counts(),
        "sure": sure_counts(found), "evaluation_rows_found": found.touched, "too_short": dict(found.short),
        "dropped": len(bad) if settings.action == "drop" else 0,
    }  # fmt: skip
    if settings.action == "drop":
        curation.records += [record for place, (record, _) in records.items() if place not in bad]
        curation.drop(
            {
                place: (Dropped(rows[place].ref, "contaminated", in_words(match, compared)), record)
                for place, (record, match) in bad.items()
            }
        )
    else:
        curation.records += [record for record, _ in records.values()]
    _say(found, settings, len(rows), asked=asked)


def _sets(
    curation: Curation,
    settings: DecontaminateSection,
    evaluation: Evaluation | None,
    *,
    asked: bool,
    validation: ValidationSection,
) -> list[EvaluationSet]:
    sets: list[EvaluationSet] = []
    try:
        sets += evaluation() if evaluation is not None else []
    except LuthierError as error:
        if asked:
            raise
        note(
            f"warning: training rows are not checked against the evaluation: {error.problems[0].message}",
            style="yellow",
        )
    if curation.held_out and validation.path is not None:
        sets.append(EvaluationSet(validation.path, curation.held_out, validation.max_rows))
    return sets + read_against(settings.against)


def record_of(
    match: Match, rows: Sequence[Conversation], against: Sequence[Conversation], name: str, *, dropped: bool
) -> dict[str, Any]:
    """A match in full, for a file of records; `dropped` is false for a row that is listed only."""
    ref, of = rows[match.row].ref, against[match.of].ref
    return {
        "file": ref.file, "line": ref.line, "source": ref.source, "reason": "contaminated", "stage": STAGE,
        "dropped": dropped,
        "detail": in_words(match, against), "verdict": match.verdict,
        "evaluation": name, "evaluation_row": str(of), "found": match.side,
        "evidence": list(match.kinds), "scores": match.scores, "certainty": match.certainty,
        "part": part_name(rows[match.row], match.part), "spans": [list(span) for span in match.spans],
        "evaluation_spans": [list(span) for span in match.of_spans], "other_evaluation_rows": match.others,
    }  # fmt: skip


def in_words(match: Match, against: Sequence[Conversation]) -> str:
    """Why a row counts as contaminated, in one line."""
    how = {
        "copy": "copies",
        "reworded": "rewords",
        "answer": "holds the answer of",
        "variant": "has other numbers than",
    }
    shown = ", ".join(f"{kind} {match.scores[kind]:.2f}" for kind in match.kinds)
    return f"contaminated: {how[match.verdict]} the evaluation row {against[match.of].ref} ({shown})"


def sure_counts(found: Decontaminated) -> dict[str, int]:
    """Rows of each verdict that leave little doubt."""
    counts: dict[str, int] = {}
    for match in found.matches:
        if match.certainty >= _SURE:
            counts[match.verdict] = counts.get(match.verdict, 0) + 1
    return counts


def _refused(bad: Sequence[tuple[Conversation, Match, Sequence[Conversation]]]) -> DataError:
    problems = [
        Problem(code="D260", message=in_words(match, against), file=row.ref.file, line=row.ref.line,
                hint="take the row out, or write `data.decontaminate: {action: drop}`")
        for row, match, against in bad[:_LISTED]
    ]  # fmt: skip
    if len(bad) > _LISTED:
        message = f"{len(bad):,} training rows hold evaluation rows; the first {_LISTED} are listed"
        problems.append(Problem(code="D260", message=message))
    return DataError(problems=problems)


def _say(found: Decontaminated, settings: DecontaminateSection, rows: int, *, asked: bool) -> None:
    """Warn of what is sure; what is doubtful is in the file."""
    sure = sure_counts(found)
    variants = sure.pop("variant", 0)
    if settings.action == "drop" or not (sure or (asked and found.matches)):
        return
    total = sum(sure.values())
    what = ", ".join(f"{count:,} {verdict}" for verdict, count in sure.items()) or "none for sure"
    doubtful = len(found.matches) - total - variants
    more = f"; {doubtful:,} more are doubtful" if doubtful else ""
    more += f"; {variants:,} differ in their numbers" if variants else ""
    looked = "" if found.rows == rows else f" of {found.rows:,} looked at"
    hint = "" if asked else f"; {_HINT}"
    text = f"{total:,} training rows{looked} give evaluation rows away ({what}){more}{hint}"
    note(f"warning: {text}", style="yellow")
