"""What the model says of every answer before it is trained: the reference of DPO and KTO.

The reference is the model as training finds it: the base; with adapters the base too, since a fresh adapter adds
nothing; with `method.init_from` the adapter it goes on from (as TRL keeps a copy of it for this). So there is never a
second model in memory: all answers run once before the first step, without dropout, through the same engine and the
same layout as in training, and each row keeps its numbers (`Branched.reference`). It happens before a checkpoint is
restored, so a resumed run has the reference of its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from luthier.data.branches import collate_branched
from luthier.data.types import Branched
from luthier.fast.probe import quiet
from luthier.runtime.console import note, progress
from luthier.runtime.errors import OutOfMemory, RunFailed
from luthier.train.feed import by_token_budget
from luthier.train.mismatched import Mismatched, join, partners
from luthier.train.passes import dealt
from luthier.train.processes import on_main
from luthier.train.reference_cache import ReferenceCache, rows_hash
from luthier.train.step import all_sum

if TYPE_CHECKING:
    from luthier.train.step import Trainer

__all__ = ["Referenced", "Values", "answer_values", "start_values", "tokens_at_once", "with_reference"]

TOKENS = {"cpu": 1_024, "cuda": 16_384, "mps": 4_096}
"""Tokens of a batch: as of a training step (`recipe/steps.py`), and no activations are kept."""
NEAR = 2e-2
"""A cached value may differ from a new one by this many nats a token, in 16 bits; less in fp32."""

Values = list[tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Referenced:
    """Rows with their reference, and pairs of prompts and foreign answers where the objective asks for them."""

    train: Sequence[Branched]
    validation: Sequence[Branched]
    mismatched: Mismatched | None = None
    validation_mismatched: Mismatched | None = None


def with_reference(
    trainer: Trainer, train: Sequence[Branched], validation: Sequence[Branched], *, cache: ReferenceCache | None,
    steps: Callable[[], Sequence[Sequence[int]]], max_length: int,
) -> Referenced:  # fmt: skip
    """Give every row the log-probabilities of its answers under the model as it is now.

    Args:
        trainer: Before anything was trained or restored.
        train: Training rows.
        validation: Held-out rows.
        cache: Where values of earlier runs are; None: nowhere.
        steps: The rows of each step of the run, for objectives that pair prompts with answers of other rows.
        max_length: Tokens of such a prompt with its answer.

    Raises:
        RunFailed: a log-probability is not finite.
        OutOfMemory: a single row does not fit.
    """
    assert trainer.objective is not None
    named = {"training rows": train, "validation rows": validation}
    if not trainer.objective.needs_kl:
        found = {name: _filled(rows, start_values(trainer, rows, cache, name)) for name, rows in named.items()}
        return Referenced(train=found["training rows"], validation=found["validation rows"])
    pairs = {
        "training rows": list(dict.fromkeys(pair for rows in steps() for pair in partners(rows))),
        "validation rows": partners(range(len(validation))),
    }
    found, foreign = {}, {}
    for name, rows in named.items():
        joined = [join(rows, pair, max_length) for pair in pairs[name]]
        label = f"{name} and {len(joined):,} answers behind other prompts"
        values = start_values(trainer, [*rows, *joined], cache, label)
        found[name] = _filled(rows, values[: len(rows)])
        reference = dict(zip(pairs[name], (value[0] for value in values[len(rows) :]), strict=True))
        foreign[name] = Mismatched(rows=rows, max_length=max_length, reference=reference)
    return Referenced(
        train=found["training rows"], validation=found["validation rows"], mismatched=foreign["training rows"],
        validation_mismatched=foreign["validation rows"],
    )  # fmt: skip


def answer_values(trainer: Trainer, rows: Sequence[Branched], *, label: str, tokens: int) -> Values:
    """Log-probability (or reward) of each answer of each row under the model as it is, the same on every process.

    In batches of at most `tokens` tokens, without dropout; the rows are shared out to the processes.

    Raises:
        RunFailed: one is not finite.
        OutOfMemory: a single row does not fit.
    """
    groups = list(by_token_budget(rows, tokens))
    mine, more = dealt(trainer, groups)
    here = torch.zeros(sum(len(row.answers) for row in rows), dtype=torch.float64)
    starts, _ = dealt(trainer, _starts(groups))
    with quiet(trainer.engine.module), progress(label, sum(map(len, mine)), "rows") as bar:
        for group, start in zip(mine, starts, strict=True):
            values = _of_group(trainer, group)
            here[start : start + len(values)] = torch.tensor(values, dtype=torch.float64)
            bar.advance(len(group))
        for _ in range(more):
            _of_group(trainer, [min(rows, key=len)])
    if trainer.world_size > 1:
        whole = here.to(trainer.accelerator.device)
        here = trainer.accelerator.reduce(whole, reduction="sum").cpu()
    flat = iter(here.tolist())
    found = [tuple(next(flat) for _ in row.answers) for row in rows]
    _require_finite(rows, found)
    return found


def _of_group(trainer: Trainer, rows: Sequence[Branched]) -> list[float]:
    """One batch; in halves where it does not fit and this process may make passes of its own."""
    try:
        batch = collate_branched(rows).to(trainer.accelerator.device)
        values: list[float] = trainer.engine.answer_values(batch).tolist()
        return values
    except torch.OutOfMemoryError:
        if trainer.engine.passes_together:
            raise  # the others are in the middle of this pass
        if len(rows) == 1:
            raise OutOfMemory(
                code="T440", message=f"{rows[0].ref} ({len(rows[0]):,} tokens) does not fit, even without gradients",
                hint="use a smaller `data.max_length`, or a smaller model",
            ) from None  # fmt: skip
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    return [*_of_group(trainer, rows[:middle]), *_of_group(trainer, rows[middle:])]


def tokens_at_once(trainer: Trainer) -> int:
    """Tokens of a batch without gradients."""
    return TOKENS.get(trainer.accelerator.device.type, TOKENS["cpu"])


def start_values(trainer: Trainer, rows: Sequence[Branched], cache: ReferenceCache | None, label: str) -> Values:
    """`answer_values` of the start: cached ones if a look at some of them agrees; else computed, and kept."""
    if not rows:
        return []
    tokens = tokens_at_once(trainer)
    if cache is None:
        return answer_values(trainer, rows, label=f"start: {label}", tokens=tokens)
    key = rows_hash(rows)
    known = on_main(trainer.accelerator, lambda: cache.load(key, rows))
    if known is not None and _still_true(trainer, rows, known, tokens):
        note(f"  start: {label}: cached, and a sample agrees")
        return known
    if known is not None:
        note("  what is cached is not what this model says now; it is computed again", style="yellow")
    values = answer_values(trainer, rows, label=f"start: {label}", tokens=tokens)
    on_main(trainer.accelerator, lambda: cache.save(key, values))
    return values


def _still_true(trainer: Trainer, rows: Sequence[Branched], known: Values, tokens: int) -> bool:
    """Compare the first batch with what is cached: a cache that is wrong must not decide a training.

    All processes look at the same batch, and one that finds a difference decides for all.
    """
    sample = next(by_token_budget(rows, tokens))
    half = next(trainer.engine.module.parameters()).dtype != torch.float32
    with quiet(trainer.engine.module):
        values = iter(_of_group(trainer, sample))
    far = 0.0
    for row, expected in zip(sample, known, strict=False):
        for weights, value in zip(row.weights, expected, strict=True):
            targets = sum(1 for weight in weights if weight)
            far += not abs(next(values) - value) <= (NEAR if half else NEAR / 100) * targets
    return all_sum(trainer, [far]) == [0.0]


def _filled(rows: Sequence[Branched], values: Values) -> list[Branched]:
    return [replace(row, reference=value) for row, value in zip(rows, values, strict=True)]


def _starts(groups: Sequence[Sequence[Branched]]) -> list[int]:
    """Number of the first answer of each group."""
    starts, total = [], 0
    for group in groups:
        starts.append(total)
        total += sum(len(row.answers) for row in group)
    return starts


def _require_finite(rows: Sequence[Branched], values: Values) -> None:
    bad = [row for row, value in zip(rows, values, strict=True) if not all(map(math.isfinite, value))]
    if bad:
        named = ", ".join(str(row.ref) for row in bad[:20])
        raise RunFailed(
            code="T413", message=f"the reference of {len(bad):,} rows is not finite, before any training: {named}",
            hint="check the base model, or use another `model.dtype`",
        )  # fmt: skip
