"""`luthier data dedup`: what would be dropped, with examples; then, with --out, the files without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.columns import columns_of, hints_as_options
from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show
from luthier.data.rows import number_of
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.curate.dedup.run import Duplicate
    from luthier.curate.files import Found
    from luthier.recipe.objective_kind import RowKind
    from luthier.recipe.schema import DedupSection

__all__ = ["curated_lines", "dedup", "kind_for"]

_UNCHANGED_SHOWN = 60


def dedup(
    files: Annotated[list[str], typer.Argument(help="Files, folders or globs of rows, in order.", show_default=False)],
    on: Annotated[str, typer.Option(help="Compare: conversation, prompt or answer.")] = "conversation",
    exact: Annotated[bool, typer.Option(help="Drop rows with equal text.")] = True,
    fuzzy: Annotated[float, typer.Option(help="Least Jaccard index of shingles, above 0 to 1.")] = 0.8,
    no_fuzzy: Annotated[bool, typer.Option("--no-fuzzy", help="Leave the fuzzy stage out.")] = False,
    semantic: Annotated[float | None, typer.Option(help="Least cosine of embeddings, for instance 0.95.")] = None,
    embedding_model: Annotated[str, typer.Option(help="Folder of an embedding model.")] = "all-minilm-l6-v2",
    numbers: Annotated[str, typer.Option(help="same: other numbers, no duplicates; any: they may.")] = "same",
    ignore: Annotated[
        str, typer.Option(help="Differences that do not count: unicode, case, whitespace, punctuation; none.")
    ] = "unicode,case,whitespace",
    keep: Annotated[str, typer.Option(help="Which row stays: first, longest or score.")] = "first",
    score: Annotated[str | None, typer.Option(help="Column with a number, for --keep score.")] = None,
    objective: Annotated[str, typer.Option(help="What the rows are for: sft; dpo (pairs), kto (rated), ...")] = "sft",
    format: Annotated[str, typer.Option(help="Format of the rows, as in data.train.")] = "auto",  # noqa: A002
    map: Annotated[list[str] | None, typer.Option(help="field=column, as in data.train; may be repeated.")] = None,  # noqa: A002
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (of several: folder) for the rows that stay.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of an earlier time.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing, whatever --out says.")] = False,
    examples: Annotated[int, typer.Option("--rows", "-n", help="Examples of each stage.", min=0)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Show rows that say what another says, and write the files without them: the rest byte for byte."""
    from luthier.curate.files import check_target, find_in_files, write_kept
    from luthier.runtime.env import read_env

    settings = _settings(
        exact=exact, fuzzy=None if no_fuzzy else fuzzy, semantic=semantic, on=on, keep=keep, score=score,
        numbers=numbers, ignore=[word for word in ignore.split(",") if word not in {"", "none"}],
        embedding_model=embedding_model,
    )  # fmt: skip
    columns, kind = columns_of(map or []), kind_for(objective)
    if out is not None:
        check_target(files, out, force=force)
    with hints_as_options():
        found = find_in_files(
            files, settings, format=format, map=columns, kind=kind, cache_dir=read_env().cache_dir / "dedup"
        )
    if not as_json:
        for line in _summary(found):
            show(line)
        for item in _doubtful(found, examples):
            show(_example(found, item))
    written: dict[str, int] = {}
    if out is not None and not dry_run:
        written = write_kept(found, out)
        _write_list(found, out, written)
    if as_json:
        emit_json(_value(found, settings, written))
    elif out is None or dry_run:
        note("nothing is written" + ("; --out FILE writes the rows that stay" if out is None else " (--dry-run)"))
    for name, rows in () if as_json else written.items():
        note(f"{name}: {rows:,} {'entries' if name.endswith('.dropped.jsonl') else 'rows'}")


def _settings(**keys: Any) -> DedupSection:
    """The options as the section of a recipe; what is wrong with them is told in the words of the command line."""
    from pydantic import ValidationError

    from luthier.recipe.describe import allowed, field_at
    from luthier.recipe.schema import DedupSection
    from luthier.recipe.unused import contradictions_in_dedup

    try:
        settings = DedupSection.model_validate(keys)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            key = str(entry["loc"][0])
            annotation, field = field_at(DedupSection, (key,))
            words = allowed(annotation, field.metadata if field else []).replace(" or null", "")
            message = f"--{key.replace('_', '-')} must be {words}; got {entry['input']}"
            problems.append(Problem(code="C103", message=message))
        raise RecipeError(problems=problems) from error
    wrong = contradictions_in_dedup(settings)
    if wrong:
        raise RecipeError(problems=[Problem(code="C110", message=message, hint=hint) for _, message, hint in wrong])
    return settings


def kind_for(objective: str) -> RowKind:
    """How the rows of an objective are read, from --objective.

    Raises:
        RecipeError: no such objective.
    """
    from luthier.recipe.objective_kind import OBJECTIVES, read_as, row_kind

    known = [name for names in OBJECTIVES.values() for name in names]
    if objective not in known:
        raise RecipeError(code="C103", message=f"--objective must be one of {', '.join(known)}; got {objective}")
    return read_as(row_kind(objective))


def _summary(found: Found) -> list[str]:
    lines = [f"{result.path}: {result.verdict}" for result in found.results]
    lines += stage_lines(found.found.stages)
    untouched = sum(len(result.dropped) for result in found.results)
    if untouched:
        lines.append(f"rows with nothing to train on, not compared and left as they are: {untouched:,}")
    return [*lines, f"{len(found.rows):,} rows compared, {len(found.found.kept):,} stay"]


def stage_lines(stages: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each stage that ran."""
    return [
        f"{name}{' ' + format(stage['threshold'], 'g') if 'threshold' in stage else ''}: {stage['dropped']:,} of "
        f"{stage['rows']:,} rows dropped, {number_of(stage['clusters'], 'cluster')}, the largest of "
        f"{number_of(stage['largest_cluster'], 'row')} ({stage['seconds']:.1f} s)"
        for name, stage in stages.items()
    ]


def curated_lines(manifest: dict[str, Any]) -> list[str]:
    """What `data check` says of duplicates, from the manifest."""
    curated = manifest.get("curated", {})
    lines = [f"dedup, {line}" for line in stage_lines(curated.get("dedup", {}).get("stages", {}))]
    told = curated.get("validation")
    if told and "dropped" in told:
        lines.append(f"training rows dropped for being near a validation row: {told['dropped']:,}")
    elif told:
        lines.append(
            f"near-duplicates held together in the split: {told['rows_in_groups']:,} rows in {told['groups']:,} "
            f"groups, the largest of {told['largest']:,}"
        )
    return lines


def _doubtful(found: Found, count: int) -> list[Duplicate]:
    """The least similar of each stage: those are the ones to look at."""
    chosen: list[Duplicate] = []
    for stage in found.found.stages:
        own = [item for item in found.found.dropped if item.stage == stage]
        chosen += sorted(own, key=lambda item: (item.similarity, item.row))[:count]
    return chosen


def _example(found: Found, item: Duplicate) -> Any:
    """Both rows side by side: [-only here-], {+only there+}."""
    from rich.table import Table

    from luthier.curate.text import text_of
    from luthier.report.diff import word_diff

    dropped, of = found.rows[item.row], found.rows[item.of]
    table = Table(title=f"{item.stage}, similarity {item.similarity:.3f}", title_justify="left", expand=True)
    table.add_column(f"dropped: {dropped.ref}", ratio=1, overflow="fold")
    table.add_column(f"duplicates: {of.ref}", ratio=1, overflow="fold")
    for ours, theirs in zip(text_of(dropped).parts, text_of(of).parts, strict=True):
        left, right, _ = word_diff("\n".join(ours), "\n".join(theirs))
        table.add_row(_marked(left, "[-", "-]", "red"), _marked(right, "{+", "+}", "green"), end_section=True)
    return table


def _marked(pieces: list[tuple[str, bool]], start: str, end: str, style: str) -> Text:
    from rich.text import Text

    text = Text()
    for piece, own in pieces:
        if own:
            text.append(f"{start}{piece}{end}", style)
        elif len(piece) > 2 * _UNCHANGED_SHOWN + 5:
            text.append(f"{piece[:_UNCHANGED_SHOWN]} ... {piece[-_UNCHANGED_SHOWN:]}")
        else:
            text.append(piece)
    return text


def _write_list(found: Found, out: Path, written: dict[str, int]) -> None:
    """Each dropped row, beside the file that was written."""
    from luthier.runtime.atomic import write_text

    target = (out / "all" if out.is_dir() else out).with_suffix(".dropped.jsonl")
    records = found.records()
    write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    written[str(target)] = len(records)


def _value(found: Found, settings: DedupSection, written: dict[str, int]) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(mode="json"),
        "rows": len(found.rows),
        "kept": len(found.found.kept),
        "dropped": found.found.counts(),
        "not_compared": sum(len(result.dropped) for result in found.results),
        "stages": found.found.stages,
        "duplicates": found.records(),
        "written": written,
    }
