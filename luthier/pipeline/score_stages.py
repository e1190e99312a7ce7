"""The stages that score: the untouched model, the tuned one on the same rows, and the two compared."""

from __future__ import annotations

from typing import Any

from luthier.pipeline.data_stage import template_facts
from luthier.pipeline.judging import asking, judge_facts, judged
from luthier.pipeline.session import Session
from luthier.pipeline.stage import CODE_VERSION
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note

__all__ = ["compare_depends", "compare_scores", "evaluate_depends", "score_base", "score_tuned", "scoring_depends"]


def scoring_depends(session: Session) -> dict[str, Any]:
    """What scores of one model depend on, besides its weights."""
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


def score_base(session: Session) -> dict[str, Any]:
    """Write `eval/before.json`: the untouched model."""
    from luthier.model.load import load_base

    section = session.resolved.recipe.model
    model = load_base(section, device=session.device, dtype=section.dtype, quantization=section.quantization)
    return _score(session, model, "base")


def score_tuned(session: Session) -> dict[str, Any]:
    """Write `eval/after.json`: the same rows with what `final/` holds."""
    from luthier.model.load import load_tuned

    section = session.resolved.recipe.model
    if session.group.size > 1:
        from luthier.train.distributed.folders import hand_out

        hand_out(session.device.torch_device, session.run.path / "final")
    _require_trained_prompts(session)
    model = load_tuned(
        section,
        session.run.path / "final",
        device=session.device,
        dtype=section.dtype,
        quantization=section.quantization,
    )
    return _score(session, model, "tuned")


def evaluate_depends(session: Session) -> dict[str, Any]:
    """As `scoring_depends`, with the weights that training left."""
    return {**scoring_depends(session), "weights": session.stage_result("train")["weights"]}


def _require_trained_prompts(session: Session) -> None:
    """The recipe's prompts are those that the finished training froze."""
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import check_saved, require_same

    recipe, contract = session.recipe, session.stage_result("train").get("prompts")
    kwargs, control = recipe.model.chat_template_kwargs, recipe.data.control_tokens
    template = ChatTemplate(session.tokenizer, kwargs=kwargs, control_tokens=control)
    require_same(contract, template, stops=None, where="the recipe")
    check_saved(session.run.path / "final", contract)


# -- compare


def compare_depends(session: Session) -> dict[str, Any]:
    """What the comparison depends on: both files of scores, and who judges."""
    from luthier.runtime.hashing import hash_file

    folder = session.run.path / "eval"
    return {
        "code": CODE_VERSION["evaluate"],
        "before": hash_file(folder / "before.json"),
        "after": hash_file(folder / "after.json"),
        "confidence": session.recipe.evaluate.confidence,
        **judge_facts(session.recipe.evaluate),
    }


def compare_scores(session: Session) -> dict[str, Any]:
    """Write `eval/comparison.json`, and `eval/judge.json` where the recipe's judge compares."""
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
