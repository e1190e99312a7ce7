"""`luthier compare`: paired tests between scores, and the rows that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder, or a file with scores.")],
    second: Annotated[
        Path | None, typer.Argument(help="Another run folder or file; without it: base against tuned.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.", min=0.5, max=0.999)] = 0.95,
    rows: Annotated[int, typer.Option("--rows", "-n", help="Changed rows to show.", min=0)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare before and after of one run, or the tuned models of two, on the same rows."""
    from luthier.evaluate.compare import compare_files

    before, after = _files(first, second)
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


def _files(first: Path, second: Path | None) -> tuple[Path, Path]:
    if second is None:
        return first / "eval" / "before.json", first / "eval" / "after.json"

    def scores(path: Path) -> Path:
        return path / "eval" / "after.json" if path.is_dir() else path

    return scores(first), scores(second)


__all__: list[Any] = ["compare"]
