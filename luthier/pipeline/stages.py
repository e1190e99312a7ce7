"""The stages in order: what each depends on, what it does, what it leaves. `run.py` goes through them.

stage.py         what a stage is          data_stage.py    rows
train_stage.py   training                 here             scores, comparison, merge, report
"""

from __future__ import annotations

from typing import Any

from luthier.pipeline.data_stage import data_depends, prepare_data, template_facts
from luthier.pipeline.judging import asking, judge_facts, judged
from luthier.pipeline.session import Session
from luthier.pipeline.stage import CODE_VERSION, Stage
from luthier.pipeline.train_stage import train_depends, train_model
from luthier.recipe.schema import Recipe
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note

__all__ = ["STAGES"]


# -- scores


def _scoring_depends(session: Session) -> dict[str, Any]:
    recipe = session.recipe
    return {
        "code": CODE_VERSION["evaluate"],
        "tasks": [
            {"spec": task.model_dump(mode="json"), "files": session.task_hashes(task)} for task in recipe.evaluate.tasks
        ],
        "confidence": recipe.evaluate.confidence,
        "model": recipe.model.model_dump(mode="json"),
        "base": session.identity,
        **template_facts(session),
        **(judge_facts(recipe.evaluate) if any(task.grader for task in recipe.evaluate.tasks) else {}),
    }


def _score(session: Session, model: Any, label: str) -> dict[str, Any]:
    from luthier.evaluate.run import results_to_json, run_tasks

    recipe = session.resolved.recipe
    spread = session.group.spread(label)
    with asking(recipe.evaluate) as ask:
        results = run_tasks(
            model,
            session.tokenizer,
            session.tasks,
            batch_size=recipe.evaluate.batch_size,
            confidence=recipe.evaluate.confidence,
            template_kwargs=recipe.model.chat_template_kwargs,
            control_tokens=recipe.data.control_tokens,
            ask=ask,
            spread=spread,
        )
    if not session.group.is_main:
        return {}
    file = "before.json" if label == "base" else "after.json"
    value = results_to_json(results, model=label)
    write_json(session.run.path / "eval" / file, value)
    for task in value["tasks"]:
        note(
            f"  {task['name']}: {task['metric']} {task['score']:.3f} [{task['low']:.3f}, {task['high']:.3f}] "
            f"on {task['n']} rows ({task['tokens_per_second']:.0f} tokens/s)"
        )
    return {
        "tasks": [
            {key: task[key] for key in ("name", "metric", "n", "score", "low", "high")} for task in value["tasks"]
        ]
    }


def _baseline(session: Session) -> dict[str, Any]:
    from luthier.model.load import load_base

    section = session.resolved.recipe.model
    model = load_base(section, device=session.device, dtype=section.dtype, quantization=section.quantization)
    return _score(session, model, "base")


def _evaluate(session: Session) -> dict[str, Any]:
    from luthier.model.load import load_tuned

    section = session.resolved.recipe.model
    if session.group.size > 1:
        from luthier.train.distributed.folders import hand_out

        hand_out(session.device.torch_device, session.run.path / "final")
    require_trained_prompts(session)
    model = load_tuned(
        section,
        session.run.path / "final",
        device=session.device,
        dtype=section.dtype,
        quantization=section.quantization,
    )
    return _score(session, model, "tuned")


def _evaluate_depends(session: Session) -> dict[str, Any]:
    return {**_scoring_depends(session), "weights": session.stage_result("train")["weights"]}


# -- compare


def _compare_depends(session: Session) -> dict[str, Any]:
    from luthier.runtime.hashing import hash_file

    folder = session.run.path / "eval"
    return {
        "code": CODE_VERSION["evaluate"],
        "before": hash_file(folder / "before.json"),
        "after": hash_file(folder / "after.json"),
        "confidence": session.recipe.evaluate.confidence,
        **judge_facts(session.recipe.evaluate),
    }


def _compare(session: Session) -> dict[str, Any]:
    from luthier.evaluate.compare import compare_files
    from luthier.evaluate.forgetting.suite import forgetting_line

    folder = session.run.path / "eval"
    value = compare_files(folder / "before.json", folder / "after.json", confidence=session.recipe.evaluate.confidence)
    write_json(folder / "comparison.json", value)
    for task in value["tasks"]:
        note(
            f"  {task['name']}: {task['before']:.3f} -> {task['after']:.3f}, difference {task['delta']:+.3f} "
            f"[{task['low']:+.3f}, {task['high']:+.3f}], p = {task['p_value']:.2g} ({task['test']}): {task['verdict']}",
            style="green" if task["verdict"] == "better" else None,
        )
    tasks = [{key: item for key, item in task.items() if key != "changed"} for task in value["tasks"]]
    cost = value.get("forgetting")
    if cost is not None:
        note(f"  {forgetting_line(cost)}", style="red" if cost["verdict"] == "worse" else None)
    return {"tasks": tasks, **({} if cost is None else {"forgetting": cost}), **_judge(session)}


def _judge(session: Session) -> dict[str, Any]:
    """Verdicts of the recipe's judge, if it has one that compares."""
    section = session.recipe.evaluate
    if section.judge is None or not section.judge.compare:
        return {}
    from luthier.evaluate.judge.run import judge_lines
    from luthier.evaluate.results import read_results

    folder = session.run.path / "eval"
    before, after = read_results(folder / "before.json"), read_results(folder / "after.json")
    value = judged(section, before, after, confidence=section.confidence)
    write_json(folder / "judge.json", value)
    for line in judge_lines(value):
        note(f"  {line}")
    kept = [
        {kind: ({key: one for key, one in found.items() if key != "rows"} if kind != "name" else found)
         for kind, found in task.items()}
        for task in value["tasks"]
    ]  # fmt: skip
    return {"judge": {"usage": value["usage"], "tasks": kept}}


# -- merge and report


def require_trained_prompts(session: Session) -> None:
    """The recipe's prompts are those that the finished training froze."""
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import check_saved, require_same

    recipe, contract = session.recipe, session.stage_result("train").get("prompts")
    kwargs, control = recipe.model.chat_template_kwargs, recipe.data.control_tokens
    template = ChatTemplate(session.tokenizer, kwargs=kwargs, control_tokens=control)
    require_same(contract, template, stops=None, where="the recipe")
    check_saved(session.run.path / "final", contract)


def _merge_depends(session: Session) -> dict[str, Any]:
    return {
        "code": CODE_VERSION["merge"],
        "weights": session.stage_result("train")["weights"],
        "base": session.identity,
        "max_shard_size": session.recipe.export.max_shard_size,
    }


def _merge(session: Session) -> dict[str, Any]:
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


def _gguf_depends(session: Session) -> dict[str, Any]:
    merged = session.run.stage("merge")
    return {
        "code": CODE_VERSION["gguf"],
        "merged": merged.finished_at if merged else None,
        "types": session.recipe.export.gguf,
        "name": _model_name(session),
    }


def _model_name(session: Session) -> str:
    return session.run.path.resolve().name


def _gguf(session: Session) -> dict[str, Any]:
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


def _push_depends(session: Session) -> dict[str, Any]:
    push = session.recipe.export.push_to_hub
    assert push is not None
    done = {name: record.finished_at for name in ("train", "compare", "merge", "gguf")
            if (record := session.run.stage(name)) is not None}  # fmt: skip
    return {"code": CODE_VERSION["push"], "push": push.model_dump(mode="json"), "done": done}


def _push(session: Session) -> dict[str, Any]:
    from luthier.export.hub.upload import require_token
    from luthier.pipeline.push import plan_push, push, result_lines

    section = session.recipe.export.push_to_hub
    assert section is not None
    token = require_token()
    result = push(session.run, plan_push(session.run, section, token=token), token=token)
    for line in result_lines(result):
        note(f"  {line}")
    return result.to_json()


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
    Stage(name="baseline", title="score the untouched model", wanted=_compares, depends_on=_scoring_depends,
          action=_baseline, outputs=("eval/before.json",), together=True),
    Stage(name="train", title="tune", wanted=_always, depends_on=train_depends, action=train_model, outputs=("final",),
          together=True),
    Stage(name="evaluate", title="score the tuned model", wanted=_has_tasks, depends_on=_evaluate_depends,
          action=_evaluate, outputs=("eval/after.json",), together=True),
    Stage(name="compare", title="before against after, same rows", wanted=_compares, depends_on=_compare_depends,
          action=_compare, outputs=("eval/comparison.json",)),
    Stage(name="merge", title="into the original base", wanted=lambda recipe: recipe.export.merge,
          depends_on=_merge_depends, action=_merge, outputs=("merged", "export/merge.json")),
    Stage(name="gguf", title="files for llama.cpp, read back", wanted=lambda recipe: bool(recipe.export.gguf),
          depends_on=_gguf_depends, action=_gguf, outputs=("export/gguf.json", "gguf")),
    Stage(name="push", title="to the Hub", wanted=lambda recipe: recipe.export.push_to_hub is not None,
          depends_on=_push_depends, action=_push, outputs=("export/push.json",)),
    Stage(name="report", title="one page", wanted=_always, depends_on=_report_depends, action=_report,
          outputs=("report.html",)),
)  # fmt: skip
