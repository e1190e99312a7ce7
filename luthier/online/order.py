"""Which prompts each step asks: whole epochs, laid end to end.

Step s (from 0) samples completions for the prompts [n P, (n + 1) P) of this list, where P is the number of prompts of
a step and n = s // num_iterations. A step always has P prompts, so the last one of an epoch goes on into the next; no
prompt is left out, and none is asked twice before all were asked once. The list depends on the seed alone, so a
resumed run asks what the first one would have asked.
"""

from __future__ import annotations

import numpy as np

__all__ = ["prompt_order"]


def prompt_order(rows: int, *, batches: int, batch: int, seed: int, shuffle: bool) -> list[int]:
    """Indices of `batches` x `batch` prompts out of `rows`; each epoch is a new permutation if `shuffle`."""
    wanted = batches * batch
    found: list[int] = []
    epoch = 0
    while len(found) < wanted:
        own = np.random.default_rng([seed, epoch]).permutation(rows) if shuffle else np.arange(rows)
        found += own.tolist()
        epoch += 1
    return found[:wanted]
