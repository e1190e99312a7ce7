"""The account of what is trained: names, counts, bytes, and a table per kind of module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from luthier.model.quantize import parameter_numel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MethodReport", "ModuleRow", "report_on"]

_ADDED = re.compile(
    r"^base_model\.model\.|\.base_layer\b|\.original_module\b|\.modules_to_save\.[^.]+|\.lora_[A-Za-z_]+(\.[^.]+)?(?=\.weight$|$)"
    r"|\.token_adapter\b|\.trainable_tokens_delta\.[^.]+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """All modules of one kind, for instance every `q_proj`."""

    kind: str
    modules: int
    trained_modules: int
    """Those with a weight that is trained."""
    trainable: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodReport:
    """What is trained. Counts are numbers of weights; a 4-bit weight counts as one."""

    method: str
    names: tuple[str, ...]
    """Parameters that are trained, as in `model.named_parameters()`."""
    trainable: int
    total: int
    """Trained and frozen, adapters included."""
    trainable_bytes: int
    total_bytes: int
    table: tuple[ModuleRow, ...]
    notes: tuple[str, ...]

    @property
    def percent(self) -> float:
        """Trained share of all weights, in percent."""
        return 100.0 * self.trainable / max(self.total, 1)

    def lines(self) -> list[str]:
        """For people: the total, one line per kind of trained module, then the notes."""
        head = f"{self.method}: {self.trainable:,} of {self.total:,} weights are trained ({self.percent:.2f}%)"
        rows = [f"{row.kind} x {_of(row)}: {row.trainable:,}" for row in self.table if row.trainable]
        return [f"{head}, in {len(self.names)} tensors", ", ".join(rows), *self.notes]

    def to_json(self) -> dict[str, Any]:
        """All fields and the percentage."""
        return {**asdict(self), "percent": self.percent}


def _of(row: ModuleRow) -> str:
    return str(row.modules) if row.trained_modules == row.modules else f"{row.trained_modules} of {row.modules}"


def report_on(model: nn.Module, *, method: str, notes: Sequence[str] = ()) -> MethodReport:
    """Count what a prepared model trains (shared weights once)."""
    rows: dict[str, list[int]] = {}
    modules: dict[str, set[str]] = {}
    trained_modules: dict[str, set[str]] = {}
    named = list(model.named_parameters())
    for name, parameter in named:
        module = _ADDED.sub("", name)
        module = module.removesuffix(".weight").removesuffix(".bias")
        kind = module.rpartition(".")[2]
        modules.setdefault(kind, set()).add(module)
        if parameter.requires_grad:
            trained_modules.setdefault(kind, set()).add(module)
        row = rows.setdefault(kind, [0, 0])
        count = parameter_numel(parameter)
        row[0] += count if parameter.requires_grad else 0
        row[1] += count
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    return MethodReport(
        method=method,
        names=tuple(name for name, _ in trained),
        trainable=sum(parameter.numel() for _, parameter in trained),
        total=sum(parameter_numel(parameter) for _, parameter in named),
        trainable_bytes=sum(parameter.numel() * parameter.element_size() for _, parameter in trained),
        total_bytes=sum(parameter.numel() * parameter.element_size() for _, parameter in named),
        table=tuple(
            ModuleRow(
                kind=kind,
                modules=len(modules[kind]),
                trained_modules=len(trained_modules.get(kind, ())),
                trainable=row[0],
                total=row[1],
            )
            for kind, row in rows.items()
        ),
        notes=tuple(notes),
    )
