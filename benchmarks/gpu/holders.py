"""Who holds the device's memory at the peak of one step, and the peak of each part of it (CUDA).

    forward     `engine.loss`: embeddings, layers, head and loss
    backward    `weights.backward`, with what is exchanged in it
    update      `weights.apply`
    rest        the norm, and what is between

The allocator's history says who made each block and when it was let go (`torch.cuda.memory._record_memory_history`);
blocks are counted from allocation to release, as `max_memory_allocated` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

__all__ = ["holders_of_step", "peak_holders"]

GIB = 2**30
_OURS = ("/deepspeed/", "/luthier/", "/benchmarks/", "/torch/optim/", "/torch/distributed/fsdp/")


def holders_of_step(trainer: Any, run_step: Callable[[], Any], *, top: int = 14) -> dict[str, Any]:
    """GiB by phase (peak of each, and what stays at its end), and by maker at the peak of the step.

    Args:
        trainer: of `luthier/train/setup.py`; its methods are wrapped for the one step.
        run_step: takes it.
        top: makers that are named.
    """
    import torch

    before = torch.cuda.memory_allocated()
    phases: dict[str, dict[str, float]] = {}
    with ExitStack() as undo:
        for owner, name, phase in (
            (trainer.engine, "loss", "forward"), (trainer.weights, "backward", "backward"),
            (trainer.weights, "apply", "update"),
        ):  # fmt: skip
            undo.callback(_wrapped(owner, name, phase, phases))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.memory._record_memory_history(max_entries=2_000_000, stacks="python")
        try:
            run_step()
            torch.cuda.synchronize()
            _close("rest", phases)
            events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
    added, makers = peak_holders(events)
    return {
        "gib_before": round(before / GIB, 2), "gib_peak": round((before + added) / GIB, 2), "gib_by_phase": phases,
        "gib_by_maker_at_peak": {name: round(size / GIB, 3) for name, size in makers.most_common(top)},
    }  # fmt: skip


def peak_holders(events: Iterable[Mapping[str, Any]]) -> tuple[int, Counter[str]]:
    """(Most bytes that the events have added at a time, those bytes by maker).

    Blocks that were there before the first event have no maker; letting one of them go makes the sum smaller.
    """
    live: dict[int, tuple[int, str]] = {}
    now = most = 0
    at_peak: dict[int, tuple[int, str]] = {}
    for event in events:
        if event["action"] == "alloc":
            live[event["addr"]] = (event["size"], _maker(event.get("frames", ())))
            now += event["size"]
            if now > most:
                most, at_peak = now, {}  # copied only when something is let go again
        elif event["action"] == "free_requested":
            if now == most and not at_peak:
                at_peak = dict(live)
            live.pop(event["addr"], None)
            now -= event["size"]
    makers: Counter[str] = Counter()
    for size, maker in (at_peak or live if now == most else at_peak).values():
        makers[maker] += size
    return most, makers


def _maker(frames: Iterable[Mapping[str, Any]]) -> str:
    """The two innermost frames of code that is ours or DeepSpeed's: `stage3.py:791 _setup < engine.py:682 __init__`."""
    found = [
        f"{str(frame['filename']).rsplit('/', 1)[-1]}:{frame['line']} {frame['name']}"
        for frame in frames if any(part in str(frame["filename"]) for part in _OURS)
    ]  # fmt: skip
    return " < ".join(found[:2]) or "elsewhere"


def _close(phase: str, phases: dict[str, dict[str, float]]) -> None:
    """The peak since the last close is of `phase`."""
    import torch

    torch.cuda.synchronize()
    found = phases.setdefault(phase, {"peak": 0.0, "after": 0.0})
    found["peak"] = max(found["peak"], round(torch.cuda.max_memory_allocated() / GIB, 2))
    found["after"] = round(torch.cuda.memory_allocated() / GIB, 2)
    torch.cuda.reset_peak_memory_stats()


def _wrapped(owner: Any, name: str, phase: str, phases: dict[str, dict[str, float]]) -> Callable[[], Any]:
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _close("rest", phases)
        result = inner(*args, **kwargs)
        _close(phase, phases)
        return result

    object.__setattr__(owner, name, wrapped)
    return lambda: owner.__dict__.pop(name)
