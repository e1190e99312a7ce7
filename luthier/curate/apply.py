"""The curated steps of a recipe: what `prepare` calls between reading and tokenising.

    data.filters                      mend, redact or drop rows for what they say
    data.dedup                        drop duplicates among the training rows of all sources
    data.validation.near_duplicates   keep near-duplicates on one side of the validation split
    data.decontaminate                training rows that hold evaluation rows: report, drop or refuse them

What was found is kept in Luthier's cache under the content of the rows and the settings, as tokenised rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.curate import memory
from luthier.curate.contamination.step import Evaluation, check
from luthier.curate.dedup.across import groups_of_near_duplicates, near_held_out_rows
from luthier.curate.dedup.clusters import Clusters
from luthier.curate.dedup.embed import find_model
from luthier.curate.dedup.minhash import bands_for
from luthier.curate.dedup.run import Deduplicated, Duplicate, deduplicate
from luthier.curate.filters.run import Tools, filter_rows
from luthier.curate.scores import read_scores
from luthier.curate.steps import Curation, Step
from luthier.data.content import content_hash, group_hash
from luthier.data.curated import Curate, Curated
from luthier.data.types import Conversation, Dropped, RowRef
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.schema import DataSection, DedupSection, Source
from luthier.runtime.console import note
from luthier.runtime.hashing import hash_folder, hash_json

__all__ = ["curator", "find_duplicates", "in_words"]

JUDGED = "@judge"
"""As `dedup.score`: the score of `data.filters.judge`."""
_LARGE_GROUP = 0.2
_MODEL_FILES = ("*.safetensors", "*.json")


def curator(
    section: DataSection,
    *,
    cache_dir: Path | None = None,
    tokenizer: Any = None,
    evaluation: Evaluation | None = None,
) -> Curate | None:
    """The steps that a recipe asks for, in their order; None if it asks for none.

    Args:
        section: `data` of the recipe.
        cache_dir: where found duplicates are kept; a judge's answers are kept beside it. None: nowhere.
        tokenizer: for `data.filters.length` in tokens.
        evaluation: reads the evaluation tasks, if the recipe has any.
    """
    steps: list[Step] = []
    if section.filters is not None:
        tools = Tools(tokenizer=tokenizer, cache_dir=cache_dir.with_name("judge") if cache_dir else None)
        steps.append(partial(_filter, section=section.filters, tools=tools))
    if section.dedup is not None:
        steps.append(partial(_drop_duplicates, section=section, cache_dir=cache_dir))
    if section.validation.near_duplicates is not None:
        steps.append(partial(_divide, section=section))
    if _compares(section, evaluation):
        steps.append(partial(check, section=section, evaluation=evaluation, cache_dir=cache_dir))
    if not steps:
        return None

    def curate(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> Curated:
        curation = Curation(list(train), held_out)
        for step in steps:
            step(curation)
        return curation.done()

    return curate


def _compares(section: DataSection, evaluation: Evaluation | None) -> bool:
    if section.decontaminate is not None:
        return section.decontaminate.action != "off"
    return evaluation is not None or section.validation.path is not None


def _filter(curation: Curation, *, section: FilterSection, tools: Tools) -> None:
    filter_rows(curation, section, tools)


def _drop_duplicates(curation: Curation, *, section: DataSection, cache_dir: Path | None) -> None:
    assert section.dedup is not None
    rows = curation.train
    scores = _judged(curation, section) if section.dedup.score == JUDGED else None
    found = find_duplicates(rows, section.dedup, section.train, cache_dir=cache_dir, scores=scores)
    curation.drop(
        {
            item.row: (Dropped(rows[item.row].ref, "duplicate", in_words(item, rows)), item.to_json(rows))
            for item in found.dropped
        }
    )
    curation.report["dedup"] = {"settings": section.dedup.model_dump(mode="json"), "dropped": found.counts(),
                                "kept": len(found.kept), "stages": found.stages}  # fmt: skip


def _judged(curation: Curation, section: DataSection) -> dict[RowRef, float]:
    """The judge's score of each row; undesired answers, which it is not asked about, have the lowest."""
    assert section.filters is not None and section.filters.judge is not None
    lowest = section.filters.judge.lowest
    return {row.ref: curation.scores.get(id(row), lowest) for row in curation.train}


def find_duplicates(
    rows: Sequence[Conversation],
    dedup: DedupSection,
    sources: Sequence[Source],
    *,
    cache_dir: Path | None = None,
    scores: dict[RowRef, float] | None = None,
) -> Deduplicated:
    """`deduplicate`, from the cache when rows, scores and settings are those of an earlier time.

    Without `scores` they are read from the column `dedup.score`.
    """
    if scores is None and dedup.score is not None:
        scores = read_scores(sources, dedup.score)
    parts = {
        "rows": content_hash(rows),
        "settings": dedup.model_dump(mode="json"),
        "scores": hash_json([scores[row.ref] for row in rows]) if scores else None,
        "model": hash_folder(find_model(dedup.embedding_model), _MODEL_FILES) if dedup.semantic is not None else None,
    }
    known = memory.load(cache_dir, parts)
    if known is not None:
        return known
    found = deduplicate(rows, dedup, scores=scores)
    memory.save(cache_dir, parts, found)
    return found


def in_words(item: Duplicate, rows: Sequence[Conversation]) -> str:
    """Why a row was dropped, in one line."""
    of, kept = rows[item.of].ref, rows[item.kept].ref
    how = "says the same as" if item.stage == "exact" else f"is {item.similarity:.3f} similar to"
    later = "" if item.of == item.kept else f" (in turn dropped for {kept})"
    return f"{item.stage}: {how} {of}{later}"


def _divide(curation: Curation, *, section: DataSection) -> None:
    """Near-duplicates on one side: by dropping training rows where the validation rows are given, else by groups."""
    threshold = section.validation.near_duplicates
    assert threshold is not None
    settings = section.dedup or DedupSection()
    how: dict[str, Any] = {"on": settings.on, "ignore": settings.ignore}
    told: dict[str, Any] = {"threshold": threshold, **how, "bands": bands_for(threshold)[0]}
    curation.report["validation"] = told
    train = curation.train
    if section.validation.path is not None:
        leaks = near_held_out_rows(curation.held_out, train, threshold, **how)
        told["dropped"] = len(leaks)
        curation.drop(
            {
                index: _leak(train[index].ref, curation.held_out[of].ref, similarity)
                for index, (of, similarity) in leaks.items()
            }
        )
        return
    near = groups_of_near_duplicates(train, threshold, **how)
    largest = max(map(len, near), default=1)
    told |= {"groups": len(near), "rows_in_groups": sum(map(len, near)), "largest": largest}
    if largest > _LARGE_GROUP * len(train):
        share = largest / len(train)
        text = f"warning: one group of near-duplicates holds {share:.0%} of the rows; all of it is on one side"
        note(f"{text} of the validation split (data.validation.near_duplicates: {threshold:g})", style="yellow")
    curation.groups = _group_keys(train, near)


def _leak(row: RowRef, other: RowRef, similarity: float) -> tuple[Dropped, dict[str, Any]]:
    detail = f"validation: is {similarity:.3f} similar to the validation row {other}"
    record = {"file": row.file, "line": row.line, "source": row.source, "reason": "duplicate",
              "stage": "validation", "similarity": round(similarity, 6), "duplicate_of": str(other),
              "kept": str(other)}  # fmt: skip
    return Dropped(row, "duplicate", detail), record


def _group_keys(rows: Sequence[Conversation], near: Sequence[Sequence[int]]) -> dict[str, str]:
    """`group_hash` of a row -> that of the row that decides for its group: the first in the files, so that rows
    appended later join its side. Rows that have one hash (copies; pairs with one prompt) are in one group."""
    hashes = [group_hash(row) for row in rows]
    groups = Clusters(len(rows))
    for members in near:
        for row in members[1:]:
            groups.join(members[0], row)
    first: dict[str, int] = {}
    for row, key in enumerate(hashes):
        groups.join(first.setdefault(key, row), row)
    return {hashes[row]: hashes[name] for name, members in groups.groups().items() for row in members}
