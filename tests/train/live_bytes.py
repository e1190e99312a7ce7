"""Bytes of living tensors by the code that made them: a peak says who holds it, on a CPU as on a GPU."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Within it, every storage is counted from the operation that makes it until its last tensor is gone.

    Args:
        kinds: name of a kind -> functions; a storage is of the first kind that has one of the innermost `deep` frames.
    """

    def __init__(self, kinds: Mapping[str, set[str]], *, deep: int = 12) -> None:
        super().__init__()
        self.kinds, self.deep = dict(kinds), deep
        self.now: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        """Most bytes of each kind at a time."""
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if not size or key in self._alive:
            return
        kind = self._kind()

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self.now[kind] -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now[kind] += size
        self.peaks[kind] = max(self.peaks[kind], self.now[kind])

    def _kind(self) -> str:
        frame: Any = sys._getframe(3)
        names = set()
        for _ in range(self.deep):
            if frame is None:
                break
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        return next((kind for kind, functions in self.kinds.items() if functions & names), "other")
