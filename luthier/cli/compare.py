"""`luthier compare`: runs side by side, paired tests between scores, and the rows that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show
from luthier.runtime.errors import RecipeError


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Run folders; or one, its base against its tuned model; or two files with scores."),
    ],
    confidence: Annotated[float, typer.Option(help="Level of the intervals.", min=0.5, max=0.999)] = 0.95,
    rows: Annotated[int, typer.Option("--rows", "-n", help="Changed rows to show for each task.", min=0)] = 3,
    against_first: Annotated[
        bool, typer.Option("--against-first", help="Of several runs: test each against the first only, not every pair.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Of several runs: write a self-contained page.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare several runs, before and after of one run, or two files with scores, on the same rows."""
    several = len(paths) > 1 and all(path.is_dir() for path in paths)
    if several or len(paths) > 2:
        _runs(paths, confidence=confidence, against_first=against_first, rows=rows, html=html, as_json=as_json)
        return
    if against_first or html is not None:
        option = "--html" if html is not None else "--against-first"
        hint = "name two or more run folders; the page of one run is its report.html"
        raise RecipeError(code="E571", message=f"{option} is for several run folders", hint=hint)
    _scores(*_files(paths), confidence=confidence, rows=rows, as_json=as_json)


def _runs(
    folders: list[Path], *, confidence: float, against_first: bool, rows: int, html: Path | None, as_json: bool
) -> None:
    from luthier.evaluate.across import compare_runs

    of_page = 20 if html is not None else 0
    found = compare_runs(folders, confidence=confidence, against_first=against_first, rows=max(rows, of_page))
    value = found.as_json()
    if html is not None:
        from luthier.report.across import write_page

        write_page(value, html)
    if as_json:
        emit_json(value)
        return
    from luthier.evaluate.across.tables import comparison_tables

    for part in comparison_tables(value, rows=rows):
        show(part)
    if html is not None:
        show(f"\nPage: {html}")


def _scores(before: Path, after: Path, *, confidence: float, rows: int, as_json: bool) -> None:
    from luthier.evaluate.compare import compare_files

    value = compare_files(before, after, confidence=confidence)
    if as_json:
        emit_json(value)
        return
    from rich.text import Text

    from luthier.evaluate.forgetting.suite import forgetting_line
    from luthier.evaluate.tables import changed_rows_table, comparison_table

    show(comparison_table(value))
    if "forgetting" in value:
        show(Text(forgetting_line(value["forgetting"])))
    if rows:
        show(changed_rows_table(before, after, value, limit=rows))


def _files(paths: list[Path]) -> tuple[Path, Path]:
    if len(paths) == 1:
        return paths[0] / "eval" / "before.json", paths[0] / "eval" / "after.json"

    def scores(path: Path) -> Path:
        return path / "eval" / "after.json" if path.is_dir() else path

    return scores(paths[0]), scores(paths[1])


__all__: list[Any] = ["compare"]
