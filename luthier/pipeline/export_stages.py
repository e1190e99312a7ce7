"""The stages after the scores: merge, files for llama.cpp, the Hub."""

from __future__ import annotations

from typing import Any

from luthier.pipeline.session import Session
from luthier.pipeline.stage import CODE_VERSION
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note

__all__ = ["gguf_depends", "merge_adapter", "merge_depends", "push_depends", "push_to_hub", "write_gguf"]


def merge_depends(session: Session) -> dict[str, Any]:
    """What the merged model depends on."""
    return {
        "code": CODE_VERSION["merge"],
        "weights": session.stage_result("train")["weights"],
        "base": session.identity,
        "max_shard_size": session.recipe.export.max_shard_size,
    }


def merge_adapter(session: Session) -> dict[str, Any]:
    """Write `merged/` if merged and adapter model agree, and `export/merge.json`: how far they are apart."""
    from luthier.export.merge import merge
    from luthier.report.card.write import keep_cards, write_cards

    run = session.run.path
    keep_cards(session.run)
    report = merge(
        session.recipe.model,
        run / "final",
        run / "merged",
        max_shard_size=session.recipe.export.max_shard_size,
        device=session.device,
    )
    value = report.to_json()
    write_json(run / "export" / "merge.json", value)
    note(
        f"  merged model and adapter agree: logits differ by {value['merging']:.2g} through merging and "
        f"{value['writing']:.2g} through writing (bound {value['bound']:.2g}), by {value['rounding']:.2g} through "
        f"rounding to {value['dtype']}, over {value['tokens']} tokens; "
        f"same first choice on {value['argmax_agreement']:.1%}"
    )
    write_cards(session.run)
    return value


def gguf_depends(session: Session) -> dict[str, Any]:
    """What GGUF files depend on: the merge they are made from, their types and name."""
    merged = session.run.stage("merge")
    return {
        "code": CODE_VERSION["gguf"],
        "merged": merged.finished_at if merged else None,
        "types": session.recipe.export.gguf,
        "name": _model_name(session),
    }


def _model_name(session: Session) -> str:
    return session.run.path.resolve().name


def write_gguf(session: Session) -> dict[str, Any]:
    """Write the files of `export.gguf`, read back, and `export/gguf.json` about them."""
    from luthier.export.gguf.check import report_lines
    from luthier.export.gguf.export import export_gguf

    run = session.run.path
    reports = export_gguf(run / "merged", run / "gguf", session.recipe.export.gguf, name=_model_name(session))
    value = {"files": [report.to_json() for report in reports]}
    write_json(run / "export" / "gguf.json", value)
    for report in reports:
        for line in report_lines(report.to_json()):
            note(f"  {line}")
    return value


def push_depends(session: Session) -> dict[str, Any]:
    """What an upload depends on: where to, and the stages whose files it takes."""
    push = session.recipe.export.push_to_hub
    assert push is not None
    done = {name: record.finished_at for name in ("train", "compare", "merge", "gguf")
            if (record := session.run.stage(name)) is not None}  # fmt: skip
    return {"code": CODE_VERSION["push"], "push": push.model_dump(mode="json"), "done": done}


def push_to_hub(session: Session) -> dict[str, Any]:
    """Upload what `export.push_to_hub` names."""
    from luthier.export.hub.upload import require_token
    from luthier.pipeline.push import plan_push, push, result_lines

    section = session.recipe.export.push_to_hub
    assert section is not None
    token = require_token()
    result = push(session.run, plan_push(session.run, section, token=token), token=token)
    for line in result_lines(result):
        note(f"  {line}")
    return result.to_json()
