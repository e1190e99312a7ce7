"""Rows of preferences around a training: what they need before it, and what the model says of them before and after.

prepare_rows    right kind for the objective; reference where it needs one; held-out answers under the start
write_held_out  the same answers under the trained model -> `eval/preference_rows.json`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data.stored import StoredRows
from luthier.data.types import Branched, TrainRow
from luthier.objective.base import Objective
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import write_json
from luthier.runtime.errors import DataError
from luthier.train.mismatched import Mismatched
from luthier.train.order import Order
from luthier.train.processes import on_main
from luthier.train.reference import Values, answer_values, start_values, tokens_at_once, with_reference
from luthier.train.reference_cache import ReferenceCache

if TYPE_CHECKING:
    from luthier.data.prepare import Prepared
    from luthier.train.step import Trainer

__all__ = ["ROWS_FILE", "Rows", "prepare_rows", "write_held_out"]

ROWS_FILE = "eval/preference_rows.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is trained and validated on."""

    train: Sequence[TrainRow]
    validation: Sequence[TrainRow]
    mismatched: Mismatched | None = None
    validation_mismatched: Mismatched | None = None
    before: Values | None = None
    """Of each held-out row of preferences its answers' log-probabilities (or rewards) under the start."""


def prepare_rows(
    trainer: Trainer, data: Prepared, *, order: Order, max_length: int, cache: ReferenceCache | None
) -> Rows:
    """The rows of `data` as the objective needs them. Before anything is trained or restored.

    Raises:
        DataError: rows of another kind than the objective's, or margins that it does not use.
        RunFailed, OutOfMemory: see `with_reference`.
    """
    objective = trainer.objective
    _require_kind(objective, [*_looked_at(data.train), *_looked_at(data.validation)])
    if objective is None:
        return Rows(train=data.train, validation=data.validation)
    train, validation = _branched(data.train), _branched(data.validation)
    if not objective.needs_reference:
        before = start_values(trainer, validation, cache, "validation rows")
        return Rows(train=train, validation=validation, before=before)

    def steps() -> list[list[int]]:
        found = (order.step(step) for step in range(order.total_steps))
        return [[row for sequence in step for row in data.packs[sequence].examples] for step in found]

    found = with_reference(trainer, train, validation, cache=cache, steps=steps, max_length=max_length)
    return Rows(
        train=found.train, validation=found.validation, mismatched=found.mismatched,
        validation_mismatched=found.validation_mismatched,
        before=[tuple(row.reference or ()) for row in found.validation],
    )  # fmt: skip


def write_held_out(trainer: Trainer, rows: Rows, run: RunFolder) -> None:
    """Write what the model says of each held-out answer now, beside what it said at the start; nothing without rows.

    Raises:
        RunFailed: a log-probability is not finite.
    """
    file = run.path / ROWS_FILE
    on_main(trainer.accelerator, lambda: file.unlink(missing_ok=True))  # of another training in this folder
    if trainer.objective is None or not rows.validation or rows.before is None:
        return
    validation = _branched(rows.validation)
    tokens = tokens_at_once(trainer)
    after = answer_values(trainer, validation, label="held-out answers, trained", tokens=tokens)
    value: dict[str, Any] = {
        "objective": trainer.objective.name,
        "values": "rewards" if trainer.objective.rewards_from_head else "log-probabilities",
        "beta": getattr(trainer.objective, "beta", None),
        "needs_reference": trainer.objective.needs_reference,
        "rows": [
            {
                "file": row.ref.file, "line": row.ref.line, "label": row.label,
                "tokens": [sum(1 for weight in weights if weight) for weights in row.weights],
                "before": list(old), "after": list(new),
            }
            for row, old, new in zip(validation, rows.before, after, strict=True)
        ],
    }  # fmt: skip
    on_main(trainer.accelerator, lambda: write_json(file, value))


def _branched(rows: Sequence[TrainRow]) -> list[Branched]:
    return [row for row in rows if isinstance(row, Branched)]


def _looked_at(rows: Sequence[TrainRow]) -> Sequence[TrainRow]:
    """Rows on disk are all of one kind: one is read, not all of them."""
    return rows[:1] if isinstance(rows, StoredRows) else rows


def _require_kind(objective: Objective | None, rows: Sequence[TrainRow]) -> None:
    """Rows that an objective cannot read, or whose margins it would ignore."""
    kinds = {"sft": "examples", "pairs": "pairs of answers", "rated": "rated answers"}
    wanted = "sft" if objective is None else "pairs" if objective.of_pairs else "rated"
    wrong = [(row, kind) for row in rows if (kind := _kind(row)) != wanted]
    name = "sft" if objective is None else objective.name
    if wrong:
        row, kind = wrong[0]
        raise DataError(
            code="T477",
            message=f"objective {name} trains on {kinds[wanted]}, and {len(wrong):,} of {len(rows):,} rows are "
            f"{kinds[kind]}, for instance {row.ref}",
            hint="choose another `objective.name`, or other rows",
        )
    margins = [row for row in rows if isinstance(row, Branched) and row.margin is not None]
    if margins and objective is not None and not objective.takes_margins:
        raise DataError(
            code="T478",
            message=f"{len(margins):,} rows have a margin, for instance {margins[0].ref}, and objective {name} with "
            "these settings uses none",
            hint="use objective reward, or dpo with loss_type sigmoid; or take the margins out of the rows",
        )


def _kind(row: TrainRow) -> str:
    if not isinstance(row, Branched):
        return "sft"
    return "pairs" if row.label is None else "rated"
