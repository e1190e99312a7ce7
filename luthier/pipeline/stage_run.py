"""One stage: reused, or run, by process 0 alone or by all processes together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from luthier.pipeline.session import Session
from luthier.pipeline.stage import Stage
from luthier.runs.folder import StageRecord
from luthier.runs.stages import why_run
from luthier.runtime.console import note
from luthier.runtime.heartbeat import mark

__all__ = ["run_stage"]

BEFORE_SCORES = ("data", "baseline", "train")


@dataclass(frozen=True, slots=True)
class _Begun:
    """What process 0 decided on a stage."""

    reused: StageRecord | None
    again: bool = False
    """It had finished before."""
    depends_on: dict[str, Any] = field(default_factory=dict)


def run_stage(stage: Stage, session: Session) -> tuple[StageRecord, bool]:
    """Run or reuse one stage; returns its record and whether it ran. The same in every process."""
    group = session.group
    if not stage.together:
        found = group.from_main(f"stage {stage.name}", lambda: _run(stage, session, _begin(stage, session)))
    else:
        begun = group.from_main(f"whether {stage.name} runs", lambda: _begin(stage, session))
        found = _run(stage, session, begun)
    if group.keeps_records:
        record = found[0]
        session.run.finish_stage(
            record.stage, depends_on=record.depends_on, result=record.result, seconds=record.seconds
        )
    return found


def _run(stage: Stage, session: Session, begun: _Begun) -> tuple[StageRecord, bool]:
    if begun.reused is not None:
        return begun.reused, False
    session.again = begun.again
    started = time.monotonic()
    mark(f"stage {stage.name}", watched=False)
    result = stage.action(session)

    def end() -> StageRecord:
        seconds = time.monotonic() - started
        record = session.run.finish_stage(stage.name, depends_on=begun.depends_on, result=result, seconds=seconds)
        session.run.event("stage_finished", stage=stage.name, seconds=round(seconds, 3))
        return record

    return (session.group.from_main(f"end of {stage.name}", end) if stage.together else end()), True


def _begin(stage: Stage, session: Session) -> _Begun:
    run = session.run
    depends_on = stage.depends_on(session)
    record = run.stage(stage.name)
    missing = [name for name in stage.outputs if not (run.path / name).exists()]
    reason = why_run(record, depends_on, missing)
    if reason is None and record is not None:
        note(f"{stage.name}: reused, nothing it depends on changed (took {record.seconds:.0f} s then)", style="dim")
        return _Begun(record)
    note(f"{stage.name}: {stage.title}" + ("" if record is None else f" ({reason})"), style="bold")
    if stage.name in BEFORE_SCORES:
        session.tasks  # noqa: B018  a task that cannot be read is told before the work, not after it
        session.tried_rewards  # noqa: B018  and so is a reward that cannot be called
    run.forget_stage(stage.name)
    run.event("stage_started", stage=stage.name, reason=reason)
    return _Begun(None, again=record is not None, depends_on=depends_on)
