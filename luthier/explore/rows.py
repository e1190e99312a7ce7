"""The rows to look at: of files, of a recipe, or of a run, each with its split and, where a tokenizer is known, tokens.

Rows of a recipe are split, dropped and tokenised by `prepare`, as training would; they are read once more for their
words, because training keeps tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.sources import SourceResult, read_conversations
from luthier.data.types import Conversation, Dropped, TrainRow
from luthier.recipe.objective_kind import RowKind, read_as, row_kind
from luthier.recipe.schema import DataSection, ModelSection, Recipe, Source
from luthier.runtime.console import note, progress
from luthier.runtime.errors import DataError, Problem

if TYPE_CHECKING:
    from luthier.data.prepared import Prepared
    from luthier.pipeline.session import Session

__all__ = ["Explored", "Item", "explore_files", "explore_recipe"]

_ANY_LENGTH = 1 << 24
_PROGRESS_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row."""

    row: Conversation
    split: str
    """`train`, `validation`, `test`, or `dropped`: a row of the recipe that is not trained."""
    source: str
    """The file, folder or task it came from, as the recipe or the command names it."""
    tokens: TrainRow | None = None
    """As the model sees it; None without a tokenizer, and for dropped rows."""
    why: str = ""
    """Why it is dropped."""

    @property
    def ref(self) -> str:
        """`file:line`."""
        return str(self.row.ref)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """Rows as a set."""

    title: str
    items: list[Item]
    tokenizer: Any = None
    max_length: int | None = None
    """`data.max_length` of the recipe."""
    empty: list[Dropped] = field(default_factory=list)
    """Rows with nothing to train on; they are in no other list."""
    prepared: Prepared | None = None
    """Of a recipe: the rows as its training gets them."""
    results: list[SourceResult] = field(default_factory=list)
    """What each source gave."""


def explore_files(
    paths: Sequence[str],
    *,
    tests: Sequence[str] = (),
    format: str = "auto",  # noqa: A002 (the key is called so)
    map: dict[str, str] | None = None,  # noqa: A002
    kind: RowKind = "tokens",
    tokenizer: str | None = None,
) -> Explored:
    """Rows of files: those of `paths` are `train`, those of `tests` are `test`.

    Args:
        paths: Files, folders, globs or hub data sets.
        tests: The same, to hold against the rows of `paths`.
        format: As in `data.train`.
        map: As in `data.train`.
        kind: What the rows are for.
        tokenizer: Model folder, hub id or embedded model whose tokenizer and chat template count the tokens.

    Raises:
        DataError: rows that cannot be read; all are told.
        LuthierError: no such tokenizer.
    """
    wanted = [(path, "train") for path in paths] + [(path, "test") for path in tests]
    sources = [Source.model_validate({"path": path, "format": format, "map": map or {}}) for path, _ in wanted]
    results = _read_all(sources, kind=read_as(kind), on_empty="keep" if kind == "prompts" else "drop")
    loaded = None
    if tokenizer is not None:
        from luthier.model.tokenizer import load_tokenizer

        loaded = load_tokenizer(ModelSection(name_or_path=tokenizer))
    items: list[Item] = []
    for (path, split), result in zip(wanted, results, strict=True):
        section = DataSection(train=[Source(path=path)], max_length=_ANY_LENGTH, on_empty="drop")
        items += _items(result.conversations, split, path, loaded, section, kind=kind)
    names = ", ".join(Path(path).name for path, _ in wanted[:3]) + (" ..." if len(wanted) > 3 else "")
    return Explored(title=names, items=items, tokenizer=loaded, empty=_empty(results), results=results)


def explore_recipe(recipe: Recipe, *, tests: Sequence[str] = ()) -> Explored:
    """Rows of a recipe: its training, validation and dropped rows, and as test rows those of its tasks.

    Args:
        recipe: The recipe.
        tests: Files with test rows, instead of those of the tasks.

    Raises:
        LuthierError: what `luthier data check` would refuse, or a task's rows cannot be read.
    """
    from luthier.pipeline.session import Session
    from luthier.runs.folder import RunFolder

    session = Session(recipe, RunFolder(Path(recipe.output_dir)))
    section, kind = recipe.data, row_kind(recipe.objective.name)
    own = section.validation
    sources = list(section.train)
    if own.path:
        sources.append(Source(path=own.path, format=own.format, map=own.map, limit=own.max_rows))
    results = _read_all(
        sources, kind=read_as(kind), on_empty="keep" if kind == "prompts" else "drop", loss_on=section.loss_on
    )
    items = _split_items(session, sources, results)
    items += _test_items(session, tests, kind)
    return Explored(
        title=recipe.name or Path(recipe.output_dir).name, items=items, tokenizer=session.tokenizer,
        max_length=section.max_length, empty=_empty(results), prepared=session.prepared, results=results,
    )  # fmt: skip


def _split_items(session: Session, sources: Sequence[Source], results: Sequence[SourceResult]) -> list[Item]:
    """Each row as `prepare` decided on it; a row that a step of the recipe changed, as it is after that."""
    prepared = session.prepared
    tokens = {_key(row): row for row in (*prepared.validation, *prepared.train)}
    split = {_key(row): "train" for row in prepared.train} | {_key(row): "validation" for row in prepared.validation}
    changed = {_key(row): row for row in prepared.curated.rows} if prepared.curated else {}
    why = {item["ref"]: f"{item['reason']}: {item['detail']}" for item in prepared.manifest["dropped_rows"]}
    return [
        Item(
            row=changed.get(_key(row), row), split=split.get(_key(row), "dropped"), source=source.path,
            tokens=tokens.get(_key(row)), why="" if _key(row) in split else why.get(str(row.ref), "dropped"),
        )
        for source, result in zip(sources, results, strict=True)
        for row in result.conversations
    ]  # fmt: skip


def _test_items(session: Session, tests: Sequence[str], kind: RowKind) -> list[Item]:
    """Rows of files, or of the tasks: a row that several tasks ask for stands once."""
    section = session.recipe.data.model_copy(update={"max_length": _ANY_LENGTH, "on_empty": "drop"})
    given = [(path, _read_all([Source(path=path)], kind=read_as(kind))[0].conversations) for path in tests]
    if not tests:
        rows = [(f"task {task.name}", [row.conversation for row in task.rows]) for task in session.tasks]
        seen: set[str] = set()
        for name, own in rows:
            fresh = [row for row in own if str(row.ref) not in seen]
            seen.update(str(row.ref) for row in fresh)
            given.append((name, fresh))
    return [
        item
        for name, rows in given
        for item in _items(
            rows, "test", name, session.tokenizer, section,
            kind=kind if tests else "tokens", kwargs=session.recipe.model.chat_template_kwargs,
        )
    ]  # fmt: skip


def _items(
    rows: Sequence[Conversation],
    split: str,
    source: str,
    tokenizer: Any,
    section: DataSection,
    *,
    kind: RowKind,
    kwargs: Any = None,
) -> list[Item]:
    if tokenizer is None or not rows:
        return [Item(row=row, split=split, source=source) for row in rows]
    from luthier.data.branching import tokenize_preferences
    from luthier.data.template import ChatTemplate
    from luthier.data.tokenize import tokenize_all

    template = ChatTemplate(tokenizer, kwargs=kwargs, control_tokens=section.control_tokens)
    tokenize = tokenize_preferences if kind in {"pairs", "rated"} else tokenize_all
    found: list[Item] = []
    with progress("tokenise", len(rows), "rows", above=_PROGRESS_ROWS) as bar:
        for row, outcome in zip(rows, tokenize(rows, template, section=section), strict=True):
            result = outcome.result
            gone = isinstance(result, Dropped)
            found.append(
                Item(
                    row=row, split="dropped" if gone else split, source=source,
                    tokens=None if isinstance(result, Dropped) else result,
                    why=f"{result.reason}: {result.detail}" if isinstance(result, Dropped) else "",
                )
            )  # fmt: skip
            bar.advance()
    return found


def _read_all(sources: Sequence[Source], **keys: Any) -> list[SourceResult]:
    """Every source; problems of all of them at once."""
    results: list[SourceResult] = []
    problems: list[Problem] = []
    for index, source in enumerate(sources):
        try:
            results.append(read_conversations(source, index, **keys))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems=problems)
    for result in results:
        note(f"{result.path}: {result.verdict}", style="dim")
    return results


def _empty(results: Sequence[SourceResult]) -> list[Dropped]:
    return [item for result in results for item in result.dropped]


def _key(row: Conversation | TrainRow) -> tuple[Any, bool | None]:
    """A pair that is read as two rated rows gives two rows of one place, told apart by their labels."""
    return row.ref, getattr(row, "label", None)
