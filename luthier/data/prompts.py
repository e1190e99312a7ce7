"""Rows of a recipe as prompts to be answered: what is asked, the reference answer, the columns beside it.

`prompt_rows.py` reads one row; here all of them are read, split and counted as rows to train on are (`prepare.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.describe import build_manifest
from luthier.data.losses import account
from luthier.data.pack import one_by_one
from luthier.data.prepared import Prepared, mix_rows
from luthier.data.prompt_rows import ARGUMENTS, Check, PromptRow, Wanted, read_prompt
from luthier.data.rows import Row
from luthier.data.sources import SourceResult, read_conversations, read_rows, source_files
from luthier.data.split import count_duplicates, overlapping, split_validation
from luthier.data.tally import Tally
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized
from luthier.data.types import Conversation, Dropped, Example, RowRef, TrainRow
from luthier.recipe.objective_kind import pack_capacity
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.console import note, progress
from luthier.runtime.errors import DataError, LuthierError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["Prompts", "prepare_prompts"]

_PROGRESS_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Prompts to train on and to validate with."""

    train: list[PromptRow]
    """In the order of the sources; rows of a source with a weight above 1 stand several times."""
    validation: list[PromptRow]
    prepared: Prepared
    """The same prompts as rows of tokens without a trained one, with the data manifest."""


def prepare_prompts(
    section: DataSection, tokenizer: Any, *, seed: int, template_kwargs: Mapping[str, Any] | None = None,
    reference_column: str | None = None, check: Check = lambda _: None, columns: bool = False,
    room: int | None = None,
) -> Prompts:  # fmt: skip
    """Read the rows of a recipe as prompts.

    Args:
        section: `data` of the recipe; `max_length` limits the prompt.
        tokenizer: with the template to use.
        seed: `train.seed`: decides the validation split and fractional source weights.
        template_kwargs: `model.chat_template_kwargs`.
        reference_column: column with the reference; None: the last assistant message.
        check: which references can be used; rows that fail it are errors, or dropped with `on_empty: drop`.
        columns: keep the other columns of each row.
        room: tokens the model holds besides the longest completion; None: unknown.

    Raises:
        DataError: rows that cannot be asked (all are reported), or no row is left.
    """
    template = ChatTemplate(tokenizer, kwargs=template_kwargs, control_tokens=section.control_tokens)
    short = room is not None and room < section.max_length
    wanted = Wanted(
        section=section, template=template, reference_column=reference_column, check=check, columns=columns,
        longest=room if short and room is not None else section.max_length,
        why_longest="the model holds no more beside the longest completion" if short else "`data.max_length`",
    )  # fmt: skip
    sources = [read_conversations(source, index, on_empty="keep") for index, source in enumerate(section.train)]
    held_out = _own_validation(section)
    rows = [row for source in sources for row in source.conversations]
    results = [*sources, *([held_out] if held_out else [])]
    own = list(held_out.conversations) if held_out else []
    outcomes = _read_all([*rows, *own], _columns_of(section, wanted), wanted)
    if held_out:
        kept, validation_rows = [row for row in rows if id(row) in outcomes.used], own
    else:
        kept, validation_rows = split_validation(
            [row for row in rows if id(row) in outcomes.used], section.validation, seed=seed
        )
    mixed = mix_rows(kept, [_as_example(outcomes.used[id(row)]) for row in kept], section, seed)
    train = [outcomes.used[id(row)] for row in mixed.rows]
    validation = [outcomes.used[id(row)] for row in validation_rows if id(row) in outcomes.used]
    if not train:
        counts = Counter(item.reason for item in outcomes.dropped)
        told = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        raise DataError(code="D225", message=f"no prompt is left of {len(rows):,} rows ({told or 'none'})")
    prepared = _as_prepared(
        train, validation, results, [*outcomes.dropped, *mixed.left_out], (rows, kept, validation_rows), wanted
    )
    prepared.manifest["mix"] = mixed.report
    return Prompts(train=train, validation=validation, prepared=prepared)


# -- reading


@dataclass(slots=True)
class _Outcomes:
    used: dict[int, PromptRow]
    """By `id` of the conversation."""
    dropped: list[Dropped]


def _own_validation(section: DataSection) -> SourceResult | None:
    own = section.validation
    if not own.path:
        return None
    source = Source(path=own.path, format=own.format, map=own.map, limit=own.max_rows)
    return read_conversations(source, len(section.train), on_empty="keep")


def _columns_of(section: DataSection, wanted: Wanted) -> dict[tuple[int, str, int], dict[str, Any]]:
    """The raw row of every conversation, by (source, file, line); empty where no column is wanted."""
    if not wanted.columns and wanted.reference_column is None:
        return {}
    sources = list(section.train)
    if section.validation.path:
        sources.append(Source(path=section.validation.path))
    found: dict[tuple[int, str, int], dict[str, Any]] = {}
    for index, source in enumerate(sources):
        notes: Counter[str] = Counter()
        for row in read_rows(source_files(source, notes), index, notes=notes):
            if isinstance(row, Row):
                found[(index, row.ref.file, row.ref.line)] = row.value
    hidden = sorted({name for value in found.values() for name in value} & set(ARGUMENTS)) if wanted.columns else []
    if hidden:
        note(f"  not passed to reward functions, for they have arguments of these names: {', '.join(hidden)}")
    return found


def _read_all(
    rows: Sequence[Conversation], raw: Mapping[tuple[int, str, int], dict[str, Any]], wanted: Wanted
) -> _Outcomes:
    outcomes = _Outcomes({}, [])
    problems: list[Problem] = []

    def read(row: Conversation) -> None:
        try:
            found = read_prompt(row, raw.get((row.ref.source, row.ref.file, row.ref.line), {}), wanted)
        except LuthierError as error:
            problems.extend(_at(row.ref, problem) for problem in error.problems)
            return
        if isinstance(found, PromptRow):
            outcomes.used[id(row)] = found
        elif (refused := _refused(found, wanted.section)) is not None:
            problems.append(refused)
        else:
            outcomes.dropped.append(found)

    with progress("prompts", len(rows), "rows", above=_PROGRESS_ROWS) as bar:
        for row in rows:
            read(row)
            bar.advance()
    if problems:
        raise DataError(problems=problems)
    return outcomes


def _refused(found: Dropped, section: DataSection) -> Problem | None:
    """The problem of a row that the recipe does not allow to drop."""
    place = {"file": found.ref.file, "line": found.ref.line}
    if found.reason == "empty" and section.on_empty == "error":
        hint = "mend the row, or leave such rows out with `data.on_empty: drop`"
        return Problem(code="D251", message=found.detail, hint=hint, **place)  # type: ignore[arg-type]
    if found.reason == "overlong" and section.overlong == "error":
        hint = "raise `data.max_length`, or choose `data.overlong: drop`"
        return Problem(code="D220", message=found.detail, hint=hint, **place)  # type: ignore[arg-type]
    return None


def _at(ref: RowRef, problem: Problem) -> Problem:
    if problem.file is not None:
        return problem
    return Problem(code=problem.code, message=problem.message, file=ref.file, line=ref.line, hint=problem.hint)


# -- after reading


def _as_example(row: PromptRow) -> Example:
    """The prompt as a row of which nothing is trained."""
    return Example(ids=row.ids, weights=[0.0] * len(row.ids), ref=row.ref)


def _as_prepared(
    train: Sequence[PromptRow], validation: Sequence[PromptRow], results: Sequence[SourceResult],
    dropped: Sequence[Dropped], rows: tuple[Sequence[Conversation], Sequence[Conversation], Sequence[Conversation]],
    wanted: Wanted,
) -> Prepared:  # fmt: skip
    """Prompts as rows of which nothing is trained, with a manifest of the usual form."""
    examples = {id(row): _as_example(row) for row in train}
    held_out: list[TrainRow] = [_as_example(row) for row in validation]
    once = list(examples.values())
    items: list[TrainRow] = [examples[id(row)] for row in train]
    packs = one_by_one([len(item) for item in items])
    tally = Tally(wanted.section)
    tally.drop_all(dropped)
    for item in [*once, *held_out]:
        tally.add(Tokenized(result=item, full_tokens=len(item)))
    everything, kept, validated = rows
    manifest = build_manifest(
        sources=results, train=items, validation=held_out, packs=packs, tally=tally,
        duplicates=count_duplicates(everything), overlap=len(overlapping(kept, validated)), template=wanted.template,
        cache_state="none: prompts are rendered anew", kind="prompts",
        capacity=pack_capacity("prompts", wanted.section.max_length),
    )  # fmt: skip
    answers = [[row.reference, dict(row.columns)] for row in (*train, *validation)]
    manifest["hash"] = hash_json([manifest["hash"], answers])
    manifest["rows_are"] = "prompts"
    manifest["references"] = sum(row.reference is not None for row in train)
    losses = account(results, used=train, held_out=validation, dropped=dropped, full={}, changes=[])
    manifest["losses"] = losses.summary
    return Prepared(train=items, validation=held_out, packs=packs, manifest=manifest, losses=losses.records)
