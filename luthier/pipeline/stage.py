"""What a stage of a run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.pipeline.session import Session
from luthier.recipe.schema import Recipe

__all__ = ["CODE_VERSION", "Stage"]

# Raised when a change of the code changes results: finished stages of older runs are then redone.
CODE_VERSION = {"data": 1, "evaluate": 1, "train": 1, "merge": 1, "gguf": 1, "push": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    title: str
    wanted: Callable[[Recipe], bool]
    depends_on: Callable[[Session], dict[str, Any]]
    action: Callable[[Session], dict[str, Any]]
    outputs: tuple[str, ...]
    """Files and folders that must exist for the stage to be reused, relative to the run folder."""
    together: bool = False
    """All processes of a run take part; else process 0 does it, and the others wait."""
