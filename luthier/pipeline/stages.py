"""The stages in order. `run.py` goes through them.

stage.py         what a stage is         score_stages.py    scores before and after, compared
data_stage.py    rows                    export_stages.py   merge, GGUF, the Hub
train_stage.py   training                here               the report, and the table
"""

from __future__ import annotations

from typing import Any

from luthier.pipeline.data_stage import data_depends, prepare_data
from luthier.pipeline.export_stages import (
    gguf_depends,
    merge_adapter,
    merge_depends,
    push_depends,
    push_to_hub,
    write_gguf,
)
from luthier.pipeline.score_stages import (
    compare_depends,
    compare_scores,
    evaluate_depends,
    score_base,
    score_tuned,
    scoring_depends,
)
from luthier.pipeline.session import Session
from luthier.pipeline.stage import Stage
from luthier.pipeline.train_stage import train_depends, train_model
from luthier.recipe.schema import Recipe
from luthier.runtime.console import note

__all__ = ["STAGES"]


def _report_depends(session: Session) -> dict[str, Any]:
    done = {stage.name: session.run.stage(stage.name) for stage in STAGES[:-1]}
    return {name: record.finished_at for name, record in done.items() if record is not None}


def _report(session: Session) -> dict[str, Any]:
    from luthier.report.card.write import write_cards
    from luthier.report.write import write_report

    write_cards(session.run)
    path = write_report(session.run)
    note(f"  {path}")
    return {"file": path.name}


def _always(recipe: Recipe) -> bool:
    return True


def _has_tasks(recipe: Recipe) -> bool:
    return bool(recipe.evaluate.tasks)


def _compares(recipe: Recipe) -> bool:
    return bool(recipe.evaluate.tasks) and recipe.evaluate.compare_with_base


STAGES: tuple[Stage, ...] = (
    Stage(name="data", title="read, render, mask, pack", wanted=_always, depends_on=data_depends, action=prepare_data,
          outputs=("data/manifest.json",)),
    Stage(name="baseline", title="score the untouched model", wanted=_compares, depends_on=scoring_depends,
          action=score_base, outputs=("eval/before.json",), together=True),
    Stage(name="train", title="tune", wanted=_always, depends_on=train_depends, action=train_model, outputs=("final",),
          together=True),
    Stage(name="evaluate", title="score the tuned model", wanted=_has_tasks, depends_on=evaluate_depends,
          action=score_tuned, outputs=("eval/after.json",), together=True),
    Stage(name="compare", title="before against after, same rows", wanted=_compares, depends_on=compare_depends,
          action=compare_scores, outputs=("eval/comparison.json",)),
    Stage(name="merge", title="into the original base", wanted=lambda recipe: recipe.export.merge,
          depends_on=merge_depends, action=merge_adapter, outputs=("merged", "export/merge.json")),
    Stage(name="gguf", title="files for llama.cpp, read back", wanted=lambda recipe: bool(recipe.export.gguf),
          depends_on=gguf_depends, action=write_gguf, outputs=("export/gguf.json", "gguf")),
    Stage(name="push", title="to the Hub", wanted=lambda recipe: recipe.export.push_to_hub is not None,
          depends_on=push_depends, action=push_to_hub, outputs=("export/push.json",)),
    Stage(name="report", title="one page", wanted=_always, depends_on=_report_depends, action=_report,
          outputs=("report.html",)),
)  # fmt: skip
