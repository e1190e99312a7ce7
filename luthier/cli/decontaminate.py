"""`luthier data decontaminate`: training rows that give evaluation rows away, side by side; then the files without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.columns import columns_of, hints_as_options
from luthier.cli.common import JsonOption
from luthier.cli.dedup import kind_for
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from luthier.curate.contamination.run import Decontaminated, Match
    from luthier.data.sources import SourceResult
    from luthier.data.types import Conversation
    from luthier.recipe.schema import DecontaminateSection

__all__ = ["decontaminate"]

_UNMATCHED_SHOWN = 60


def decontaminate(
    files: Annotated[list[str], typer.Argument(help="Training rows: files, folders or globs.", show_default=False)],
    against: Annotated[
        list[str], typer.Option("--against", "-a", help="Evaluation rows; may be repeated.", show_default=False)
    ],
    on: Annotated[str, typer.Option(help="Look for an evaluation row's: prompt, answer or both.")] = "both",
    ngram: Annotated[float, typer.Option(help="Copies: least share of word 5-grams, by weight.")] = 0.3,
    characters: Annotated[float, typer.Option(help="Copies: least share of 5 characters, by weight.")] = 0.55,
    reworded: Annotated[float, typer.Option(help="Least agreement of words, numbers and answer.")] = 0.36,
    answer: Annotated[float, typer.Option(help="Least agreement with an evaluation answer.")] = 0.6,
    embedding: Annotated[
        float | None, typer.Option(help="Least agreement of embeddings and numbers, for instance 0.73.")
    ] = None,
    embedding_model: Annotated[str, typer.Option(help="Folder of an embedding model.")] = "all-minilm-l6-v2",
    variants: Annotated[
        bool, typer.Option("--variants", help="--out leaves problems with other numbers out, too.")
    ] = False,
    objective: Annotated[str, typer.Option(help="What the rows are for: sft; dpo (pairs), kto (rated), ...")] = "sft",
    format: Annotated[str, typer.Option(help="Format of the training rows, as in data.train.")] = "auto",  # noqa: A002
    map: Annotated[list[str] | None, typer.Option(help="field=column, as in data.train; may be repeated.")] = None,  # noqa: A002
    against_map: Annotated[list[str] | None, typer.Option(help="The same for evaluation rows.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (of several: folder) for the rows that stay.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of an earlier time.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing, whatever --out says.")] = False,
    examples: Annotated[
        int, typer.Option("--rows", "-n", help="Examples: so many of the surest, and of the most doubtful.", min=0)
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Show training rows that hold evaluation rows, and write the files without them: the rest byte for byte."""
    from luthier.curate.contamination.step import found_in, read_against, record_of
    from luthier.curate.files import check_target, places_of, read_files, refuse_sources, targets, write_files
    from luthier.data.files import find_files
    from luthier.recipe.schema import AgainstSource
    from luthier.runtime.env import read_env

    settings = _settings(
        on=on, ngram=ngram, characters=characters, reworded=reworded, answer=answer, embedding=embedding,
        embedding_model=embedding_model, variants=variants, action="drop",
    )  # fmt: skip
    columns, their_columns, kind = columns_of(map or []), columns_of(against_map or []), kind_for(objective)
    if out is not None:
        check_target(files, out, force=force)
        for target in targets([file for path in files for file in find_files(path)], out):
            refuse_sources(target, against)
    with hints_as_options(option="--against-map", has_format=False):
        sets = read_against([AgainstSource(path=path, map=their_columns) for path in against])
    evaluation = [row for one in sets for row in one.rows]
    names = [one.name for one in sets for _ in one.rows]
    with hints_as_options():
        found_files, _, results = read_files(files, format=format, map=columns, kind=kind)
    rows = [row for result in results for row in result.conversations]
    found = found_in(rows, evaluation, settings, cache_dir=read_env().cache_dir / "dedup")
    taken = [match for match in found.matches if match.verdict != "variant" or settings.variants]
    gone = {match.row for match in taken}
    records = [
        record_of(match, rows, evaluation, names[match.of], dropped=match.row in gone) for match in found.matches
    ]
    if not as_json:
        for line in _summary(results, found, len(taken)):
            show(line)
        for title, match in _chosen(found.matches, taken, examples):
            show(_example(title, match, rows, evaluation))
    written: dict[str, int] = {}
    if out is not None and not dry_run:
        written = write_files(found_files, places_of(results, [match.row for match in taken]), out)
        _write_list(records, out, written)
    if as_json:
        emit_json(_value(results, found, settings, records, len(taken), written))
    elif out is None or dry_run:
        note("nothing is written" + ("; --out FILE writes the rows that stay" if out is None else " (--dry-run)"))
    for name, count in () if as_json else written.items():
        note(f"{name}: {count:,} {'entries' if name.endswith('.contamination.jsonl') else 'rows'}")


def _settings(**keys: Any) -> DecontaminateSection:
    """The options as the section of a recipe; what is wrong with them is told in the words of the command line."""
    from pydantic import ValidationError

    from luthier.recipe.describe import allowed, field_at
    from luthier.recipe.schema import DecontaminateSection
    from luthier.recipe.unused import unused_in_decontaminate

    try:
        settings = DecontaminateSection.model_validate(keys)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            key = str(entry["loc"][0])
            annotation, field = field_at(DecontaminateSection, (key,))
            words = allowed(annotation, field.metadata if field else []).replace(" or null", "")
            message = f"--{key.replace('_', '-')} must be {words}; got {entry['input']}"
            problems.append(Problem(code="C103", message=message))
        raise RecipeError(problems=problems) from error
    usual = DecontaminateSection()
    problems = [
        Problem(code="C111", message=f"--{key.replace('_', '-')} would have no effect: {reason}", hint="remove it")
        for key, reason in unused_in_decontaminate(settings).items()
        if getattr(settings, key) != getattr(usual, key)
    ]
    if problems:
        raise RecipeError(problems=problems)
    return settings


def _summary(results: Sequence[SourceResult], found: Decontaminated, taken: int) -> list[str]:
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in found.counts().items()) or "none"
    lines = [f"{result.path}: {result.verdict}" for result in results]
    lines.append(f"{found.rows:,} training rows against {found.against:,} evaluation rows: {counts}")
    if found.matches:
        lines.append(f"evaluation rows that training rows hold (variants aside): {found.touched:,}")
    lines += [f"{side}s too short to be looked for: {count:,}" for side, count in found.short.items() if count]
    if found.embedded:
        lines.append(f"texts embedded, of doubtful pairs: {found.embedded:,}")
    if untouched := _untouched(results):
        lines.append(f"rows with nothing to train on, not looked at and left as they are: {untouched:,}")
    return [*lines, f"{taken:,} rows would go, {found.rows - taken:,} stay"]


def _untouched(results: Sequence[SourceResult]) -> int:
    return sum(len(result.dropped) for result in results)


def _chosen(matches: Sequence[Match], taken: Sequence[Match], count: int) -> list[tuple[str, Match]]:
    """Of the rows that would go the surest, then the most doubtful; then the surest of those that stay; none twice."""
    goes = {match.row for match in taken}
    ordered = sorted(matches, key=lambda match: (-match.certainty, match.row))
    going = [match for match in ordered if match.row in goes]
    surest, doubtful = going[:count], going[max(count, len(going) - count) :]
    staying = [match for match in ordered if match.row not in goes][:count]
    titles = (("surest", surest), ("doubtful", doubtful), ("stays", staying))
    return [(title, match) for title, some in titles for match in some]


def _example(title: str, match: Match, rows: Sequence[Conversation], against: Sequence[Conversation]) -> Any:
    """Both texts side by side, matching places marked [so]."""
    from rich.table import Table
    from rich.text import Text

    from luthier.curate.contamination.run import part_name
    from luthier.curate.contamination.scan import parts_of
    from luthier.curate.contamination.targets import text_on

    row, of = rows[match.row], against[match.of]
    shown = ", ".join(f"{name} {score:.2f}" for name, score in match.scores.items())
    head = f"{title}: {match.verdict} by {', '.join(match.kinds)}; certainty {match.certainty:.2f} ({shown})"
    table = Table(title=Text(head), title_justify="left", expand=True)
    table.add_column(Text(f"training row {row.ref}, {part_name(row, match.part)}"), ratio=1, overflow="fold")
    table.add_column(Text(f"evaluation row {of.ref}, {match.side}"), ratio=1, overflow="fold")
    table.add_row(_marked(parts_of(row)[match.part], match.spans), _marked(text_on(of, match.side), match.of_spans))
    return table


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> Text:
    from rich.text import Text

    marked = Text()
    at = 0
    for start, end in spans:
        marked.append(_short(text[at:start]))
        marked.append(f"[{text[start:end]}]", "bold red")
        at = end
    marked.append(_short(text[at:]))
    return marked


def _short(text: str) -> str:
    if len(text) <= 2 * _UNMATCHED_SHOWN + 5:
        return text
    return f"{text[:_UNMATCHED_SHOWN]} ... {text[-_UNMATCHED_SHOWN:]}"


def _write_list(records: list[dict[str, Any]], out: Path, written: dict[str, int]) -> None:
    """Each match, beside the file that was written."""
    from luthier.runtime.atomic import write_text

    target = (out / "all" if out.is_dir() else out).with_suffix(".contamination.jsonl")
    write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    written[str(target)] = len(records)


def _value(
    results: Sequence[SourceResult],
    found: Decontaminated,
    settings: DecontaminateSection,
    records: list[dict[str, Any]],
    taken: int,
    written: dict[str, int],
) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(mode="json", exclude={"against", "action"}),
        "rows": found.rows,
        "against": found.against,
        "found": found.counts(),
        "evaluation_rows_found": found.touched,
        "too_short": dict(found.short),
        "would_go": taken,
        "not_looked_at": _untouched(results),
        "matches": records,
        "written": written,
    }
