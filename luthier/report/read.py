"""Read what a run left. Every stage may be missing; a file that is there must be readable.

All text is made printable here, once: control characters, direction overrides and lone
surrogates of data and model output become visible stand-ins, so that nothing invisible reaches
the page. Escaping for HTML is the template's work, not this module's.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.runs.folder import RunFolder

__all__ = ["RunFiles", "by_name", "clean", "printable", "read_run"]

DATA_CARD = "data_card.md"
STAGES = ("data", "baseline", "train", "evaluate", "compare", "merge")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """Contents of a run folder; None or empty for what is not there."""

    path: Path
    manifest: dict[str, Any]
    data: dict[str, Any] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    comparison: dict[str, Any] | None
    judge: dict[str, Any] | None
    """Verdicts of another model on the answers before and after."""
    preferences: dict[str, Any] | None
    """Held-out pairs or rated answers before and after a training over preferences."""
    merge: dict[str, Any] | None
    train: dict[str, Any]
    """Result of the train stage; empty if it has not finished."""
    measured: dict[str, Any]
    """Time and memory of the training, and what the plan said; empty for a run that was not measured."""
    selection: dict[str, Any]
    """What method `spectrum` chose, and its scan; empty for other methods."""
    seconds: dict[str, float]
    """Duration of each finished stage."""
    plan: dict[str, Any]
    """What was planned before the training; empty for a run without a plan."""
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    recipe_text: str
    resolved_text: str
    data_card: str
    """What is known about the data set, in words; empty for a user's own data."""


def by_name(file: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Tasks of a score file or a comparison; empty when there is none."""
    return {task["name"]: task for task in (file or {}).get("tasks", [])}


def read_run(run: RunFolder) -> RunFiles:
    """Read all files the report needs.

    Raises:
        RunFailed: a file is there and cannot be parsed.
    """
    records = {name: _json(run, f"stages/{name}.json") for name in STAGES}
    train = records["train"] or {}
    return RunFiles(
        path=run.path,
        manifest=_json(run, "manifest.json") or {},
        data=_json(run, "data/manifest.json"),
        before=_json(run, "eval/before.json"),
        after=_json(run, "eval/after.json"),
        comparison=_json(run, "eval/comparison.json"),
        judge=_json(run, "eval/judge.json"),
        preferences=_json(run, "eval/preferences.json"),
        merge=_json(run, "export/merge.json"),
        train=train.get("result", {}),
        measured=_json(run, "measured.json") or {},
        selection=_json(run, "spectrum/selection.json") or {},
        seconds={name: float(record["seconds"]) for name, record in records.items() if record},
        plan=_json(run, "plan.json") or {},
        metrics=[line for line in run.read_lines("metrics.jsonl") if isinstance(line, dict)],
        events=[clean(line) for line in run.read_lines("events.jsonl") if isinstance(line, dict)],
        recipe_text=_text(run, "recipe.yaml"),
        resolved_text=_text(run, "resolved.yaml"),
        data_card=_text(run, DATA_CARD),
    )


def printable(text: str) -> str:
    """Text with every character that would vanish or reorder a page replaced by a visible one.

    C0 controls become their control pictures (U+2400 block); other controls, direction overrides,
    other format characters but the joiners of emoji and scripts, and surrogates become U+FFFD.
    Tab and newline stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter in "\n\t" or letter.isprintable() else _stand_in(letter) for letter in text)


def _stand_in(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    # Zero-width joiner and non-joiner, variation selectors and all spaces belong to ordinary text.
    if unicodedata.category(letter) in {"Zs", "Mn"} or letter in "\u200c\u200d":
        return letter
    return "\ufffd"


def clean(value: Any) -> Any:
    """A JSON value with every text made `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def _json(run: RunFolder, name: str) -> dict[str, Any] | None:
    value = run.read_json(name)
    return None if value is None else clean(value)


def _text(run: RunFolder, name: str) -> str:
    file = run.path / name
    return printable(file.read_text("utf-8", errors="replace")) if file.is_file() else ""
