"""The whole story of a run. Read this file first.

    data      rows -> tokens with a proven mask -> packs
    baseline  score the untouched model
    train     adapters, or weights
    evaluate  score the tuned model on the same rows
    compare   paired test: better, no evidence, worse
    merge     adapters into the original base, checked against the adapter
    gguf      files for llama.cpp, read back by it, where the recipe asks for them
    push      to the Hub, where the recipe asks for it
    report    one page

Each stage says what its result depends on. A finished stage is reused when none of that has
changed and its files are there; otherwise the reason is printed and it runs again (`stage_run.py`).

Under a launcher every process comes here: they train and score together, the other stages are process 0's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.export.hub.upload import require_token
from luthier.pipeline.configured import Configured, settle
from luthier.pipeline.online import refuse_several_devices
from luthier.pipeline.sequences import require_shareable_sequences
from luthier.pipeline.session import Session
from luthier.pipeline.stage import Stage
from luthier.pipeline.stage_run import run_stage
from luthier.pipeline.stages import STAGES
from luthier.pipeline.train_stage import refuse_changed_resume
from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.load import dump_yaml
from luthier.recipe.online import require_processes
from luthier.recipe.optimizers import require_optimizer
from luthier.recipe.replicate_rules import require_copies
from luthier.recipe.schema import Recipe
from luthier.runs.folder import RunFolder
from luthier.runs.manifest import code_version, hardware, library_versions
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.env import read_env, without_launcher_variables
from luthier.runtime.errors import LuthierError
from luthier.runtime.trackers import require_trackers
from luthier.train.distributed.group import Group, join
from luthier.train.distributed.watch import beating

__all__ = ["RunResult", "run_recipe"]

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
    with without_launcher_variables() as exported:
        recipe, configured = settle(recipe, exported)
        return _run(recipe, configured, recipe_text=recipe_text, only=only, restart=restart, command=command)


def _run(
    recipe: Recipe, configured: Configured, *, recipe_text: str | None, only: Sequence[str] | None, restart: bool,
    command: Sequence[str],
) -> RunResult:  # fmt: skip
    started = time.monotonic()
    run = RunFolder(Path(recipe.output_dir))
    session = Session(recipe, run, restart=restart)
    session.configured = configured
    with beating(run.path), join(lambda: session.device) as session.group, _owned(session.group, run):
        session.group.from_main("begin", lambda: _begin(session, recipe_text, only))
        results: dict[str, dict[str, Any]] = {}
        reused: list[str] = []
        try:
            for stage in _wanted(recipe, only):
                if stage.name in SHOW_MANIFEST and session.group.is_main:
                    _write_manifest(session, command)  # card and page show it; what training froze is compared with
                record, fresh = run_stage(stage, session)
                results[stage.name] = record.result
                reused += [] if fresh else [stage.name]
        except LuthierError as error:
            if session.group.is_main:
                run.event(
                    "failed", code=error.problems[0].code, message=error.problems[0].message, exit_code=error.exit_code
                )
            raise
        finally:
            if session.group.is_main:
                _write_manifest(session, command)
    return RunResult(
        folder=run.path, stages=results, reused=tuple(reused), seconds=round(time.monotonic() - started, 3)
    )


@contextmanager
def _owned(group: Group, run: RunFolder) -> Iterator[None]:
    """Process 0 owns the folder for all; the others come in when it does."""
    if not group.is_main:
        group.from_main("folder", lambda: None)
        yield
        return
    with ExitStack() as stack:
        group.from_main("folder", lambda: stack.enter_context(run.lock()))
        yield


def _begin(session: Session, recipe_text: str | None, only: Sequence[str] | None) -> None:
    """What can be known to be wrong before any work, and the recipe as a file."""
    recipe, wanted = session.recipe, _wanted(session.recipe, only)
    if any(stage.name == "train" for stage in wanted):
        require_processes(recipe, session.group.size, unshared=read_env().unshared)
    refuse_changed_resume(session, wanted=wanted)
    if any(stage.name == "push" for stage in wanted):
        require_token()  # not after hours of training
    if any(stage.name == "train" for stage in wanted):
        require_optimizer(recipe.train)
        require_copies(recipe.distributed.dp_replicate_size, session.group.size)
        require_shareable_sequences(session)
        if session.run.stage("train") is None:  # a finished training is reused without its packages
            _require_packages(session)
    write_text(
        session.run.path / "recipe.yaml", recipe_text or dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))
    )


def _require_packages(session: Session) -> None:
    """What training needs after the baseline has been scored: its lack is told before."""
    recipe = session.recipe
    require_trackers(recipe.train.report_to)
    refuse_several_devices(session)
    if session.group.size > 1 and recipe.distributed.strategy in ZERO:
        from luthier.train.distributed.zero import require_deepspeed

        require_deepspeed()


def _wanted(recipe: Recipe, only: Sequence[str] | None) -> list[Stage]:
    return [stage for stage in STAGES if stage.wanted(recipe) and (only is None or stage.name in only)]


def _typed(command: Sequence[str]) -> list[str]:
    """`python -m luthier`, which Python turns into the path of a file, as it can be typed again."""
    if command and Path(command[0]).name == "__main__.py":
        return ["python", "-m", "luthier", *command[1:]]
    return list(command)


def _write_manifest(session: Session, command: Sequence[str]) -> None:
    """Everything needed to repeat the run (contract 10)."""
    known = {name: session.__dict__.get(name) for name in ("identity", "source_hashes")}
    data, train = session.run.stage("data"), session.run.stage("train")
    write_json(
        session.run.path / "manifest.json",
        {
            "command": _typed(command),
            "working_directory": str(Path.cwd()),
            "recipe": session.recipe.model_dump(mode="json", exclude_unset=True),
            "configured": session.configured.to_json(),
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
