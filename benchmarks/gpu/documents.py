"""The documents of `bench_peers.make_docs`, draw for draw: the same work for ours and for the peers.

Chats as Orca-Math's: log-normal lengths of mean 300, clipped at `max_doc`; about the last 60% of a document's tokens
are supervised; ids are skewed towards small ones, so that the loss moves.
"""

from __future__ import annotations

import math

import numpy as np

from luthier.data.types import Example, RowRef

SIGMA = 0.6


def make_documents(tokens: int, *, max_doc: int, vocab_size: int, mean: float = 300.0, seed: int = 0) -> list[Example]:
    """Documents until they hold at least `tokens` tokens.

    A longer list begins with the shorter one of the same settings.
    """
    chooser = np.random.default_rng(seed)
    mu = math.log(mean) - SIGMA * SIGMA / 2
    examples: list[Example] = []
    total = 0
    while total < tokens:
        n = int(np.clip(chooser.lognormal(mu, SIGMA), 16, max_doc))
        ids = np.minimum((vocab_size - 4) * chooser.random(n) ** 3, vocab_size - 5).astype(np.int64) + 4
        cut = max(1, round(n * float(np.clip(chooser.normal(0.4, 0.1), 0.05, 0.9))))
        weights = np.ones(n, dtype=np.float32)
        weights[:cut] = 0.0
        examples.append(Example(ids=ids, weights=weights, ref=RowRef("random", len(examples) + 1)))
        total += n
    return examples
