"""Duplicates among the rows of files, without a recipe: what `luthier data dedup` does."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.curate.apply import find_duplicates
from luthier.curate.dedup.run import Deduplicated
from luthier.curate.write import write_without
from luthier.data.files import DataFile, find_files, kind_of
from luthier.data.sources import SourceResult, read_conversations
from luthier.data.types import Conversation
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.paths import glob_paths
from luthier.recipe.schema import DedupSection, Source
from luthier.runtime.errors import DataError, EnvironmentProblem, Problem, RecipeError

__all__ = [
    "Found", "check_target", "find_in_files", "places_in", "places_of", "read_files", "refuse_sources", "targets",
    "write_files", "write_kept",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of all files, and which of them are duplicates."""

    rows: list[Conversation]
    files: list[DataFile]
    """Files in order; `RowRef.source` counts them."""
    results: list[SourceResult]
    """Of each file; rows with nothing to train on are in its `dropped`, and are left as they are."""
    found: Deduplicated

    def records(self) -> list[dict[str, Any]]:
        """Each dropped row in full."""
        return [item.to_json(self.rows) for item in self.found.dropped]

    def places(self) -> dict[int, set[int]]:
        """For each file the rows to leave out, counted from 0 in the order of the file.

        Raises:
            DataError: rows that begin on one line, some of which have nothing to train on.
        """
        return places_of(self.results, [item.row for item in self.found.dropped])


def places_of(results: Sequence[SourceResult], dropped: Sequence[int]) -> dict[int, set[int]]:
    """`Found.places` for any rows: indices into the rows of all files, end to end.

    Raises:
        DataError: as `Found.places`.
    """
    wanted: dict[int, set[int]] = defaultdict(set)
    starts = [0]
    for result in results:
        starts.append(starts[-1] + len(result.conversations))
    place_of = [places_in(result) for result in results]
    for row in dropped:
        file = bisect_right(starts, row) - 1
        wanted[file].add(place_of[file][row - starts[file]])
    return wanted


def places_in(result: SourceResult) -> list[int]:
    """Place in the file of each conversation: rows with nothing to train on stand between them.

    Raises:
        DataError: rows that begin on one line, some of which have nothing to train on.
    """
    if not result.dropped:
        return list(range(result.rows))
    lines = [row.ref.line for row in result.conversations] + [row.ref.line for row in result.dropped]
    line, count = Counter(lines).most_common(1)[0]
    if count > 1:
        message = f"{count:,} rows begin on this line, and some rows have nothing to train on"
        hint = "write one row a line (`.jsonl`), so that each row can be named"
        raise DataError(problems=[Problem(code="D232", message=message, file=result.path, line=line, hint=hint)])
    place_of = {line: place for place, line in enumerate(sorted(lines))}
    return [place_of[row.ref.line] for row in result.conversations]


def find_in_files(
    paths: Sequence[str],
    dedup: DedupSection,
    *,
    format: str = "auto",  # noqa: A002 (the key is called so)
    map: dict[str, str] | None = None,  # noqa: A002
    kind: RowKind = "tokens",
    cache_dir: Path | None = None,
) -> Found:
    """Read files and find the duplicates among all of their rows, in the order given.

    Raises:
        DataError: files or rows that cannot be read; all are told.
        EnvironmentProblem: a library or model that a stage needs is missing.
    """
    files, sources, results = read_files(paths, format=format, map=map, kind=kind)
    rows = [row for result in results for row in result.conversations]
    found = find_duplicates(rows, dedup, sources, cache_dir=cache_dir)
    return Found(rows=rows, files=files, results=results, found=found)


def read_files(
    paths: Sequence[str],
    *,
    format: str = "auto",  # noqa: A002 (the key is called so)
    map: dict[str, str] | None = None,  # noqa: A002
    kind: RowKind = "tokens",
) -> tuple[list[DataFile], list[Source], list[SourceResult]]:
    """The files behind paths (files, folders and globs), in the order given, each as a source, and its rows.

    Raises:
        DataError: files or rows that cannot be read; all are told.
    """
    files: list[DataFile] = []
    results: list[SourceResult] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            files += find_files(path)
        except DataError as error:
            problems += error.problems
    sources = [Source.model_validate({"path": str(file.path), "format": format, "map": map or {}}) for file in files]
    for index, source in enumerate(sources):
        try:
            results.append(read_conversations(source, index, on_empty="drop", kind=kind))
        except DataError as error:
            problems += error.problems
    problems += [_two_of_one(result) for result in results if len(result.conversations) > result.rows]
    if problems:
        raise DataError(problems=problems)
    return files, sources, results


def _two_of_one(result: SourceResult) -> Problem:
    message = "each row is a pair, which gives two rated answers; a row is kept or dropped as a whole"
    return Problem(code="D232", message=message, file=result.path, hint="compare them as pairs: --objective dpo")


def refuse_sources(out: Path, paths: Iterable[str]) -> None:
    """Rows that were read are never replaced by what was made of them, with `--force` neither.

    Args:
        out: The file to be written.
        paths: Files, folders and globs on this disk; other addresses are passed over.

    Raises:
        RecipeError: the file is there and is one of them.
    """
    if not out.exists():
        return
    for path in paths:
        shown = Path(path)
        files = shown.rglob("*") if shown.is_dir() else [shown] if shown.is_file() else glob_paths(shown)
        if any(file.is_file() and out.samefile(file) for file in files):
            raise RecipeError(
                code="C165", message=f"{out} is a source; it is not replaced", hint="choose another --out"
            )


def check_target(paths: Sequence[str], out: Path, *, force: bool) -> None:
    """Whether kept rows may be written there, before the work.

    Raises:
        RecipeError: it exists, has another kind, or would replace a source. All is told.
    """
    files = [file for path in paths for file in find_files(path)]
    problems = []
    if len(files) == 1 and not out.is_dir():
        try:
            same = kind_of(out) == files[0].kind
        except DataError:
            same = False
        if not same:
            message = f"--out {out} must be of the same kind as {files[0].shown}, whose rows stay as they are"
            hint = f"for instance {out.stem}{files[0].path.suffix}"
            problems.append(Problem(code="C165", message=message, hint=hint))
    names = Counter(file.path.name for file in files)
    for name, count in names.items():
        if count > 1:
            message = f"{count} files are called {name}; in the folder {out} only one can be"
            problems.append(Problem(code="C165", message=message, hint="run it on one folder after the other"))
    for file, target in zip(files, targets(files, out), strict=True):
        if target.exists() and target.samefile(file.path):
            message = f"{target} is a source; it is not replaced"
            problems.append(Problem(code="C165", message=message, hint="choose another --out"))
        elif target.exists() and not force:
            problems.append(Problem(code="C165", message=f"{target} exists", hint="another --out, or --force"))
    if problems:
        raise RecipeError(problems=problems)


def targets(files: Sequence[DataFile], out: Path) -> list[Path]:
    """Where each file goes: one file to `out`, several into the folder `out` under their own names."""
    return [out] if len(files) == 1 and not out.is_dir() else [out / file.path.name for file in files]


def write_kept(found: Found, out: Path) -> dict[str, int]:
    """Write the files without their duplicates; all of them are written, or the error says which are.

    Returns:
        Rows of each file written.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    return write_files(found.files, found.places(), out)


def write_files(files: Sequence[DataFile], places: dict[int, set[int]], out: Path) -> dict[str, int]:
    """`write_kept` for any rows to leave out (`places_of`).

    Raises:
        EnvironmentProblem: as `write_kept`.
    """
    written: dict[str, int] = {}
    for index, (file, target) in enumerate(zip(files, targets(files, out), strict=True)):
        try:
            written[str(target)] = write_without(file, places.get(index, set()), target)
        except EnvironmentProblem as error:
            done = f"; written before: {', '.join(written)}" if written else ""
            first = error.problems[0]
            raise EnvironmentProblem(code=first.code, message=first.message + done, hint=first.hint) from error
    return written
