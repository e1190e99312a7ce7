"""`luthier quickstart`: the whole life of a fine-tune with an embedded model and synthetic data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json


def quickstart(
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Run folder.")] = Path("runs/quickstart"),
    as_json: JsonOption = False,
) -> None:
    """Score, tune, score again, merge, check, chat: an embedded model on synthetic tickets; a few CPU minutes."""
    from luthier.quickstart.story import tell

    result = tell(output_dir, command=sys.argv)
    if as_json:
        emit_json(result)
