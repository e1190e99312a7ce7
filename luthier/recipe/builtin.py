"""Suites of tasks that ship with Luthier and are named in `evaluate.tasks` by `builtin:NAME`."""

from __future__ import annotations

__all__ = ["FORGETTING"]

FORGETTING = "builtin:forgetting"
"""Arithmetic, copying, format and facts (`evaluate/forgetting`); becomes one task for each."""
