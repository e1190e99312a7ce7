"""All rows of a recipe, ready to train: read, tokenised with proven masks, split, weighted, packed.

Read `prepare` from top to bottom. Whatever is wrong with the rows is collected and reported at
once; whatever happens to a row on the way (dropped, cut, altered by the template) is counted and
listed in the manifest. Tokenised rows are cached by content (`cache.py`). Rows of preferences take the same way: each
answer with its prompt is tokenised and proven as a row is, then the shared prompt is cut off (`branching.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data import cache
from luthier.data.branching import tokenize_preferences
from luthier.data.content import content_hash, row_hash
from luthier.data.curated import Curate, Curated
from luthier.data.describe import build_manifest
from luthier.data.losses import account, note_records
from luthier.data.mask import WAYS_OUT
from luthier.data.pack import one_by_one, pack
from luthier.data.sources import SourceResult, is_raw, read_conversations
from luthier.data.split import expand_by_weight, split_validation
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized, tokenize_all
from luthier.data.types import Conversation, Dropped, Pack, TrainRow
from luthier.recipe.objective_kind import RowKind, pack_capacity
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.console import note, progress
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem, RecipeError

__all__ = ["Prepared", "prepare", "weigh"]

_PROGRESS_ROWS = 2_000
_LISTED_PROBLEMS = 50
_CUT_WARNING = 0.05

_CODES = {"overlong": "D220", "empty": "D221", "equal": "D219", "unprovable": "D222", "control_token": "D223"}
_HINTS = {
    "overlong": "raise `data.max_length`, or choose `data.overlong: drop` or `truncate`",
    "empty": "mend the row, or leave such rows out with `data.on_empty: drop`",
    "equal": "mend the row, or leave such rows out with `data.on_empty: drop`",
    "unprovable": WAYS_OUT,
    "control_token": "mend the row, or encode such tokens as text with `data.control_tokens: text`",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Rows to train on."""

    train: list[TrainRow]
    """In the order of the sources; rows of a source with a weight above 1 stand several times. All of one type:
    `Example`, or for preferences `Branched`."""
    validation: list[TrainRow]
    packs: list[Pack]
    """Training sequences: indices into `train`; one index each when packing is off."""
    manifest: dict[str, Any]
    """What was read, used, dropped, cut and proven; JSON."""
    curated: Curated | None = None
    """What was decided over all rows as a set, before they were tokenised."""
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Each dropped row and each change, in full."""


def prepare(
    section: DataSection,
    tokenizer: Any,
    *,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    kind: RowKind = "tokens",
    curate: Curate | None = None,
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

    Raises:
        DataError: rows that cannot be used (all are reported), or nothing left to train on.
        RecipeError: `data.loss_on: all` with preferences.
    """
    if kind != "tokens" and section.loss_on == "all":
        message = "`data.loss_on: all` would count the prompt, and objectives over preferences compare answers"
        raise RecipeError(code="C110", message=message, hint="remove it, or write last_assistant")
    template = ChatTemplate(tokenizer, kwargs=template_kwargs, control_tokens=section.control_tokens)
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
    dropped = [item for result in results for item in result.dropped]
    dropped += curated.dropped if curated else []
    dropped += [outcome.result for outcome in outcomes if isinstance(outcome.result, Dropped)]
    _raise_for(dropped, section)

    def usable(rows: Sequence[Conversation]) -> list[Conversation]:
        return [row for row in rows if not isinstance(by_row[id(row)].result, Dropped)]

    if held_out:
        kept, validation_rows = usable(train_rows), usable(own_validation)
    else:
        kept, validation_rows = split_validation(
            usable(train_rows), section.validation, seed=seed, groups=curated.groups if curated else None
        )
    used, left_out = weigh(kept, section, seed)
    dropped += left_out
    train = _examples(used, by_row)
    validation = _examples(validation_rows, by_row)
    _require_targets(train, dropped, sum(result.rows for result in results))
    lengths = [len(example) for example in train]
    capacity = pack_capacity(kind, section.max_length)
    packs = pack(lengths, capacity) if section.packing else one_by_one(lengths)
    manifest = build_manifest(
        sources=results, train=train, validation=validation, packs=packs, outcomes=outcomes, dropped=dropped,
        rows=(train_rows, kept, validation_rows), section=section, template=template, cache_state=cache_state,
        kind=kind, capacity=capacity,
    )  # fmt: skip
    if curated:
        manifest["curated"] = curated.report
    losses = account(
        results, used=used, held_out=validation_rows, dropped=dropped,
        full=curated.full if curated else {},
        changes=_changes([*{id(row): row for row in used}.values(), *validation_rows], by_row, curated),
    )  # fmt: skip
    manifest["losses"] = losses.summary
    _warn(manifest)
    _warn_raw(train_rows, tokenizer)
    return Prepared(
        train=train, validation=validation, packs=packs, manifest=manifest, curated=curated, losses=losses.records
    )


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
    wanted = list(section.train)
    own = section.validation
    if own.path:
        wanted.append(Source(path=own.path, format=own.format, map=own.map, limit=own.max_rows))
    results: list[SourceResult] = []
    problems: list[Problem] = []
    for index, source in enumerate(wanted):
        try:
            results.append(
                read_conversations(source, index, on_empty=section.on_empty, loss_on=section.loss_on, kind=kind)
            )
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems=problems)
    return results[: len(section.train)], results[-1] if own.path else None


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

    def collect(advance: Callable[[], None]) -> None:
        for outcome in tokenize(rows, template, section=section):
            outcomes.append(outcome)
            advance()

    if len(rows) <= _PROGRESS_ROWS:
        collect(lambda: None)
    else:
        with progress("tokenise", len(rows), "rows") as bar:
            collect(bar.advance)
    return outcomes


def _raise_for(dropped: Sequence[Dropped], section: DataSection) -> None:
    """Report all rows that the recipe does not allow to drop."""
    refused = {"unprovable", "control_token"}
    refused |= {"empty", "equal"} if section.on_empty == "error" else set()
    refused |= {"overlong"} if section.overlong == "error" else set()
    # A row whose answer was cut off is the doing of `overlong: truncate`, which the recipe asked for.
    bad = [item for item in dropped if item.reason in refused and not item.detail.startswith("cut at")]
    if not bad:
        return
    problems = [
        Problem(
            code=_CODES[item.reason], message=item.detail, file=item.ref.file, line=item.ref.line,
            hint=_HINTS[item.reason],
        )
        for item in bad[:_LISTED_PROBLEMS]
    ]  # fmt: skip
    if len(bad) > _LISTED_PROBLEMS:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in Counter(item.reason for item in bad).items())
        message = f"{len(bad):,} rows cannot be used ({counts}); the first {_LISTED_PROBLEMS} are listed"
        problems.append(Problem(code="D224", message=message))
    raise DataError(problems=problems)


def weigh(rows: list[Conversation], section: DataSection, seed: int) -> tuple[list[Conversation], list[Dropped]]:
    """Repeat or thin out the rows of each source by its weight."""
    if all(source.weight == 1.0 for source in section.train):
        return rows, []
    used: list[Conversation] = []
    left_out: list[Dropped] = []
    for index, source in enumerate(section.train):
        own = [row for row in rows if row.ref.source == index]
        chosen = expand_by_weight(len(own), source.weight, seed, hashes=[row_hash(row) for row in own])
        used += [own[place] for place in chosen]
        missing = sorted(set(range(len(own))) - set(chosen))
        detail = f"not among the rows that `weight: {source.weight:g}` takes"
        left_out += [Dropped(own[place].ref, "sampled_out", detail) for place in missing]
    return used, left_out


def _examples(rows: Sequence[Conversation], by_row: Mapping[int, Tokenized]) -> list[TrainRow]:
    results = (by_row[id(row)].result for row in rows)
    return [result for result in results if not isinstance(result, Dropped)]


def _require_targets(train: Sequence[TrainRow], dropped: Sequence[Dropped], rows: int) -> None:
    if any(example.trained_tokens for example in train):
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in Counter(item.reason for item in dropped).items())
    message = f"nothing is left to train on: of {rows:,} rows {counts or 'none can be used'}"
    shown = "; ".join(f"{item.ref}: {item.detail}" for item in dropped[:3])
    raise DataError(problems=[Problem(code="D225", message=message, hint=f"for instance {shown}" if shown else None)])


def _warn(manifest: Mapping[str, Any]) -> None:
    """Say aloud what a reader of the manifest would want to have known before."""
    total = manifest["tokens"] + manifest["cut_tokens"]
    if manifest["cut_tokens"] > _CUT_WARNING * total:
        share = manifest["cut_tokens"] / total
        note(f"warning: {share:.0%} of all tokens are cut off or dropped by `data.max_length`", style="yellow")
    if manifest["train_validation_overlap"]:
        count = manifest["train_validation_overlap"]
        note(f"warning: {count:,} validation rows are training rows, too, word for word", style="yellow")
    preferences = manifest.get("preferences", {})
    if preferences.get("conflicts"):
        what = "say the opposite of another row: same prompt, the same answers the other way round"
        note(f"warning: {preferences['conflicts']:,} rows {what}", style="yellow")
    if "preferences" in manifest and manifest["duplicates"]:
        note(f"warning: {manifest['duplicates']:,} rows repeat an earlier row word for word", style="yellow")


def _warn_raw(rows: Sequence[Conversation], tokenizer: Any) -> None:
    """Plain text for a model that is served with a template is nearly always a mistake."""
    if is_raw(rows) and getattr(tokenizer, "chat_template", None):
        what = "the preferences are raw text; they do not go through the chat template that the tokenizer has"
        note(f"warning: {what}. `map: {{user: prompt}}` makes a chat of prompt and answers", style="yellow")
