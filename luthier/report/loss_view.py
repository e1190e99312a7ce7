"""The losses of the data as tables: by reason, by source, and examples; evaluation rows among the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["compared_with", "contamination_lines", "loss_view"]


def loss_view(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of `losses` in the data manifest; None for a run of an older Luthier."""
    losses = data.get("losses")
    if losses is None:
        return None
    rows = [
        {"what": title, "reason": reason, "stage": stage, "count": count}
        for title in ("dropped", "changed")
        for reason, stages in losses[title].items()
        for stage, count in stages.items()
    ]
    sources = [{**source, "lost": sum(source["dropped"].values())} for source in losses["sources"]]
    examples = [
        {
            "place": f"{record['file']}:{record['line']}",
            "why": ", ".join(filter(None, (record.get("reason", record.get("changed")), record.get("stage")))),
            "detail": record["detail"],
        }
        for record in losses["examples"]
    ]
    altered = any(source["changed"] for source in sources)
    return {"rows": rows, "sources": sources, "examples": examples, "altered": altered}


def contamination_lines(data: Mapping[str, Any]) -> list[str]:
    """What the data manifest says of evaluation rows among the training rows; nothing if none were looked for."""
    told = data.get("curated", {}).get("decontaminate")
    if told is None:
        return []
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in told["found"].items()) or "none"
    looked = "" if told["rows"] == told["of_rows"] else f" ({told['rows']:,} of {told['of_rows']:,} looked at)"
    dropped = f"; {told['dropped']:,} dropped" if told["dropped"] else ""
    lines = [f"training rows like one of {compared_with(told)}{looked}: {counts}{dropped}"]
    sure = sum(count for verdict, count in told.get("sure", {}).items() if verdict != "variant")
    if sure and not told["dropped"]:
        lines.append(f"{sure:,} of them for sure, and trained on: scores on those evaluation rows may be memory")
    return lines


def compared_with(told: Mapping[str, Any]) -> str:
    """How many evaluation rows training rows were compared with; plain where those are not all there are."""
    sets = told.get("against", ())
    rows, read = told["against_rows"], sum(one["rows"] for one in sets)
    text = f"{rows:,} of {read:,} evaluation rows" if rows < read else f"{rows:,} evaluation rows"
    limited = [f"{one['name']} (limit: {one['limit']:,})" for one in sets if "limit" in one]
    return f"{text}, only the first of {', '.join(limited)}" if limited else text
