"""Times and memory of steps: device events between steps, and where the time of one step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

PHASES = ("forward", "head+loss", "backward", "optimizer")


class Clock:
    """Marks on the device's time line; the host's on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def mark(self) -> Any:
        """Now. Does not wait for the device."""
        if not self.cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two marks; the device must have passed both."""
        return float(start.elapsed_time(end)) if self.cuda else (end - start) * 1e3

    def wait(self) -> None:
        """Until the device has done everything asked of it."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Peak memory counts from here."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> tuple[float | None, float | None]:
        """(allocated, reserved) peak since `reset_peak`, in GiB; None on a CPU."""
        if not self.cuda:
            return None, None
        import torch

        return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30


def median(values: Sequence[float]) -> float:
    """Upper median, as bench_peers takes it."""
    return sorted(values)[len(values) // 2]


class Compilations:
    """Names of Triton kernels that are compiled (or taken from the disk) from now on: a timed step should see none.

    Triton makes a kernel anew when an integer argument turns 1 or a multiple of 16, so the number of rows of a batch
    can do it in any step.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        try:
            from triton import knobs
        except ImportError:
            return
        knobs.runtime.jit_post_compile_hook = self._seen

    def _seen(self, **event: Any) -> None:
        self.names.append(str(getattr(event.get("fn"), "name", event.get("repr", "?")))[:80])


class Phases:
    """Splits steps into `PHASES` by marks around the parts of the trainer. Instances are wrapped and given back.

    forward     start of `engine.loss` to the end of the decoder (embeddings and all layers)
    head+loss   end of the decoder to the return of `engine.loss`; the head's gradients are made here
    backward    `backward()` of the decoder, up to the norm of the gradients
    optimizer   norm, clipping, update, rounding into the weights; with the host's waits between
    """

    def __init__(self, clock: Clock, trainer: Any) -> None:
        self.clock, self.trainer = clock, trainer
        self.marks: list[tuple[str, Any]] = []
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Phases:
        from luthier.fast.engine import inner_model

        engine, weights = self.trainer.engine, self.trainer.weights
        self._wrap(engine, "loss", before="forward", after="backward")
        self._wrap(weights, "gradients", before="optimizer", after=None)
        decoder = inner_model(engine.module.model).get_decoder()
        handle = decoder.register_forward_hook(lambda *_: self._mark("head+loss"))
        self._undo.append(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in reversed(self._undo):
            undo()

    def _mark(self, name: str) -> None:
        self.marks.append((name, self.clock.mark()))

    def _wrap(self, owner: Any, name: str, *, before: str, after: str | None) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._mark(before)
            result = inner(*args, **kwargs)
            if after is not None:
                self._mark(after)
            return result

        object.__setattr__(owner, name, wrapped)
        self._undo.append(lambda: owner.__dict__.pop(name))

    def report(self, run_step: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds of each phase in one step; `host` is what lies before the first phase (collating, copying)."""
        self.marks.clear()
        self._mark("host")
        run_step()
        self._mark("end")
        self.clock.wait()
        spent: dict[str, float] = dict.fromkeys(("host", *PHASES), 0.0)
        for (name, start), (_, end) in pairwise(self.marks):
            spent[name] += self.clock.milliseconds(start, end)
        if not any(name == "head+loss" for name, _ in self.marks):
            spent["forward+head"] = spent.pop("forward")
            spent.pop("head+loss")
        return {name: round(value, 2) for name, value in spent.items()}
