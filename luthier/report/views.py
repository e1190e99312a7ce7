"""What each section of the page shows, computed from the run's files. No HTML here but the charts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from luthier.data.preference_stats import preference_lines
from luthier.recipe.reasons import reasons_of
from luthier.report.loss_view import contamination_lines, loss_view
from luthier.report.preference_view import preference_sentence
from luthier.report.read import RunFiles, by_name
from luthier.report.svg import bars, histogram, intervals, number

__all__ = [
    "chosen_values", "commands", "data_view", "headline", "stage_chart", "tasks", "token_samples", "verdict_lines",
]  # fmt: skip

_MOST_TOKENS = 700
_ANSWERS = ("chosen", "rejected", "desired", "undesired")


# -- verdict


def tasks(run: RunFiles) -> list[dict[str, Any]]:
    """One entry a task: scores before and after with intervals, the test, and a chart. Any part may be missing."""
    before = by_name(run.before)
    after = by_name(run.after)
    compared = by_name(run.comparison)
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


# -- stages


def stage_chart(run: RunFiles) -> Markup:
    """Seconds of each finished stage."""
    return bars(list(run.seconds.items()), title="Seconds of each stage")


# -- plan


def chosen_values(run: RunFiles) -> list[tuple[str, str, str]]:
    """(dotted key, value, reason) of every value with a comment behind it in `resolved.yaml`."""
    return reasons_of(run.resolved_text)


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
