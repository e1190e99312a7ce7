"""`luthier data mix`: how much of an epoch each source gives, wanted and achieved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from luthier.recipe.schema import Recipe


def mix(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File (.jsonl) for the rows of one epoch.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of an earlier time.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what each source gives to an epoch: shares by rows, tokens and trained tokens; --out writes the rows."""
    from luthier.data.mixing import mix_warnings
    from luthier.data.rows_out import rows_as_json
    from luthier.pipeline.session import Session
    from luthier.runs.folder import RunFolder
    from luthier.runtime.atomic import write_text

    loaded = load_with_overrides(recipe, overrides).recipe
    if out is not None:
        _check_out(out, loaded, force=force)
    session = Session(loaded, RunFolder(Path(loaded.output_dir)))
    prepared = session.prepare(keep_rows=out is not None)
    report = dict(prepared.manifest["mix"])
    if out is not None:
        rows = rows_as_json(prepared.rows or ())
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        report["written"] = {str(out): len(rows)}
    if as_json:
        emit_json({**report, "warnings": mix_warnings(report)})
        return
    show(mix_table(report))
    for name, count in report.get("written", {}).items():
        note(f"{name}: {count:,} rows")


def _check_out(out: Path, recipe: Recipe, *, force: bool) -> None:
    """What can be known to be wrong before any row is read."""
    from luthier.curate.files import refuse_sources

    if out.suffix.lower() not in {".jsonl", ".ndjson"}:
        raise RecipeError(code="C103", message=f"--out {out} must end in .jsonl", hint="name it mixture.jsonl")
    data = recipe.data
    tasks = [path for task in recipe.evaluate.tasks for path in (task.path, task.fewshot_path)]
    paths = [*(source.path for source in data.train), data.validation.path, *tasks]
    refuse_sources(out, [path for path in paths if path])
    if out.exists() and not force:
        raise RecipeError(code="C103", message=f"--out {out} is there already", hint="--force replaces it")
    if recipe.data.streaming:
        message = "--out holds the rows in memory, and data.streaming keeps none there"
        raise RecipeError(code="C110", message=message, hint="data.streaming=false")
    if recipe.objective.name == "grpo":
        raise RecipeError(code="C110", message="--out writes rows with answers, and online RL has prompts only")


def mix_table(report: dict[str, Any]) -> Table:
    """The report as a table."""
    from rich.table import Table

    by = report.get("by")
    how = report["stop"] or f"{report['size']:,} {by.replace('_', ' ')}" if by else None
    table = Table(title=f"shares of {by.replace('_', ' ')}, {how}" if by else None, title_justify="left")
    table.add_column("source", overflow="fold")
    for name in ("wanted", "rows", "tokens", "trained tokens", "rows used", "of", "times"):
        table.add_column(name, justify="right")
    for source in report["sources"]:
        got = source["achieved"]
        wanted = f"weight {source['weight']:g}" if source["share"] is None else f"{source['share']:.2%}"
        table.add_row(
            source["path"], wanted, *(f"{got[name]:.2%}" for name in ("rows", "tokens", "trained_tokens")),
            f"{source['rows']:,}", f"{source['rows_available']:,}", f"{source['times']:.2f}",
        )  # fmt: skip
    totals = (f"{report['rows']:,}", f"{report['tokens']:,}", f"{report['trained_tokens']:,}")
    table.add_section()
    table.add_row("together", "", *totals, f"{report['rows']:,}", "", "")
    return table
