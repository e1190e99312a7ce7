"""All rows of a recipe, ready to train: read, tokenised with proven masks, split, weighted, packed.

Read `prepare` from top to bottom. Whatever is wrong with the rows is collected and reported at
once; whatever happens to a row on the way (dropped, cut, altered by the template) is counted and
listed in the manifest. Tokenised rows are cached by content (`cache.py`). Rows of preferences take the same way: each
answer with its prompt is tokenised and proven as a row is, then the shared prompt is cut off (`branching.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data import cache
from luthier.data.branching import tokenize_preferences
from luthier.data.content import content_hash
from luthier.data.curated import Curate, Curated
from luthier.data.describe import build_manifest
from luthier.data.losses import account, note_records
from luthier.data.prepared import Prepared, mix_rows, pack_rows, require_targets, wanted_sources, warn, warn_raw
from luthier.data.sources import SourceResult, is_raw, read_conversations
from luthier.data.split import count_duplicates, overlapping, split_validation
from luthier.data.streaming import prepare_streaming, streams
from luthier.data.tally import Tally
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized, tokenize_all
from luthier.data.types import Conversation, Dropped, TrainRow
from luthier.data.workers import CHUNK_ROWS, tokenize_chunks
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import DataSection
from luthier.runtime.console import note, progress
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem, RecipeError

__all__ = ["Prepared", "prepare"]

_PROGRESS_ROWS = 2_000


def prepare(
    section: DataSection,
    tokenizer: Any,
    *,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    kind: RowKind = "tokens",
    curate: Curate | None = None,
    keep_rows: bool = False,
) -> Prepared:
    """Read, tokenise, split and pack the rows of a recipe.

    Args:
        section: `data` of the recipe.
        tokenizer: transformers fast tokenizer with the template to use.
        seed: `train.seed`: decides the validation split and fractional source weights.
        template_kwargs: `model.chat_template_kwargs`.
        cache_dir: where to keep tokenised rows; None: nowhere.
        kind: what the objective trains on (`recipe.objective_kind.row_kind`).
        curate: decides which training rows stay (`luthier.curate.apply.curator`).
        keep_rows: hand on the rows themselves, too, not only their tokens; they stay in memory then.

    Raises:
        DataError: rows that cannot be used (all are reported), nothing left to train on, or a share that a source
            cannot give.
        RecipeError: `data.loss_on: all` with preferences.
    """
    if kind != "tokens" and section.loss_on == "all":
        message = "`data.loss_on: all` would count the prompt, and objectives over preferences compare answers"
        raise RecipeError(code="C110", message=message, hint="remove it, or write last_assistant")
    template = ChatTemplate(tokenizer, kwargs=template_kwargs, control_tokens=section.control_tokens)
    if not keep_rows and streams(section, kind, curate):
        return prepare_streaming(section, template, seed=seed, cache_dir=cache_dir)
    sources, held_out = _read(section, kind)
    train_rows = [row for source in sources for row in source.conversations]
    own_validation = list(held_out.conversations) if held_out else []
    results = [*sources, *([held_out] if held_out else [])]
    contents = [result.hash for result in results]
    curated = curate(train_rows, own_validation) if curate else None
    if curated:
        train_rows, contents = curated.rows, [content_hash(curated.rows), content_hash(own_validation)]
    outcomes, cache_state = _tokenize([*train_rows, *own_validation], template, section, kind, cache_dir, contents)
    by_row = {id(row): outcome for row, outcome in zip([*train_rows, *own_validation], outcomes, strict=True)}
    dropped = [item for result in results for item in result.dropped] + (curated.dropped if curated else [])
    tally = Tally(section)
    tally.drop_all(dropped)
    for outcome in outcomes:
        tally.add(outcome)
    dropped += [outcome.result for outcome in outcomes if isinstance(outcome.result, Dropped)]
    tally.raise_refused()

    kept, validation_rows = _split(
        train_rows, own_validation if held_out else None, by_row, section, seed=seed, curated=curated
    )
    mixed = mix_rows(kept, _examples(kept, by_row), section, seed)
    tally.drop_all(mixed.left_out)
    train = _examples(mixed.rows, by_row)
    validation = _examples(validation_rows, by_row)
    require_targets(any(example.trained_tokens for example in train), tally, sum(result.rows for result in results))
    packs, capacity = pack_rows([len(example) for example in train], section, kind)
    manifest = build_manifest(
        sources=results, train=train, validation=validation, packs=packs, tally=tally,
        duplicates=count_duplicates(train_rows), overlap=len(overlapping(kept, validation_rows)), template=template,
        cache_state=cache_state, kind=kind, capacity=capacity,
    )  # fmt: skip
    manifest["mix"] = mixed.report
    if curated:
        manifest["curated"] = curated.report
    losses = account(
        results, used=mixed.rows, held_out=validation_rows, dropped=[*dropped, *mixed.left_out],
        full=curated.full if curated else {},
        changes=_changes([*{id(row): row for row in mixed.rows}.values(), *validation_rows], by_row, curated),
    )  # fmt: skip
    manifest["losses"] = losses.summary
    warn(manifest)
    warn_raw(is_raw(train_rows), tokenizer)
    return Prepared(
        train=train, validation=validation, packs=packs, manifest=manifest, curated=curated, losses=losses.records,
        rows=mixed.rows if keep_rows else None,
    )  # fmt: skip


def _split(
    train: Sequence[Conversation], own_validation: Sequence[Conversation] | None, by_row: Mapping[int, Tokenized],
    section: DataSection, *, seed: int, curated: Curated | None,
) -> tuple[list[Conversation], list[Conversation]]:  # fmt: skip
    """(rows to train on, rows to validate on), of those that were not dropped."""

    def usable(rows: Sequence[Conversation]) -> list[Conversation]:
        return [row for row in rows if not isinstance(by_row[id(row)].result, Dropped)]

    if own_validation is not None:
        return usable(train), usable(own_validation)
    groups = curated.groups if curated else None
    return split_validation(usable(train), section.validation, seed=seed, groups=groups)


def _changes(
    rows: Sequence[Conversation], by_row: Mapping[int, Tokenized], curated: Curated | None
) -> list[dict[str, Any]]:
    """What is otherwise than in the files, of rows that are used: what curation changed, then what tokenising did."""
    found: list[dict[str, Any]] = []
    for row in rows:
        found += curated.changes.get(id(row), ()) if curated else ()
        result = by_row[id(row)].result
        found += [] if isinstance(result, Dropped) else note_records(row.ref, result.notes)
    return found


def _read(section: DataSection, kind: RowKind) -> tuple[list[SourceResult], SourceResult | None]:
    """Conversations of every source, and of the validation file if there is one; problems of all of them at once."""
    results: list[SourceResult] = []
    problems: list[Problem] = []
    for index, source in enumerate(wanted_sources(section)):
        try:
            results.append(
                read_conversations(source, index, on_empty=section.on_empty, loss_on=section.loss_on, kind=kind)
            )
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems=problems)
    return results[: len(section.train)], results[-1] if section.validation.path else None


def _tokenize(
    rows: Sequence[Conversation],
    template: ChatTemplate,
    section: DataSection,
    kind: RowKind,
    cache_dir: Path | None,
    contents: Sequence[str],
) -> tuple[list[Tokenized], str]:
    """Outcome of every row, and `hit` or `miss: why`."""
    if cache_dir is None:
        return _tokenize_now(rows, template, section, kind), "miss: no cache"
    parts = cache.key_parts(contents, template, section, kind)
    found = cache.load(cache_dir, parts, [row.ref for row in rows])
    if found is not None:
        return found, "hit"
    state = f"miss: {cache.why_missing(cache_dir, parts)}"
    outcomes = _tokenize_now(rows, template, section, kind)
    try:
        cache.save(cache_dir, parts, outcomes)
    except EnvironmentProblem as problem:
        note(f"tokenised rows are not cached: {problem.problems[0].message}", style="yellow")
        state += "; not stored"
    return outcomes, state


def _tokenize_now(
    rows: Sequence[Conversation], template: ChatTemplate, section: DataSection, kind: RowKind
) -> list[Tokenized]:
    outcomes: list[Tokenized] = []
    tokenize = tokenize_all if kind == "tokens" else tokenize_preferences
    chunks = (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
    with progress("tokenise", len(rows), "rows", above=_PROGRESS_ROWS) as bar:
        for chunk in tokenize_chunks(chunks, tokenize, template, section):
            for outcome in chunk:
                outcomes.append(outcome)
                bar.advance()
    return outcomes


def _examples(rows: Sequence[Conversation], by_row: Mapping[int, Tokenized]) -> list[TrainRow]:
    results = (by_row[id(row)].result for row in rows)
    return [result for result in results if not isinstance(result, Dropped)]
