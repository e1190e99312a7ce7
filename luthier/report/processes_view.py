"""Runs on several processes: how they were divided, what each held against the plan, how often they were started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["STRATEGIES", "ProcessFacts", "process_facts"]

STRATEGIES = {
    "ddp": "DDP: a copy of the model each",
    "fsdp2": "FSDP2: weights in shards",
    "zero1": "DeepSpeed ZeRO-1: optimizer state in parts",
    "zero2": "DeepSpeed ZeRO-2: gradients and optimizer state in parts",
    "zero3": "DeepSpeed ZeRO-3: weights in parts",
}
_MOST_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """Of the last session of a training on several processes; None for what is not known (yet)."""

    processes: int
    machines: int | None
    strategy: str | None
    """As the recipe names it."""
    device: str | None
    """Kind of device: `cuda`, `cpu`."""
    tokens_per_second: float | None
    """Of one process: the median of all together, divided by their number."""
    planned_bytes: int | None
    """Of a process: what the plan said is comparable with the peaks."""
    peak_bytes: tuple[int, ...]
    """Of each process, by rank; empty before the end of the training."""
    starts: tuple[int, ...]
    """The step from which each start of the training went on."""

    @property
    def way(self) -> str:
        """The strategy in words."""
        return STRATEGIES.get(self.strategy or "", self.strategy or "")

    @property
    def rows(self) -> list[tuple[str, int]]:
        """(which process, peak in bytes); of very many only the least, the middle and the greatest."""
        numbered = list(enumerate(self.peak_bytes))
        if len(numbered) <= _MOST_ROWS:
            return [(f"process {rank}", size) for rank, size in numbered]
        ordered = sorted(numbered, key=lambda one: one[1])
        picked = [("least", ordered[0]), ("median", ordered[len(ordered) // 2]), ("most", ordered[-1])]
        return [(f"{word}: process {rank}", size) for word, (rank, size) in picked]

    def to_json(self) -> dict[str, Any]:
        """For a page."""
        return {
            "processes": self.processes, "machines": self.machines, "strategy": self.strategy, "way": self.way,
            "device": self.device, "tokens_per_second": self.tokens_per_second, "planned_bytes": self.planned_bytes,
            "rows": [{"name": name, "peak_bytes": size} for name, size in self.rows], "starts": list(self.starts),
        }  # fmt: skip


def process_facts(
    events: Sequence[Mapping[str, Any]], *, result: Mapping[str, Any], measured: Mapping[str, Any],
    plan: Mapping[str, Any],
) -> ProcessFacts | None:  # fmt: skip
    """What the files of a run say; None for a run on one process.

    Args:
        events: Of `events.jsonl`.
        result: Of the train stage; empty before its end.
        measured: `measured.json`, or empty.
        plan: `plan.json`, or empty.
    """
    started = [event for event in events if event.get("event") == "training_started"]
    last: Mapping[str, Any] = started[-1] if started else {}
    count = last.get("processes") or result.get("processes")
    if not isinstance(count, int) or count < 2:
        return None
    rate = measured.get("tokens_per_second")
    decided = plan.get("decision")
    return ProcessFacts(
        processes=count, machines=last.get("machines"), device=last.get("device"),
        strategy=last.get("strategy") or (decided.get("strategy") if isinstance(decided, dict) else None),
        tokens_per_second=rate / count if rate else None,
        planned_bytes=(measured.get("predicted") or {}).get("peak_bytes") or (plan.get("memory") or {}).get("peak"),
        peak_bytes=tuple(measured.get("peak_bytes_by_process") or ()),
        starts=tuple(int(event.get("step") or 0) for event in started),
    )  # fmt: skip
