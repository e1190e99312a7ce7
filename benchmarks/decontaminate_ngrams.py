"""Rules on word n-grams alone, as published ones are: what each finds, and its false alarms.

python benchmarks/decontaminate_ngrams.py FOLDER [--half tune|report] > table.md

any    one n-gram of the evaluation prompt stands in the training row (13 words in GPT-3's rule, 8 in others)
share  the n-grams that do hold at least 0.3 of the weight of all, weights as in luthier/curate/contamination/targets.py
plain  the same with equal weights
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from decontaminate_planted import Data, conversations, plants

from luthier.curate.contamination.scan import parts_of
from luthier.curate.contamination.targets import Lexicon, targets_of
from luthier.curate.contamination.words import words_of

LEAST = 0.3
SHOWN = ("copy", "punctuation", "typos, 1 word in 5", "sentences reordered", "cut by 50%", "synonyms, a third",
         "synonyms, all", "other names", "within 300 other words", "by hand: light", "by hand: medium", "by hand: deep",
         "one number changed")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", choices=["tune", "report"], default="report")
    arguments = parser.parse_args()
    data = Data.load(arguments.folder)
    train, test = conversations(data.train, "train.jsonl"), conversations(data.test, "test.jsonl")
    half = data.rows_of(arguments.half)
    targets, _ = targets_of([test[row] for row in half], ("prompt",))
    lexicon = Lexicon(targets, [text for row in train for text in parts_of(row)])
    ids = [lexicon.encode(target.words).tolist() for target in targets]
    clean = [lexicon.encode(words_of(parts_of(row)[0])).tolist() for row in train]
    planted = [item for item in plants(data, arguments.half) if item.answer == "none" and item.kind in SHOWN]
    texts = [lexicon.encode(words_of(item.row.text)).tolist() for item in planted]
    own = {row: place for place, row in enumerate(half)}
    print(f"half {arguments.half}, prompts only\n\n| n | rule | clean rows flagged | " + " | ".join(SHOWN) + " |")
    print("|---:|---" + "|---:" * (len(SHOWN) + 1) + "|")
    for n in (5, 6, 8, 10, 13):
        index: dict[tuple[int, ...], list[int]] = defaultdict(list)
        weights: list[dict[tuple[int, ...], float]] = []
        for place, words in enumerate(ids):
            pieces = {piece: float(sum(lexicon.weights[one] for one in piece)) for piece in grams(words, n)}
            weights.append(pieces)
            for piece in pieces:
                index[piece].append(place)
        for rule in ("any", "plain", "share"):
            flagged = sum(bool(found(words, n, rule, index, weights)) for words in clean)
            hits: dict[str, list[bool]] = defaultdict(list)
            for item, words in zip(planted, texts, strict=True):
                hits[item.kind].append(own[item.test] in found(words, n, rule, index, weights))
            cells = " | ".join(f"{sum(hits[kind]) / len(hits[kind]):.0%}" for kind in SHOWN)
            print(f"| {n} | {rule} | {flagged} ({flagged / len(clean):.2%}) | {cells} |", flush=True)


def grams(words: list[int], n: int) -> set[tuple[int, ...]]:
    return set(zip(*(words[place:] for place in range(n)), strict=False))


def found(
    words: list[int], n: int, rule: str, index: dict[tuple[int, ...], list[int]],
    weights: list[dict[tuple[int, ...], float]],
) -> set[int]:  # fmt: skip
    """Evaluation rows that a rule finds in a text."""
    shared: dict[int, float] = defaultdict(float)
    for piece in grams(words, n):
        for place in index.get(piece, ()):
            shared[place] += weights[place][piece] if rule == "share" else 1.0
    if rule == "any":
        return set(shared)
    totals = {place: sum(weights[place].values()) if rule == "share" else len(weights[place]) for place in shared}
    return {place for place, weight in shared.items() if weight >= LEAST * totals[place]}


if __name__ == "__main__":
    main()
