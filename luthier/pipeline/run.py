"""The whole story of a run. Read this file first.

    data      rows -> tokens with a proven mask -> packs
    baseline  score the untouched model
    train     adapters, or weights
    evaluate  score the tuned model on the same rows
    compare   paired test: better, no evidence, worse
    merge     adapters into the original base, checked against the adapter
    push      to the Hub, where the recipe asks for it
    report    one page

Each stage says what its result depends on. A finished stage is reused when none of that has
changed and its files are there; otherwise the reason is printed and it runs again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.export.hub.upload import require_token
from luthier.pipeline.session import Session
from luthier.pipeline.stage import Stage
from luthier.pipeline.stages import STAGES
from luthier.pipeline.train_stage import refuse_changed_resume
from luthier.recipe.load import dump_yaml
from luthier.recipe.optimizers import require_optimizer
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder, StageRecord
from luthier.runs.manifest import code_version, hardware, library_versions
from luthier.runs.stages import why_run
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, LuthierError

__all__ = ["RunResult", "run_recipe"]

BEFORE_SCORES = ("data", "baseline", "train")
SHOW_MANIFEST = ("evaluate", "merge", "gguf", "push", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to."""

    folder: Path
    stages: dict[str, dict[str, Any]]
    """Result of each stage."""
    reused: tuple[str, ...]
    """Stages that did not have to run."""
    seconds: float

    @property
    def comparison(self) -> list[dict[str, Any]]:
        """Before against after, one entry a task; empty without tasks."""
        return list(self.stages.get("compare", {}).get("tasks", []))


def run_recipe(
    recipe: Recipe,
    *,
    recipe_text: str | None = None,
    only: Sequence[str] | None = None,
    restart: bool = False,
    command: Sequence[str] = (),
) -> RunResult:
    """Run every stage of a recipe, or the named ones.

    Args:
        recipe: What to do.
        recipe_text: The recipe as the user wrote it, kept in the run folder.
        only: Names of the stages to run, in any order; what they need must be finished.
        restart: Train from the start even if there is a checkpoint to resume from.
        command: The command line, for the record.

    Raises:
        LuthierError: with the exit code of its class; the run folder says how far it came.
    """
    started = time.monotonic()
    _refuse_several_processes()
    run = RunFolder(Path(recipe.output_dir))
    with run.lock():
        session = Session(recipe, run, restart=restart)
        refuse_changed_resume(session, wanted=_wanted(recipe, only))
        if any(stage.name == "push" for stage in _wanted(recipe, only)):
            require_token()  # not after hours of training
        if any(stage.name == "train" for stage in _wanted(recipe, only)):
            require_optimizer(recipe.train)
        write_text(
            run.path / "recipe.yaml", recipe_text or dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))
        )
        results: dict[str, dict[str, Any]] = {}
        reused: list[str] = []
        try:
            for stage in _wanted(recipe, only):
                if stage.name in SHOW_MANIFEST:
                    _write_manifest(session, command)  # card and page show it; what training froze is compared with
                record, fresh = _run_stage(stage, session)
                results[stage.name] = record.result
                reused += [] if fresh else [stage.name]
        except LuthierError as error:
            run.event(
                "failed", code=error.problems[0].code, message=error.problems[0].message, exit_code=error.exit_code
            )
            raise
        finally:
            _write_manifest(session, command)
    return RunResult(
        folder=run.path, stages=results, reused=tuple(reused), seconds=round(time.monotonic() - started, 3)
    )


def _refuse_several_processes() -> None:
    """The loop runs on several processes; the stages around it do not share a folder between them yet."""
    processes = read_env().world_size
    if processes > 1:
        raise EnvironmentProblem(
            code="R731",
            message=f"this recipe was started by a launcher with {processes} processes; a run takes one process so far",
            hint="start it without torchrun or accelerate; `luthier.train.loop.fit` itself runs under torchrun",
        )


def _wanted(recipe: Recipe, only: Sequence[str] | None) -> list[Stage]:
    return [stage for stage in STAGES if stage.wanted(recipe) and (only is None or stage.name in only)]


def _run_stage(stage: Stage, session: Session) -> tuple[StageRecord, bool]:
    """Run or reuse one stage; returns its record and whether it ran."""
    run = session.run
    depends_on = stage.depends_on(session)
    record = run.stage(stage.name)
    missing = [name for name in stage.outputs if not (run.path / name).exists()]
    reason = why_run(record, depends_on, missing)
    if reason is None and record is not None:
        note(f"{stage.name}: reused, nothing it depends on changed (took {record.seconds:.0f} s then)", style="dim")
        return record, False
    note(f"{stage.name}: {stage.title}" + ("" if record is None else f" ({reason})"), style="bold")
    if stage.name in BEFORE_SCORES:
        session.tasks  # noqa: B018  a task that cannot be read is told before the work, not after it
        session.tried_rewards  # noqa: B018  and so is a reward that cannot be called
    session.again = record is not None
    run.forget_stage(stage.name)
    run.event("stage_started", stage=stage.name, reason=reason)
    started = time.monotonic()
    result = stage.action(session)
    seconds = time.monotonic() - started
    record = run.finish_stage(stage.name, depends_on=depends_on, result=result, seconds=seconds)
    run.event("stage_finished", stage=stage.name, seconds=round(seconds, 3))
    return record, True


def _write_manifest(session: Session, command: Sequence[str]) -> None:
    """Everything needed to repeat the run (contract 10)."""
    known = {name: session.__dict__.get(name) for name in ("identity", "source_hashes")}
    data, train = session.run.stage("data"), session.run.stage("train")
    write_json(
        session.run.path / "manifest.json",
        {
            "command": list(command),
            "working_directory": str(Path.cwd()),
            "recipe": session.recipe.model_dump(mode="json", exclude_unset=True),
            "method": session.recipe.method.name,
            "seed": session.recipe.train.seed,
            "code": code_version(),
            "versions": library_versions(),
            "hardware": hardware(),
            "base": known["identity"],
            "sources": known["source_hashes"],
            "data": data.result.get("hash") if data else None,
            "prompts": train.result.get("prompts") if train else None,
        },
    )
