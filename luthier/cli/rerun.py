"""`luthier rerun`: repeat a run and say whether the numbers are equal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show


def rerun(
    folder: Annotated[Path, typer.Argument(help="Run folder to repeat.")],
    output_dir: Annotated[Path | None, typer.Option("--output-dir", help="Folder of the new run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a finished run's recipe again and compare every loss, answer and weight."""
    from luthier.pipeline.rerun import rerun as repeat

    target = output_dir or folder.with_name(folder.name + "-rerun")
    outcome = repeat(folder, target, command=sys.argv)
    if as_json:
        emit_json({"equal": outcome.equal, "differences": outcome.differences, "folder": str(target)})
    elif outcome.equal:
        show("equal: every loss, gradient norm, answer and weight is the same to the last bit")
    else:
        show(f"not equal: {len(outcome.differences)} differences")
        for line in outcome.differences[:20]:
            show(f"  {line}")
    if not outcome.equal:
        raise typer.Exit(1)
