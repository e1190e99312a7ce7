"""What a run came to, in a few lines and as JSON."""

from __future__ import annotations

from typing import Any

from luthier.pipeline.run import RunResult

__all__ = ["result_to_json", "summary_lines"]


def result_to_json(result: RunResult) -> dict[str, Any]:
    """The whole result as one JSON object."""
    return {
        "ok": True,
        "folder": str(result.folder),
        "seconds": result.seconds,
        "reused": list(result.reused),
        "stages": result.stages,
    }


def summary_lines(result: RunResult) -> list[str]:
    """Verdicts, where things are, and what to try next."""
    lines = ["", f"Done in {result.seconds:.0f} s: {result.folder}"]
    for task in result.comparison:
        lines.append(
            f"  {task['name']}: {_score(task, 'before')} -> {_score(task, 'after')} on {task['n']} held-out rows, "
            f"p = {task['p_value']:.2g}: {task['verdict']}"
        )
    train = result.stages.get("train")
    if train:
        lines.append(
            f"  trained {train['steps']} steps, {train['tokens']:,} tokens "
            f"at {train['tokens_per_second']:,.0f} tokens/s"
        )
    if train and train.get("final_reward") is not None:
        lines.append(f"  mean reward in training {train['first_reward']:.3g} -> {train['final_reward']:.3g}")
    from luthier.model.reward import is_reward_folder

    rates = is_reward_folder(result.folder / "final")
    lines.append("Next:")
    if not rates:
        lines.append(f"  luthier chat {result.folder} --side-by-side        talk to base and tuned model")
    if "report" in result.stages:
        lines.append(f"  open {result.folder / 'report.html'}")
    if "merge" in result.stages:
        where = "in plain transformers, vLLM and the like"
        if rates:
            where = "in transformers' AutoModelForSequenceClassification"
        lines.append(f"  {result.folder / 'merged'} loads {where}")
    return lines


def _score(task: dict[str, Any], when: str) -> str:
    """Share of rows in percent; losses as they are."""
    return f"{task[when]:.4f}" if task["metric"] == "loss" else f"{task[when]:.1%}"
