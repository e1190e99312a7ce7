"""What each section of the page shows, computed from the run's files. No HTML here but the charts."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from luthier.data.preference_stats import preference_lines
from luthier.report.diff import word_diff
from luthier.report.loss_view import contamination_lines, loss_view
from luthier.report.preference_view import preference_charts, preference_sentence
from luthier.report.read import RunFiles
from luthier.report.reward_view import is_online, reward_curves
from luthier.report.svg import Line, bars, histogram, intervals, line_chart, number

__all__ = [
    "chosen_values", "commands", "curves", "data_view", "examples", "headline", "smoothed", "stage_chart",
    "still_wrong", "tasks", "token_samples",
]  # fmt: skip

_MOST_EXAMPLES = 12
_MOST_TOKENS = 700
_ANSWERS = ("chosen", "rejected", "desired", "undesired")
_VALUE = re.compile(r"(\s*)(?:- )?([A-Za-z_][\w]*): ?(.*)")


# -- verdict


def tasks(run: RunFiles) -> list[dict[str, Any]]:
    """One entry a task: scores before and after with intervals, the test, and a chart. Any part may be missing."""
    before = _by_name(run.before)
    after = _by_name(run.after)
    compared = _by_name(run.comparison)
    return [
        _task(name, before.get(name), after.get(name), compared.get(name))
        for name in dict.fromkeys([*compared, *before, *after])
    ]


def _task(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None, compared: dict[str, Any] | None
) -> dict[str, Any]:
    known = after or before or compared or {}
    share = known.get("metric") != "loss" and all(
        0 <= part[key] <= 1 for part in (before, after) if part for key in ("score", "low", "high")
    )
    scores = [("before", before, "before"), ("after", after, "after")]
    rows = [(label, t["score"], t["low"], t["high"], kind) for label, t, kind in scores if t is not None]
    secondary = {
        key: ((before or {}).get("secondary", {}).get(key), (after or {}).get("secondary", {}).get(key))
        for key in dict.fromkeys([*(before or {}).get("secondary", {}), *(after or {}).get("secondary", {})])
    }
    return {
        "name": name,
        "metric": known.get("metric", ""),
        "n": known.get("n", 0),
        "confidence": known.get("confidence", 0.95),
        "share": share,
        "before": before and _score(before["score"], share),
        "after": after and _score(after["score"], share),
        "compared": compared,
        "delta": compared and _delta(compared, share),
        "p_value": compared and _p_value(compared["p_value"]),
        "verdict": compared["verdict"] if compared else None,
        "secondary": secondary,
        "chart": intervals(rows, title=f"{name}: score before and after", share=share),
        "settings": known.get("settings", {}),
        "speed": known.get("tokens_per_second"),
    }


def verdict_lines(run: RunFiles) -> list[str]:
    """What the forgetting suite and the judge say, in words."""
    cost = (run.comparison or {}).get("forgetting")
    return [*([cost["said"]] if cost else []), *(run.judge or {}).get("said", [])]


def headline(run: RunFiles, shown: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The sentence on top of the page, and its tone (`better`, `none`, `worse`, `open`)."""
    verdicts = [task["verdict"] for task in shown if task["verdict"]]
    if verdicts:
        tone = _tone(verdicts)
        counts = [(word, verdicts.count(word)) for word in ("better", "no evidence", "worse") if word in verdicts]
        if len(verdicts) == 1:
            return {
                "tone": tone,
                "text": {"better": "Better.", "no evidence": "No evidence of a change.", "worse": "Worse."}[
                    verdicts[0]
                ],
            }
        return {"tone": tone, "text": ", ".join(f"{count} {word}" for word, count in counts).capitalize() + "."}
    if not run.after and not run.before and (sentence := preference_sentence(run)):
        return {"tone": "open", "text": sentence}
    if run.after or run.before:
        return {"tone": "open", "text": "Scored, not compared."}
    if run.metrics or run.train:
        return {"tone": "open", "text": "Trained, not scored."}
    return {"tone": "open", "text": "Not trained yet."}


def _tone(verdicts: Sequence[str]) -> str:
    if "worse" in verdicts:
        return "worse"
    return "better" if "better" in verdicts else "none"


def _by_name(file: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in (file or {}).get("tasks", [])}


def _score(value: float, share: bool) -> str:
    return f"{value * 100:.1f}\N{NARROW NO-BREAK SPACE}%" if share else number(value)


def _delta(compared: dict[str, Any], share: bool) -> str:
    def said(value: float) -> str:
        return f"{value * 100:+.1f}" if share else f"{'+' if value > 0 else ''}{number(value)}"

    unit = " points" if share else ""
    return f"{said(compared['delta'])}{unit} (from {said(compared['low'])} to {said(compared['high'])})"


def _p_value(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {number(value, 2)}"


# -- data


def data_view(run: RunFiles) -> dict[str, Any] | None:
    """Counts of the data manifest and the chart of lengths."""
    if run.data is None:
        return None

    def chart(lengths: dict[str, Any], title: str, label: str) -> Markup:
        bins = [(low, high, count) for low, high, count in lengths.get("histogram", [])]
        return histogram(bins, title=title, x_label=label)

    preferences = run.data.get("preferences")
    names = [] if preferences is None else [key for key in _ANSWERS if f"{key}_tokens" in preferences]
    return {
        **run.data,
        "chart": chart(run.data.get("lengths", {}), "Tokens in a row", "tokens in a row"),
        "preference_lines": [] if preferences is None else preference_lines(preferences),
        "answer_charts": [
            chart(preferences[f"{name}_tokens"], f"Tokens of {name} answers", f"tokens in a {name} answer")
            for name in names
            if preferences is not None
        ],
        "dropped_total": sum(run.data.get("dropped", {}).values()),
        "loss_view": loss_view(run.data),
        "contamination": contamination_lines(run.data),
    }


def token_samples(run: RunFiles) -> list[dict[str, Any]]:
    """Sample rows as tokens, cut at a length a person still reads."""
    samples = []
    for sample in (run.data or {}).get("samples", []):
        tokens = sample["tokens"]
        kinds = [token["kind"] for token in tokens]
        samples.append(
            {
                "ref": sample["ref"],
                "tokens": [_token(token) for token in tokens[:_MOST_TOKENS]],
                "hidden": max(0, len(tokens) - _MOST_TOKENS),
                "count": len(tokens),
                "trained": sum(1 for token in tokens if token.get("weight")),
                "special": kinds.count("special"),
            }
        )
    return samples


def _token(token: dict[str, Any]) -> dict[str, Any]:
    weight = token.get("weight", 0)
    return {
        "text": token["text"].replace("\n", "\u21b5\n"),
        "kind": token["kind"] + (" aim" if token["kind"] == "special" and weight else ""),
        "begins": token.get("begins"),
        "tip": f"id {token.get('id')}, weight {number(float(weight))}",
    }


# -- training


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """Exponential moving average with weight 2 / (span + 1) for the newest value; the start is not biased to 0."""
    keep, total, weight, result = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        result.append(total / weight)
    return result


def curves(run: RunFiles) -> dict[str, Any]:
    """Charts of the training, and the numbers under them. Empty when nothing was logged."""
    if is_online(run):
        return reward_curves(run, smoothed)
    steps = [line for line in run.metrics if _finite(line.get("loss"))]
    checks = [(line["step"], line["eval_loss"]) for line in run.metrics if _finite(line.get("eval_loss"))]
    if not steps and not checks:
        return {}
    raw = [(line["step"], line["loss"]) for line in steps]
    span = max(5, len(raw) // 12)
    soft = list(zip([step for step, _ in raw], smoothed([loss for _, loss in raw], span), strict=True))
    loss = [
        Line(name="loss", points=raw, kind="raw"),
        Line(name=f"loss, smoothed over {span} steps", points=soft if len(raw) > 5 else [], kind="main"),
        Line(name="validation loss", points=checks, kind="second", dots=True),
    ]

    def chart(key: str, title: str, unit: str) -> Markup:
        points = [(line["step"], line[key]) for line in steps if _finite(line.get(key))]
        line = Line(name=title.lower(), points=points, kind="main")
        return line_chart([line], title=title, x_label="step", y_label=unit, height=210, from_zero=True)

    shared = {"title": "Loss", "x_label": "step", "y_label": "loss (nats)"}
    return {
        "what": "Loss",
        "best_words": "Lowest validation loss",
        "legend": [(line.kind, line.name) for line in loss if line.points],
        "loss": line_chart(loss, **shared, width=1000, height=320),  # type: ignore[arg-type]
        "loss_narrow": line_chart(loss, **shared, width=480, height=280),  # type: ignore[arg-type]
        "small": [
            (title, image)
            for title, image in (
                ("Learning rate", chart("learning_rate", "Learning rate", "rate")),
                ("Gradient norm", chart("grad_norm", "Gradient norm", "norm")),
                ("Tokens per second", chart("tokens_per_second", "Tokens per second", "tokens/s")),
                ("Token accuracy", chart("token_accuracy", "Token accuracy", "share right")),
            )
            if image
        ]
        + preference_charts(run),
        "first": raw[0][1] if raw else None,
        "last": soft[-1][1] if soft else None,
        "best": min(checks, key=lambda item: item[1]) if checks else None,
        "steps": steps[-1]["step"] if steps else None,
    }


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def stage_chart(run: RunFiles) -> Markup:
    """Seconds of each finished stage."""
    return bars(list(run.seconds.items()), title="Seconds of each stage")


# -- plan


def chosen_values(run: RunFiles) -> list[tuple[str, str, str]]:
    """(dotted key, value, reason) of every value with a comment behind it in `resolved.yaml`."""
    found = []
    path: list[tuple[int, str]] = []
    for line in run.resolved_text.splitlines():
        match = _VALUE.match(line)
        if match is None:
            continue
        indent = len(match[1])
        path = [*(entry for entry in path if entry[0] < indent), (indent, match[2])]
        value, mark, reason = match[3].rpartition("  # ")
        # Inside a quoted text the mark is part of the value.
        if mark and not (value.startswith('"') and not value.endswith('"')):
            found.append((".".join(key for _, key in path), value, reason))
    return found


# -- examples


def examples(run: RunFiles) -> list[dict[str, Any]]:
    """Rows whose score changed, losses first (they are what a reader must not miss), then wins."""
    before, after = _by_name(run.before), _by_name(run.after)
    found: list[dict[str, Any]] = []
    for name, compared in _by_name(run.comparison).items():
        if name not in before or name not in after:
            continue
        rows = [
            (before[name]["rows"][index], after[name]["rows"][index])
            for index in compared.get("changed", [])
            if index < min(len(before[name]["rows"]), len(after[name]["rows"]))
        ]
        lower_is_better = not before[name].get("higher_is_better", compared.get("metric") != "loss")
        found += [_example(name, old, new, lower_is_better) for old, new in rows]
    losses = [example for example in found if not example["won"]]
    wins = [example for example in found if example["won"]]
    return [*losses[: _MOST_EXAMPLES // 2], *wins[: _MOST_EXAMPLES - min(len(losses), _MOST_EXAMPLES // 2)]]


def still_wrong(run: RunFiles) -> list[dict[str, Any]]:
    """Rows the tuned model still gets wrong (right/wrong metrics only): its answer against the expected one."""
    found = []
    for name, task in _by_name(run.after).items():
        if task.get("metric") == "loss":
            continue
        for row in task["rows"]:
            if float(row["score"]) == 0 and isinstance(row.get("reference"), str):
                wanted, said, marked = word_diff(row["reference"], row.get("output") or "")
                found.append({"task": name, "ref": str(row.get("ref", "")), "question": _question(row),
                              "wanted": wanted, "said": said, "marked": marked})  # fmt: skip
    return found


def _question(row: dict[str, Any]) -> str:
    """The last user message, or the prompt."""
    users = [message for message in row.get("messages") or [] if message.get("role") == "user"]
    question = users[-1].get("content") if users else row.get("prompt", "")
    return question if isinstance(question, str) else str(question)


def _example(task: str, old: dict[str, Any], new: dict[str, Any], lower_is_better: bool) -> dict[str, Any]:
    left, right, marked = word_diff(old.get("output") or "", new.get("output") or "")
    change = float(new["score"]) - float(old["score"])
    return {
        "task": task,
        "ref": str(new.get("ref", "")),
        "question": _question(new),
        "reference": new.get("reference"),
        "before": left,
        "after": right,
        "marked": marked,
        "scores": (number(float(old["score"])), number(float(new["score"]))),
        "won": change < 0 if lower_is_better else change > 0,
        "cut": [label for label, row in (("before", old), ("after", new)) if row.get("finish_reason") == "length"],
    }


# -- what to do with it


def commands(run: RunFiles) -> list[tuple[str, str]]:
    """What to do next: (sentence, command) for what the folder holds."""
    folder = shlex.quote(str(run.path))
    found = []
    from luthier.model.reward import is_reward_folder

    rates = is_reward_folder(run.path / "final")
    if (run.path / "final").is_dir() and not rates:
        found.append(("Talk to the base and the tuned model, side by side", f"luthier chat {folder} --side-by-side"))
    if run.merge is not None:
        merged = shlex.quote(str(run.path / "merged"))
        if not rates:
            found.append(
                ("Serve the merged model with any OpenAI-compatible server, for instance", f"vllm serve {merged}")
            )
        loader = "AutoModelForSequenceClassification" if rates else "AutoModelForCausalLM"
        found.append(("In Python", f"{loader}.from_pretrained({str(run.path / 'merged')!r})"))
    if run.manifest:
        found.append(("Repeat the run and compare every number", f"luthier rerun {folder}"))
    return found
