"""What is said of rows as a set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.studio.clean import clean, finite, read_json
from luthier.studio.runs.line import recipe_of

__all__ = ["manifest_summary", "run_summary"]


def run_summary(folder: Path) -> dict[str, Any] | None:
    """Of a run, from the manifest that its data stage left; None before that."""
    manifest = read_json(folder / "data" / "manifest.json")
    return manifest_summary(manifest, recipe_of(folder)) if manifest else None


def manifest_summary(manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`data/manifest.json` in the words of the page."""
    section = recipe.get("data")
    data: Mapping[str, Any] = section if isinstance(section, dict) else {}
    lengths = dict(manifest.get("lengths") or {"min": 0, "p50": 0, "p95": 0, "max": 0, "histogram": []})
    dropped = dict(manifest.get("dropped") or {})
    packed = data.get("packing", True) is not False
    value = {
        "title": str(recipe.get("name") or ""), "kind": manifest.get("rows_are") or manifest.get("kind") or "tokens",
        "rows_read": manifest.get("rows_read"), "rows_used": manifest.get("rows_used"),
        "validation_rows": manifest.get("validation_rows"), "tokens": manifest.get("tokens"),
        "trained_tokens": manifest.get("trained_tokens"), "trained_fraction": finite(manifest.get("trained_fraction")),
        "max_length": data.get("max_length"), "sources": _sources(manifest, data),
        "lengths": {"unit": "tokens", **lengths}, "truncated": manifest.get("truncated"), "loses_answer": None,
        "over_max_length": _over(manifest, dropped), "dropped": dropped, "packs": manifest.get("packs"),
        "pack_capacity": manifest.get("pack_capacity") or data.get("max_length"),
        "pack_efficiency": finite(manifest.get("pack_efficiency")), "duplicates": manifest.get("duplicates"),
        "notes": dict(manifest.get("notes") or {}), "has_tokens": True,
        "has_packs": bool(manifest.get("packs")) and packed, "exact": True, "chips": [], "more_chips": "none",
        "command": "",
    }  # fmt: skip
    cleaned: dict[str, Any] = clean(value)
    return cleaned


def _over(manifest: Mapping[str, Any], dropped: Mapping[str, Any]) -> int | None:
    """Rows longer than `data.max_length`: cut or dropped for it."""
    cut = manifest.get("truncated")
    return None if cut is None else int(cut) + sum(int(dropped.get(name, 0)) for name in ("overlong", "too_long"))


def _sources(manifest: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked = data.get("train")
    asked = asked if isinstance(asked, list) else []
    maps = [item.get("map") or {} if isinstance(item, dict) else {} for item in asked]
    found = []
    for place, source in enumerate(manifest.get("sources") or []):
        found.append({
            "path": source.get("path"), "format": source.get("format"), "verdict": source.get("verdict"),
            "rows": source.get("rows"), "map": maps[place] if place < len(maps) else {},
            "notes": list(source.get("notes") or []),
        })  # fmt: skip
    return found
