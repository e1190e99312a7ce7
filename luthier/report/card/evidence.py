"""What is shown and what is not: scores before and after, and limits that follow from facts of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.model.embedded import MODEL_NAME
from luthier.report.card.facts import CardFacts
from luthier.report.card.text import bullets, code, percent, plain, table
from luthier.report.preference_view import preference_rows

__all__ = ["limits", "scores"]

_FEW = 200
"""With fewer rows the 95% interval of a share near one half is wider than 14 points (1.96 x sqrt(0.25 / n), twice)."""
_WORDS = {
    "better": "better: the difference is larger than chance explains",
    "worse": "worse: the difference is larger than chance explains",
    "no evidence": "no evidence of a difference",
}


def scores(facts: CardFacts) -> str:
    """Tables of tasks and of held-out preferences."""
    run = facts.run
    before, after = _by_name(run.before), _by_name(run.after)
    compared = _by_name(run.comparison)
    rows = [
        _row(name, before.get(name), after.get(name), compared.get(name))
        for name in dict.fromkeys([*compared, *after, *before])
    ]
    head = ("task", "metric", "rows", "base", "tuned", "difference", "test")
    parts = ["## Scores"]
    if rows:
        level = percent(facts.confidence).replace(".0%", "%")
        parts.append(f"Same rows, template and decoding for both; {level} intervals in brackets.")
        parts.append(table(head, rows))
    held_out = [[plain(row[key]) for key in ("what", "before", "after", "test")] for row in preference_rows(run)]
    if held_out:
        parts.append(f"Held-out preferences ({(run.preferences or {}).get('n', 0):,} rows):")
        parts.append(table(("what is counted as right", "before", "after", "test"), held_out))
    if len(parts) == 1:
        parts.append("None: this run scored no task.")
    return "\n\n".join(parts)


def _row(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None, compared: dict[str, Any] | None
) -> list[str]:
    known = after or before or compared or {}
    share = known.get("metric") != "loss"

    def score(task: dict[str, Any] | None) -> str:
        return "not scored" if task is None else f"{_value(task['score'], share)} {_interval(task, share)}"

    difference = test = "not compared"
    if compared is not None:
        difference = (f"{_change(compared['delta'], share)} "
                      f"({_change(compared['low'], share)} to {_change(compared['high'], share)})")  # fmt: skip
        p_value = "p < 0.0001" if compared["p_value"] < 1e-4 else f"p = {compared['p_value']:.2g}"
        test = f"{plain(compared['test'])}, {p_value}: {_WORDS.get(compared['verdict'], plain(compared['verdict']))}"
    return [
        plain(name), code(known.get("metric", "")), f"{known.get('n', 0):,}",
        score(before), score(after), difference, test,
    ]  # fmt: skip


def _value(value: float, share: bool) -> str:
    return percent(value) if share else f"{value:.4f}"


def _change(value: float, share: bool) -> str:
    return f"{value * 100:+.1f} points" if share else f"{value:+.4f}"


def _interval(value: dict[str, Any], share: bool) -> str:
    return f"({_value(value['low'], share)} to {_value(value['high'], share)})"


def limits(facts: CardFacts) -> str:
    """What a reader must not conclude."""
    lines = [*_of_scores(facts), *_of_data(facts), *_of_length(facts), *_of_training(facts)]
    lines.append("No test of safety, bias or truthfulness is part of these scores unless a task above names one.")
    return f"## Limits\n\n{bullets(lines)}"


def _of_scores(facts: CardFacts) -> Iterator[str]:
    run = facts.run
    after, compared = _by_name(run.after), _by_name(run.comparison)
    if not after and not run.preferences:
        yield "No task was scored: nothing here shows that this model is better than its base."
    for name, task in after.items():
        if task["n"] < _FEW:
            width = (
                f", an interval of {(task['high'] - task['low']) * 100:.0f} points" if task["metric"] != "loss" else ""
            )
            yield f"{plain(name)}: a small test set, {task['n']:,} rows{width}."
        if name not in compared:
            yield f"{plain(name)}: the base was not scored, so nothing says whether tuning helped."
    for name, task in compared.items():
        if task["verdict"] == "no evidence":
            yield f"{plain(name)}: no evidence that the tuned model differs from its base (p = {task['p_value']:.2g})."
        if task["verdict"] == "worse":
            yield f"{plain(name)}: the tuned model is worse than its base here."
    if any(task["verdict"] == "better" for task in compared.values()):
        yield "Scores hold for rows like those of the tasks above; other uses were not measured."


def _of_data(facts: CardFacts) -> Iterator[str]:
    manifest = facts.run.data or {}
    decon = manifest.get("curated", {}).get("decontaminate")
    if decon is None:
        yield "Training rows were not compared with the evaluation rows."
    else:
        kept = sum(decon.get("found", {}).values()) - decon.get("dropped", 0)
        if kept > 0:
            sure = sum(decon.get("sure", {}).values())
            yield (f"Contamination: {kept:,} training rows are like evaluation rows and were trained on "
                   f"({sure:,} of all those found leave little doubt); scores may be too high.")  # fmt: skip
    if manifest.get("train_validation_overlap"):
        yield f"{manifest['train_validation_overlap']:,} validation rows are training rows, too, word for word."
    if any(source.license is None for source in facts.sources):
        yield "The licence of some training rows is unknown: settle it before you publish or sell."
    if "synthetic" in facts.run.data_card.partition("\n")[0].lower():
        yield "The training rows are synthetic: nothing says how the model does on real ones."
    if facts.languages:
        yield f"Rows in other languages than {plain(', '.join(facts.languages))} were dropped; others were not trained."
        return
    said = f"; the base's card names: {plain(', '.join(facts.base.language))}" if facts.base.language else ""
    yield f"The language of the training rows was not measured{said}."


def _of_length(facts: CardFacts) -> Iterator[str]:
    manifest = facts.run.data or {}
    longest = (manifest.get("lengths") or {}).get("max")
    window = facts.base.positions or facts.files.get("max_position_embeddings")
    if longest:
        more = f" (the base's window is {window:,})" if isinstance(window, int) and window > longest else ""
        yield f"The longest training row has {longest:,} tokens{more}; longer conversations were not trained."


def _of_training(facts: CardFacts) -> Iterator[str]:
    train, merge = facts.run.train, facts.run.merge or {}
    if train and not facts.run.data:
        yield "The data of this training is not on record."
    if train.get("stopped") not in (None, "finished"):
        yield f"The training ended early: {plain(train['stopped'])}, after {train.get('steps')} steps."
    if train and train.get("eval_loss") is None and facts.objective != "grpo":
        yield "There is no validation loss: nothing says whether the training rows were learned by heart."
    if facts.base.shown == MODEL_NAME:
        yield "The base was dequantised from 4 bits; with the published weights of its model, answers differ a little."
    if merge.get("quantized_base") and facts.kind in ("merged", "gguf"):
        yield (f"Trained on a 4-bit base and merged into the original one: a mean KL of "
               f"{merge.get('quantization_kl') or 0:.3g} nats from what was trained.")  # fmt: skip
    if facts.kind == "gguf":
        yield "Scores were measured before the conversion to GGUF; low-bit types lose some."


def _by_name(file: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return {str(task["name"]): task for task in (file or {}).get("tasks", [])}
