"""The losses of the data as tables: by reason, by source, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["loss_view"]


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
