"""How much goes into one optimizer step, and how many steps there are. Pure arithmetic.

A *sequence* is what one row of a batch holds: a pack with packing, a data row without. A global
step is per_device_train_batch_size x gradient_accumulation_steps x world_size sequences, as in TRL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from luthier.recipe.schema import TrainSection

__all__ = [
    "Batching", "choose_batching", "divisible", "sequences_for_rows", "sequences_for_tokens", "step_target",
    "total_steps",
]  # fmt: skip

SHARE_OF_ROWS = 0.02
FEWEST_ROWS, MOST_ROWS = 4, 64
MICRO_BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384, "mps": 4_096}
"""Tokens of a micro-batch on one device. On a CPU small activations stay in the caches and were measured
faster (shared/research/cpu_stack.md); a GPU of the last generations needs some 8,000 to be busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The split of a step; `sequences_per_step` is the product with the number of devices."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    sequences_per_step: int


def total_steps(sequences: int, sequences_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run: ceil(epochs x ceil(sequences / sequences_per_step)), or `max_steps`.

    The last step of an epoch takes what is left; it is a step like the others. A fraction of an
    epoch is a fraction of its steps. `epochs` is taken as the decimal it was written as, so that
    1.1 epochs of 10 steps are 11 steps, not ceil(11.000000000000002).
    """
    if max_steps is not None:
        return max_steps
    return math.ceil(Fraction(repr(float(epochs))) * math.ceil(Fraction(sequences, sequences_per_step)))


def divisible(count: float) -> int:
    """The nearest number without a prime factor above 5; up to 10 the number itself, rounded, and at least 1.

    A step of 17 sequences can only be run whole or one by one, and neither may suit a device. 16 split well, and
    are within the 9% that a number of rows "about so many" leaves open. The same for every device.
    """
    if count <= 10:
        return max(1, round(count))
    return min(
        range(1, 2 * math.ceil(count)), key=lambda number: (not _splits_well(number), abs(number - count), -number)
    )


def _splits_well(number: int) -> bool:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1


def sequences_for_tokens(tokens_per_step: int, mean_tokens: float) -> int:
    """tokens_per_step / mean tokens of a sequence, as a whole number that divides well, at least 1."""
    return divisible(max(1, round(tokens_per_step / mean_tokens)))


def sequences_for_rows(rows: int, sequences: int) -> tuple[int, int]:
    """Sequences, and rows, of a step when the recipe leaves it open.

    About 2% of the rows, to the nearest power of two, at least 4 and at most 64 of them: an epoch
    then has some 50 updates on small sets, and on large ones the noise of the gradient is that of
    the batch sizes in common use. Divided by the rows of a sequence, to a number that divides well.
    """
    wanted = 2 ** round(math.log2(max(1.0, SHARE_OF_ROWS * rows)))
    wanted = min(max(wanted, FEWEST_ROWS), MOST_ROWS)
    return min(divisible(max(1, round(wanted * sequences / rows))), sequences), wanted


def step_target(train: TrainSection, *, rows: int, sequences: int, mean_tokens: float) -> tuple[int, str]:
    """Sequences of a step over all devices, and why: from the recipe's tokens or rows of a step, or by the rule.

    `rows_per_step` is taken exactly without packing; else it is the nearest number of packs, at least 1.
    """
    if train.tokens_per_step != "auto":
        why = f"{train.tokens_per_step:,} tokens a step / {mean_tokens:.0f} a sequence"
        return sequences_for_tokens(train.tokens_per_step, mean_tokens), why
    if train.rows_per_step is not None:
        why = f"{train.rows_per_step} rows a step x {sequences:,} sequences / {rows:,} rows"
        return max(1, round(train.rows_per_step * sequences / rows)), why
    target, wanted = sequences_for_rows(rows, sequences)
    return target, f"about {wanted} of {rows:,} rows a step (2%, a power of two from 4 to 64)"


def choose_batching(
    sequences_per_step: int,
    *,
    mean_tokens: float,
    device_type: str,
    world_size: int,
    per_device_train_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    micro_batch_tokens: int | None = None,
) -> Batching:
    """Split a step into micro-batches; a number that is given stays.

    The sequences of one device are the nearest whole number; the micro-batch is their largest divisor
    within the token budget of the device (`micro_batch_tokens` of a plan, else `MICRO_BATCH_TOKENS`), so the
    split never changes what goes into a step. Where a step is no multiple of the devices, each gets a number that
    divides well: 135 sequences over 8 devices are 16 each, and not 17, of which only one or all fit a micro-batch.
    """
    micro, accumulate = per_device_train_batch_size, gradient_accumulation_steps
    per_device = max(1, round(sequences_per_step / world_size))
    if micro is None and accumulate is None:
        if sequences_per_step % world_size:
            per_device = divisible(sequences_per_step / world_size)
        budget = micro_batch_tokens or MICRO_BATCH_TOKENS.get(device_type, MICRO_BATCH_TOKENS["cpu"])
        divisors = [size for size in range(1, per_device + 1) if per_device % size == 0]
        micro = max([size for size in divisors if size * mean_tokens <= budget], default=1)
        accumulate = per_device // micro
    elif micro is None:
        assert accumulate is not None
        micro = max(1, round(per_device / accumulate))
    elif accumulate is None:
        accumulate = max(1, round(per_device / micro))
    return Batching(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        sequences_per_step=micro * accumulate * world_size,
    )
