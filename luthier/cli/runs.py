"""`luthier runs ls|show`: what is in the run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show

app = typer.Typer(help="Look at run folders.", no_args_is_help=True)
RootArgument = Annotated[Path, typer.Argument(help="Folder that holds run folders.")]


@app.command("ls")
def ls(root: RootArgument = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs below a folder, newest first."""
    from luthier.runs.overview import find_runs

    overviews = find_runs(root)
    if as_json:
        emit_json(overviews)
        return
    from rich.table import Table

    table = Table("run", "base", "method", "steps", "loss", "before -> after", "finished", box=None, pad_edge=False)
    for run in overviews:
        scores = ", ".join(f"{task['name']} {task['before']:.2f} -> {task['after']:.2f}" for task in run["comparison"])
        table.add_row(
            run["folder"], run["base"], run["method"], _text(run["steps"]), _text(run["loss"]), scores, run["finished"]
        )
    show(table if overviews else f"no run folders below {root}")


@app.command("show")
def show_run(folder: Annotated[Path, typer.Argument(help="Run folder.")], as_json: JsonOption = False) -> None:
    """Everything known about one run: stages, scores, files, versions."""
    from luthier.runs.overview import describe_run

    run = describe_run(folder)
    if as_json:
        emit_json(run)
        return
    from rich.table import Table

    table = Table("stage", "seconds", "finished", "result", box=None, pad_edge=False)
    for name, stage in run["stages"].items():
        result = ", ".join(
            f"{key} {_text(value)}" for key, value in stage["result"].items() if not isinstance(value, dict | list)
        )
        table.add_row(name, f"{stage['seconds']:.1f}", stage["finished_at"], result)
    show(table)
    for task in run["comparison"]:
        show(
            f"{task['name']}: {task['before']:.3f} -> {task['after']:.3f}, p = {task['p_value']:.2g}: {task['verdict']}"
        )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
