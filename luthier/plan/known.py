"""Shapes of well-known models, for use without a hub and without a download: `models.jsonl`.

Each entry has the names of a shape (without organisation and without -Instruct and the like), the published
number of parameters and the values of `config.json` that a plan needs.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from luthier.plan.shape import ModelShape, shape_from_config

__all__ = ["known_model", "known_names", "published_parameters"]

_FILE = Path(__file__).parent / "models.jsonl"
# What names of tuned or repacked copies add to the name of a shape.
_TUNED = re.compile(r"[-_](instruct|it|chat|base|hf|pt|unsloth|bf16)(?=$|[-_.])", re.IGNORECASE)
_TAIL = re.compile(r"[-_](bnb|4bit|v1\.0|v0\.[123]|2507)$", re.IGNORECASE)


@cache
def _entries() -> dict[str, dict[str, Any]]:
    entries = [json.loads(line) for line in _FILE.read_text("utf-8").splitlines()]
    return {name.lower(): entry for entry in entries for name in entry["names"]}


def known_names() -> list[str]:
    """The first name of every shape."""
    return list(dict.fromkeys(entry["names"][0] for entry in _entries().values()))


def published_parameters() -> dict[str, int]:
    """Parameters as published with the weights, by first name."""
    return {entry["names"][0]: entry["parameters"] for entry in _entries().values()}


def known_model(name: str) -> ModelShape | None:
    """The shape of `org/Name-Instruct`, by its last part; None if it does not ship with Luthier.

    Names are tried as they are, then without `-Instruct` and its like, then with one known ending less at a time.
    """
    entries = _entries()
    short = name.rstrip("/").rpartition("/")[2].lower()
    if short not in entries:
        short = _TUNED.sub("", short)
    while short not in entries:
        shorter = _TAIL.sub("", short)
        if shorter == short:
            return None
        short = shorter
    entry = entries[short]
    return shape_from_config(
        entry["config"], where=name, source=f"the table that ships with Luthier ({entry['names'][0]})"
    )
