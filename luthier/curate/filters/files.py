"""Filters over the rows of files, without a recipe: what `luthier data filter` does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.curate.files import places_in, read_files, targets
from luthier.curate.filters.rewrite import rewrite
from luthier.curate.filters.run import Looked, Tools, filter_rows
from luthier.curate.steps import Curation
from luthier.curate.write import write_without
from luthier.data.content import content_hash
from luthier.data.files import DataFile
from luthier.data.sources import SourceResult, read_conversations
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import Source
from luthier.runtime.atomic import explain_os_error
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem, RunFailed

__all__ = ["Filtered", "filter_files", "write_filtered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """The rows of all files, and what the filters say of them."""

    rows: list[Conversation]
    """As read."""
    files: list[DataFile]
    sources: list[Source]
    results: list[SourceResult]
    """Of each file; rows with nothing to train on are in its `dropped`, and are left as they are."""
    curation: Curation
    """Rows that stay, some of them changed, and the records."""
    looked: Looked
    stages: dict[str, dict[str, Any]]
    kept: dict[int, Conversation]
    """id of a row as read -> the row as it stays."""
    kind: RowKind

    def records(self) -> list[dict[str, Any]]:
        """Each dropped row and each change of a row that stays, in full."""
        changes = [self.curation.changes.get(id(row), []) for row in self.curation.train]
        return [*self.curation.records, *(record for own in changes for record in own)]


def filter_files(
    paths: Sequence[str],
    section: FilterSection,
    tools: Tools,
    *,
    format: str = "auto",  # noqa: A002 (the key is called so)
    map: dict[str, str] | None = None,  # noqa: A002
    kind: RowKind = "tokens",
) -> Filtered:
    """Read files and run the filters over all of their rows, in the order given. Nothing is written.

    Raises:
        DataError: files or rows that cannot be read; all are told.
        RecipeError, EnvironmentProblem, RunFailed: as `filter_rows`.
    """
    files, sources, results = read_files(paths, format=format, map=map, kind=kind)
    rows = [row for result in results for row in result.conversations]
    curation = Curation(list(rows), ())
    looked = Looked()
    stages = filter_rows(curation, section, tools, looked=looked)
    return Filtered(
        rows=rows, files=files, sources=sources, results=results, curation=curation, looked=looked, stages=stages,
        kept=_kept(curation), kind=kind,
    )  # fmt: skip


def _kept(curation: Curation) -> dict[int, Conversation]:
    """Rows that stay have the order they were read in, and each knows what it was."""
    return {id(curation.origin.get(id(row), row)): row for row in curation.train}


def write_filtered(found: Filtered, out: Path) -> dict[str, int]:
    """Write the files with the rows that stay; a file with changed rows is read again before it takes its place.

    Returns:
        Rows of each file written.

    Raises:
        DataError: rows of a file would be changed, and it is no JSON.
        RunFailed: changed rows do not read as they should (nothing of that file is written).
        EnvironmentProblem: a file cannot be written.
    """
    plans = [_plan(found, index) for index in range(len(found.files))]
    problems = [
        _no_json(file, len(edits))
        for file, (_, edits) in zip(found.files, plans, strict=True)
        if edits and file.kind not in {"jsonl", "json"}
    ]
    if problems:
        raise DataError(problems=problems)
    written: dict[str, int] = {}
    for index, target in enumerate(targets(found.files, out)):
        left_out, edits = plans[index]
        try:
            if edits:
                written[str(target)] = _write_edited(found, index, left_out, edits, target)
            else:
                written[str(target)] = write_without(found.files[index], left_out, target)
        except (EnvironmentProblem, RunFailed) as error:
            done = f"; written before: {', '.join(written)}" if written else ""
            first = error.problems[0]
            raise type(error)(code=first.code, message=first.message + done, hint=first.hint) from error
    return written


def _plan(found: Filtered, index: int) -> tuple[set[int], dict[int, Callable[[str], str]]]:
    """Places of a file to leave out, and how to edit others."""
    result = found.results[index]
    left_out: set[int] = set()
    edits: dict[int, Callable[[str], str]] = {}
    if all(found.kept.get(id(row)) is row for row in result.conversations):
        return left_out, edits
    for place, row in zip(places_in(result), result.conversations, strict=True):
        stays = found.kept.get(id(row))
        if stays is None:
            left_out.add(place)
        elif stays is not row:
            edits[place] = partial(rewrite, old=row, new=stays)
    return left_out, edits


def _no_json(file: DataFile, count: int) -> Problem:
    message = f"{count:,} rows would be changed, and only .jsonl and .json files are written with changed rows"
    hint = "save it as .jsonl, use a recipe (which writes no files), or drop such rows: --set pii.action=drop"
    return Problem(code="D259", message=message, file=file.shown, hint=hint)


def _write_edited(
    found: Filtered, index: int, left_out: set[int], edits: dict[int, Callable[[str], str]], target: Path
) -> int:
    """Written beside the target, read again, then put there."""
    result = found.results[index]
    expected = [stays for row in result.conversations if (stays := found.kept.get(id(row))) is not None]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            rows = write_without(found.files[index], left_out, draft, edits=edits)
            if expected:
                source = found.sources[index].model_copy(update={"path": str(draft)})
                again = read_conversations(source, index, on_empty="drop", kind=found.kind)
                if again.hash != content_hash(expected):
                    raise _differs(found.files[index].shown)
            draft.replace(target)
    except DataError as error:
        raise _differs(found.files[index].shown) from error
    except OSError as error:
        raise explain_os_error(error, target) from error
    return rows


def _differs(name: str) -> RunFailed:
    message = f"the changed rows of {name} would not read as they should; the file is not written"
    hint = "use a recipe with `data.filters`, which writes no files; and please report the format of this file"
    return RunFailed(code="D258", message=message, hint=hint)
