"""`luthier push`: a run's model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show


def push(
    folder: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="Repository, owner/name; made if missing.", show_default=False)],
    what: Annotated[str, typer.Option(help="adapter, merged or gguf.")] = "merged",
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    revision: Annotated[str, typer.Option(help="Branch; made if missing.")] = "main",
    base_model: Annotated[str | None, typer.Option(help="Hub id of the base, if the run knows only a folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; contact nobody.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a model with its card. Again: only what changed. The token: HF_TOKEN or `hf auth login`."""
    from luthier.export.hub.upload import require_token
    from luthier.pipeline import push as pushing
    from luthier.runs.overview import require_run
    from luthier.runtime.console import note

    section = pushing.section_from(repo_id, what, private=private, revision=revision, base_model=base_model)
    run = require_run(folder)
    if dry_run:
        plan = pushing.plan_push(run, section)
        if as_json:
            emit_json({"dry_run": True, **plan.to_json()})
        else:
            show(pushing.plan_table(plan))
        return
    token = require_token()
    with run.lock():
        plan = pushing.plan_push(run, section, token=token)
        if not as_json:
            show(pushing.plan_table(plan))
        result = pushing.push(run, plan, token=token)
    if as_json:
        emit_json({"dry_run": False, **result.to_json()})
        return
    for line in pushing.result_lines(result):
        note(line)
