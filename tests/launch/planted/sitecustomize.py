"""Faults planted into the processes of a launch, by `PLANTED=FAULT:RANK` (python imports this file when it starts)."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from typing import Any

FAULT, _, RANK = os.environ.get("PLANTED", "").partition(":")
WHERE = {"raise": "luthier.train.step", "nan": "luthier.train.step"}


def plant(module: Any) -> None:
    """Change what was just imported."""
    real = module.forward_backward

    def forward_backward(trainer: Any, item: Any, *, step: int, **more: Any) -> Any:
        loss, sums = real(trainer, item, step=step, **more)
        if step == 3 and FAULT == "raise":
            raise ValueError("poison in this row")
        return (loss * float("nan") if step == 3 else loss), sums

    module.forward_backward = forward_backward


class Loader(importlib.abc.Loader):
    """Plants after the import."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: Any) -> Any:
        return self.real.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self.real.exec_module(module)
        plant(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the one module."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != WHERE.get(FAULT):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = Loader(spec.loader)
        return spec


def jump() -> None:
    """Each look at the clock finds it an hour ahead, two hours back, or right."""
    real_time, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real_time() + (3600.0, -7200.0, 0.0)[calls[0] % 3]

    time.time = jumping


def plant_now() -> None:
    """In a fork, where everything is imported already."""
    if FAULT == "clock":
        jump()
    elif os.environ.get("RANK") == RANK:
        plant(sys.modules[WHERE[FAULT]])


if __name__ == "sitecustomize":
    if FAULT == "clock":
        jump()
    elif FAULT and os.environ.get("RANK") == RANK:
        sys.meta_path.insert(0, Finder())
