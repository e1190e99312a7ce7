"""Rows of preferences for tests, and what a batch of them lets each answer see."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.batch import Batch
from luthier.data.prepare import Prepared, prepare
from luthier.recipe.schema import DataSection
from tests.data.reading import write
from tests.support.tiny import WORDS, tiny_tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def pairs(n: int = 40, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of TRL's conversational format: 3 to 20 words a prompt, 1 to 15 an answer."""
    chooser = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(least, most)))

    return [
        {"prompt": [user(words(3, 20))], "chosen": [says(words(1, 15))], "rejected": [says("no " + words(1, 15))]}
        for _ in range(n)
    ]


def prepared(
    path: Path, rows: Sequence[Any], *, kind: Any = "pairs", tokenizer: Any = None, cache_dir: Path | None = None,
    seed: int = 0, source: dict[str, Any] | None = None, **options: Any,
) -> Prepared:  # fmt: skip
    """Write rows to a file and prepare them."""
    file = write(path / "rows.jsonl", list(rows))
    section = DataSection(train=[{"path": str(file), **(source or {})}], **{"max_length": 256, **options})
    return prepare(section, tokenizer or tiny_tokenizer(), seed=seed, kind=kind, cache_dir=cache_dir)


@dataclass(frozen=True)
class Seen:
    """What one answer of a batch sees, in the order of its positions, and what is asked of it."""

    ids: list[int]
    positions: list[int]
    targets: list[tuple[int, int, float]]
    """(position of the token that predicts, id to predict, weight)."""
    last: int
    """Position of its last token."""


def seen(batch: Batch) -> list[Seen]:
    """For each answer of a batch: its document behind the prefix that `Batch.prefixes` gives it.

    Written against the words of `Batch` and `Answers` alone, so that it holds `collate_branched` to them.
    """
    assert batch.answers is not None
    ids, positions = batch.input_ids.tolist(), batch.position_ids.tolist()
    ends = batch.cu_seqlens.tolist()
    prefixes = batch.prefixes or ((0, 0),) * len(batch.doc_lengths)
    found = []
    for document, (start, tokens) in enumerate(prefixes):
        places = [*range(start, start + tokens), *range(ends[document], ends[document + 1])]
        of_place = {place: index for index, place in enumerate(places)}
        own = [index for index, answer in enumerate(batch.answers.of_target.tolist()) if answer == document]
        targets = [
            (
                positions[batch.source_index.tolist()[index]],
                batch.target_ids.tolist()[index],
                batch.target_weights.tolist()[index],
            )
            for index in own
            if batch.source_index.tolist()[index] in of_place
        ]
        assert len(targets) == len(own), "an answer is asked at a token it does not see"
        last = batch.answers.last_index.tolist()[document]
        assert last == ends[document + 1] - 1
        found.append(
            Seen(
                ids=[ids[place] for place in places],
                positions=[positions[place] for place in places],
                targets=targets,
                last=positions[last],
            )
        )
    return found


def whole(ids: Sequence[int], weights: Sequence[float]) -> Seen:
    """The same of a sequence that shares nothing."""
    return Seen(
        ids=list(ids),
        positions=list(range(len(ids))),
        targets=[(place - 1, ids[place], weights[place]) for place in range(len(ids)) if weights[place]],
        last=len(ids) - 1,
    )
