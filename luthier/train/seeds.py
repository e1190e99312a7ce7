"""Random numbers that depend on where the run is, never on how it got there.

Dropout and NEFTune noise of a micro-batch come from a generator seeded by (seed, step,
micro-batch, process). So a resumed run draws what the first one would have drawn, whatever
was evaluated, logged or generated in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derived_seed", "own_random_numbers", "seed_micro_batch"]


def derived_seed(*parts: int | str) -> int:
    """63 bits that depend on every part; the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_micro_batch(*, seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Set torch's generators (CPU and every device) for one micro-batch."""
    number = derived_seed("micro-batch", seed, step, micro_batch, rank)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # for each kind of device that is not there, `manual_seed` keeps a stack trace: 3 to 10 ms
        torch.default_generator.manual_seed(number)


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave torch's generators (of the CPU and of this device) as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
