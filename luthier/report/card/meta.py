"""The YAML block of a card, as the Hub reads it."""

from __future__ import annotations

import re
from typing import Any

from luthier.report.card.facts import CardFacts
from luthier.report.read import printable
from luthier.runtime.scrub import scrub, scrub_path

__all__ = ["front_matter"]

_LIBRARY = {"adapter": "peft", "model": "transformers", "merged": "transformers", "gguf": "gguf"}
_METRIC = {"exact": "exact_match", "json_exact": "exact_match", "loss": "loss"}
"""Names of the Hub's metrics; the others count right rows, which it calls accuracy."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """What is known, in the Hub's keys. What is not known has no key: a guess would be found by its filters."""
    base = facts.base
    meta: dict[str, Any] = {}
    if base.hub_id:
        meta["base_model"] = base.hub_id
        meta["base_model_relation"] = "adapter" if facts.kind == "adapter" else "finetune"
    meta["library_name"] = _LIBRARY[facts.kind]
    meta["pipeline_tag"] = "text-classification" if facts.objective == "reward" else "text-generation"
    if base.license:
        meta["license"] = _value(base.license)
        # The Hub wants both with `license: other`.
        meta |= {"license_name": _value(base.license_name)} if base.license_name else {}
        meta |= {"license_link": _value(base.license_link)} if base.license_link else {}
    if facts.languages:
        meta["language"] = [_word(item) for item in facts.languages]
    datasets = list(dict.fromkeys(source.hub_id for source in facts.sources if source.hub_id))
    if datasets:
        meta["datasets"] = datasets
    meta["tags"] = _tags(facts)
    results = _results(facts)
    if results:
        meta["model-index"] = [{"name": _value(facts.name), "results": results}]
    return meta


def _tags(facts: CardFacts) -> list[str]:
    kind = "gguf" if facts.kind == "gguf" else ""
    adapter = "lora" if facts.method in ("lora", "qlora") else ""
    chat = "conversational" if facts.chat and facts.objective != "reward" else ""
    tags = ["luthier", facts.objective, facts.method, adapter, kind, chat]
    return [_word(tag) for tag in dict.fromkeys(tags) if tag]


def _results(facts: CardFacts) -> list[dict[str, Any]]:
    """One result a task: the score of the tuned model, its interval in the metric's name."""
    results = []
    specs = {str(task.get("name")): task for task in facts.recipe.get("evaluate", {}).get("tasks", [])}
    for task in (facts.run.after or {}).get("tasks", []):
        name, metric = str(task["name"]), str(task["metric"])
        path = str(specs.get(name, {}).get("path") or "")
        data = path if _HUB_ID.fullmatch(path) and "." not in path.rsplit("/", 1)[-1] else name
        interval = f"{facts.confidence:.0%} interval {task['low']:.4g} to {task['high']:.4g}, {task['n']} rows"
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": _value(name), "type": _value(data)},
                "metrics": [
                    {
                        "type": _METRIC.get(metric, "accuracy"),
                        "name": _value(f"{metric} ({interval})"),
                        "value": round(float(task["score"]), 6),
                    }
                ],
            }
        )
    return results


def _value(text: str) -> str:
    return scrub_path(" ".join(scrub(printable(text)).split()))


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)
