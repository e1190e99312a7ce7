"""`luthier data filter`: what would be dropped or changed, with the text that decides; then, with --out, the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.columns import columns_of, hints_as_options
from luthier.cli.common import JsonOption
from luthier.cli.dedup import kind_for
from luthier.cli.filter_settings import BY_DEFAULT, filter_settings, listed_keys, tokenizer_for
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.curate.filters.base import Change, Drop, Mark
    from luthier.curate.filters.files import Filtered
    from luthier.recipe.filter_schema import FilterSection

__all__ = ["filter_", "filter_lines"]

_AROUND = 80


def filter_(
    files: Annotated[list[str], typer.Argument(help="Files, folders or globs of rows, in order.", show_default=False)],
    use: Annotated[
        str | None, typer.Option(help=f"Filters, with commas; without --set and --recipe: {','.join(BY_DEFAULT)}.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of data.filters, for instance language.languages=[en]; may be repeated."),
    ] = None,
    drop_listed: Annotated[
        list[str] | None, typer.Option(help="Drop rows named in this file (rows.txt of `data map`); may be repeated.")
    ] = None,
    keep_listed: Annotated[
        list[str] | None, typer.Option(help="Drop all rows but those named in this file; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take data.filters, and the tokenizer, of this recipe.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Model folder or hub id, for length in tokens.")] = None,
    objective: Annotated[str, typer.Option(help="What the rows are for: sft; dpo (pairs), kto (rated), ...")] = "sft",
    format: Annotated[str, typer.Option(help="Format of the rows, as in data.train.")] = "auto",  # noqa: A002
    map: Annotated[list[str] | None, typer.Option(help="field=column, as in data.train; may be repeated.")] = None,  # noqa: A002
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (of several: folder) for the rows that stay.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of an earlier time.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing, and ask no judge: only say what it would cost.")
    ] = False,
    examples: Annotated[int, typer.Option("--rows", "-n", help="Examples of each filter.", min=0)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Show rows that filters would drop or change, and write the files without them: the rest byte for byte."""
    from luthier.curate.files import check_target
    from luthier.curate.filters.files import filter_files, write_filtered
    from luthier.curate.filters.run import Tools
    from luthier.runtime.env import read_env

    columns, kind = columns_of(map or []), kind_for(objective)
    section = filter_settings(use, [*listed_keys(drop_listed, keep_listed), *(set_ or [])], recipe, kind)
    if out is not None:
        check_target(files, out, force=force)
    tools = Tools(
        tokenizer=tokenizer_for(section, tokenizer, recipe), cache_dir=read_env().cache_dir / "judge", dry=dry_run
    )
    with hints_as_options():
        found = filter_files(files, section, tools, format=format, map=columns, kind=kind)
    if not as_json:
        for line in _summary(found):
            show(line)
        for name, marks in found.looked.marks.items():
            for row, verdict in marks[:examples]:
                show(_example(name, str(row.ref), verdict))
    written: dict[str, int] = {}
    if out is not None and not dry_run:
        written = write_filtered(found, out)
        _write_lists(found, out, written)
    if as_json:
        emit_json(_value(found, section, written, examples))
    elif out is None or dry_run:
        note("nothing is written" + ("; --out FILE writes the rows that stay" if out is None else " (--dry-run)"))
    for name, rows in () if as_json else written.items():
        note(f"{name}: {rows:,} {'entries' if name.endswith(('.losses.jsonl', '.scores.jsonl')) else 'rows'}")


def stage_lines(stages: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each filter."""
    lines = []
    for name, stage in stages.items():
        told = [f"{stage[what]:,} {what}" for what in ("dropped", "changed") if stage[what] or what == "dropped"]
        more = (
            f"; {stage['too_short']:,} of {stage['texts']:,} texts too short to tell" if stage.get("too_short") else ""
        )
        lines.append(f"{name}: {', '.join(told)} of {stage['rows']:,} rows ({stage['seconds']:.1f} s){more}")
    return lines


def filter_lines(manifest: dict[str, Any]) -> list[str]:
    """What `data check` says of filters, from the manifest."""
    stages = manifest.get("curated", {}).get("filters", {}).get("stages", {})
    return [f"filter {line}" for line in stage_lines(stages)]


def _summary(found: Filtered) -> list[str]:
    lines = [f"{result.path}: {result.verdict}" for result in found.results]
    lines += stage_lines(found.stages)
    for stage in found.stages.values():
        shared = stage.get("shared_endings", {})
        lines += [f"  {count:,} answers end: {words}" for words, count in list(shared.items())[:5]]
    untouched = sum(len(result.dropped) for result in found.results)
    if untouched:
        lines.append(f"rows with nothing to train on, not looked at and left as they are: {untouched:,}")
    kept = found.curation.train
    changed = sum(1 for row in kept if id(row) in found.curation.changes)
    return [*lines, f"{len(found.rows):,} rows, {len(kept):,} stay, {changed:,} of them changed"]


def _example(name: str, ref: str, verdict: Drop | Change) -> Any:
    """The reason, and the text around what decided, which is highlighted."""
    from rich.console import Group
    from rich.text import Text

    from luthier.curate.filters.base import Drop

    what = "drop" if isinstance(verdict, Drop) else "change"
    head = Text(f"\n{name}, {what} {ref}: {verdict.detail}", style="bold")
    return Group(head, _marked(verdict.mark)) if verdict.mark is not None else head


def _marked(mark: Mark) -> Text:
    """`... text [-what decided-] text ...`, control characters made visible."""
    from rich.text import Text

    before, match, after = _around(mark)
    text = Text("  ")
    text.append(before)
    if match:
        text.append(f"[-{match}-]", "red")
    text.append(after)
    return text


def _around(mark: Mark) -> tuple[str, str, str]:
    from luthier.report.read import printable

    text, start, end = mark.text, mark.start, mark.end
    left = text[max(0, start - _AROUND) : start]
    right = text[end : end + (_AROUND if end > start else 2 * _AROUND)]
    match = text[start:end]
    if len(match) > 2 * _AROUND:
        match = f"{match[:_AROUND]} ... {match[-_AROUND:]}"
    before = ("... " if start > _AROUND else "") + left
    after = right + (" ..." if end + len(right) < len(text) else "")
    return printable(before), printable(match), printable(after)


def _write_lists(found: Filtered, out: Path, written: dict[str, int]) -> None:
    """Each loss, and the scores of a judge, beside the file that was written."""
    from luthier.runtime.atomic import write_text

    base = out / "all" if out.is_dir() else out
    for suffix, records in ((".losses.jsonl", found.records()), (".scores.jsonl", found.curation.scored)):
        if records or suffix == ".losses.jsonl":
            target = base.with_suffix(suffix)
            write_text(target, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            written[str(target)] = len(records)


def _value(found: Filtered, section: FilterSection, written: dict[str, int], count: int) -> dict[str, Any]:
    """All of it as JSON. Personal data and secrets are not repeated: of `pii` the examples say only what kind."""
    kept = found.curation.train
    return {
        "settings": section.model_dump(mode="json", exclude_none=True),
        "rows": len(found.rows),
        "kept": len(kept),
        "changed": sum(1 for row in kept if id(row) in found.curation.changes),
        "dropped": {name: stage["dropped"] for name, stage in found.stages.items()},
        "not_looked_at": sum(len(result.dropped) for result in found.results),
        "stages": found.stages,
        "losses": found.records(),
        "scores": found.curation.scored,
        "examples": [
            {"filter": name, "file": row.ref.file, "line": row.ref.line, "detail": verdict.detail}
            | (
                dict(zip(("before", "match", "after"), _around(verdict.mark), strict=True))
                if verdict.mark is not None and name != "pii"
                else {}
            )
            for name, marks in found.looked.marks.items()
            for row, verdict in marks[:count]
        ],
        "written": written,
    }
