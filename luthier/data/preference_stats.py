"""What is worth knowing of rows of preferences before training on them: lengths, length bias, contradictions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.data.lengths import length_summary
from luthier.data.types import Branched, TrainRow

__all__ = ["preference_lines", "preference_stats"]


def preference_stats(train: Sequence[TrainRow]) -> dict[str, Any]:
    """Numbers of the training rows, each row once whatever the weight of its source. Lengths in tokens.

    `chosen_longer`, `rejected_longer`, `same_length`: a model trained on pairs whose better answer is the longer one
    learns to write long (arXiv:2310.03716, arXiv:2403.19159). `tokens_saved`: what computing each prompt once instead
    of once an answer leaves out, of `tokens_unshared`. `conflicts`: rows of which another says the opposite.
    """
    rows = [row for row in {id(row): row for row in train}.values() if isinstance(row, Branched)]
    rated = [row for row in rows if row.label is not None]
    pairs = [row for row in rows if row.label is None]
    saved = sum(len(row.prompt) for row in pairs)
    found: dict[str, Any] = {
        "kind": "rated" if rated else "pairs",
        "prompt_tokens": length_summary([len(row.prompt) for row in rows]),
        "tokens_saved": saved,
        "tokens_unshared": saved + sum(map(len, rows)),
        "conflicts": _conflicts(rows),
    }
    if rated:
        for name, label in (("desired", True), ("undesired", False)):
            own = [len(row.answers[0]) for row in rated if row.label is label]
            found |= {name: len(own), f"{name}_tokens": length_summary(own)}
        return found
    chosen = [len(row.answers[0]) for row in pairs]
    rejected = [len(row.answers[1]) for row in pairs]
    more = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    less = sum(a < b for a, b in zip(chosen, rejected, strict=True))
    return found | {
        "chosen_tokens": length_summary(chosen),
        "rejected_tokens": length_summary(rejected),
        "chosen_longer": more,
        "rejected_longer": less,
        "same_length": len(pairs) - more - less,
        "with_margin": sum(row.margin is not None for row in pairs),
    }


def preference_lines(found: dict[str, Any]) -> list[str]:
    """The statistics in sentences."""
    names = ("prompt", "chosen", "rejected") if found["kind"] == "pairs" else ("prompt", "desired", "undesired")
    sizes = ", ".join(f"{name} {found[f'{name}_tokens']['p50']} ({found[f'{name}_tokens']['max']})" for name in names)
    lines = [f"tokens, median (longest): {sizes}"]
    if found["kind"] == "pairs":
        count = found["chosen_longer"] + found["rejected_longer"] + found["same_length"]
        saved, whole = found["tokens_saved"], found["tokens_unshared"]
        lines += [
            f"chosen is the longer answer in {found['chosen_longer']:,} of {count:,} pairs "
            f"({found['chosen_longer'] / count:.0%}), rejected in {found['rejected_longer']:,}",
            f"prompts are computed once a pair: {saved:,} of {whole:,} tokens saved ({saved / whole:.0%})",
        ]
    else:
        lines.append(f"answers: {found['desired']:,} desired, {found['undesired']:,} not")
    return [*lines, f"rows that say the opposite of another: {found['conflicts']:,}"]


def _conflicts(rows: Sequence[Branched]) -> int:
    """Pairs whose two sequences stand the other way round in another pair; rated answers with both labels."""
    keys = [tuple(_hash(row.prompt, answer) for answer in row.answers) for row in rows]
    pairs = set(keys)
    labels: defaultdict[tuple[bytes, ...], set[bool | None]] = defaultdict(set)
    for key, row in zip(keys, rows, strict=True):
        labels[key].add(row.label)
    return sum(key[::-1] in pairs if len(key) > 1 else len(labels[key]) > 1 for key in keys)


def _hash(prompt: Sequence[int], answer: Sequence[int]) -> bytes:
    ids = np.concatenate([np.asarray(prompt, np.int32), np.asarray(answer, np.int32)])
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
