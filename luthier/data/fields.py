"""The columns of one row under the names of its format."""

from __future__ import annotations

from typing import Any

from luthier.data.layout import Layout
from luthier.data.messages import Findings, Path
from luthier.data.rows import Row

__all__ = ["Fields"]


class Fields:
    """Access to a row through its layout; what is missing or no text is recorded in `findings`."""

    def __init__(self, row: Row, layout: Layout, findings: Findings) -> None:
        self.row, self.layout, self.findings = row, layout, findings

    def path(self, name: str) -> Path:
        """Keys that lead to a field."""
        return self.layout.path_in(self.row.value, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Value of a column that may be missing."""
        value: Any = self.row.value
        for step in self.path(name):
            if not isinstance(value, dict) or step not in value:
                return default
            value = value[step]
        return value

    def has(self, name: str) -> bool:
        """Whether the row has the field, be it null."""
        missing = object()
        return self.get(name, missing) is not missing

    def required(self, name: str) -> Any:
        """Value of a column that must be there; None after recording that it is not."""
        if not self.has(name):
            there = ", ".join(self.row.value) or "none"
            column = self.layout.column(name)
            self.findings.add((), f"no column `{column}`; the row has: {there}", code="D209")
            return None
        return self.get(name)

    def text(self, name: str, *, required: bool = True) -> str:
        """A column that must hold a string; an optional one may be missing or null."""
        value = self.required(name) if required else self.get(name)
        if isinstance(value, str):
            return value
        if value is not None or (required and self.has(name)):
            self.findings.wrong(self.path(name), "string", value)
        return ""
