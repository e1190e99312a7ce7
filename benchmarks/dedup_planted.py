"""Planted duplicates: what each method finds, by kind of change, over the GSM8K training rows.

python benchmarks/dedup_planted.py ROWS.jsonl [--semantic] > table.md

Of each kind, copies of 300 different rows are planted among all rows, changed in one way. A method should drop all of
them (recall), but not the copies with other numbers, which are other problems, and not the rows of the file itself.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.curate.dedup.embed import EMBEDDING_MODEL
from luthier.curate.dedup.keep import choose
from luthier.curate.dedup.run import deduplicate
from luthier.curate.dedup.semantic import Semantic
from luthier.curate.dedup.views import Views
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DedupSection
from luthier.runtime.console import Bar, set_quiet

COPIES = 300
SENTENCE = re.compile(r"(?<=[.!?])\s+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SYNONYMS = dict(
    pair.split("/")
    for pair in (
        "buys/purchases bought/purchased buy/purchase total/sum many/numerous money/cash people/persons friends/pals "
        "sold/traded sells/trades sell/trade gave/handed gives/hands give/hand earns/makes earned/made took/needed "
        "takes/needs more/additional each/every altogether/overall house/home store/shop car/vehicle kids/children "
        "small/little large/big bag/sack box/crate trip/journey begins/starts began/started left/remaining "
        "wants/wishes job/work needs/requires cost/price costs/amounts pays/spends paid/spent week/7-day "
        "students/pupils teacher/instructor mother/mom father/dad road/street baked/cooked bakes/cooks "
        "received/got gets/receives finished/completed walk/stroll walks/strolls runs/jogs picked/gathered "
        "picks/gathers half/50% twice/doubly then/afterwards also/too currently/now if/supposing"
    ).split()
)

Change = Callable[[str, random.Random], str]


def changed_case(text: str, chance: random.Random) -> str:
    return text.upper() if chance.random() < 0.5 else text.title()


def changed_space(text: str, chance: random.Random) -> str:
    return re.sub(" ", lambda _: chance.choice([" ", "  ", "\n", "\u00a0", "\t"]), text) + "\n"


def changed_marks(text: str, chance: random.Random) -> str:
    """No mark of a sentence, except within numbers."""
    return re.sub(r"(?<!\d)[.,;:!?'\"]|[.,;:!?'\"](?!\d)", "", text)


def typos(text: str, chance: random.Random) -> str:
    """Two neighbouring letters swapped in one word of twenty."""

    def swap(found: re.Match[str]) -> str:
        word = found[0]
        place = chance.randrange(len(word) - 1)
        swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        return swapped if chance.random() < 0.05 else word

    return re.sub(r"[A-Za-z]{4,}", swap, text)


def synonyms(share: float) -> Change:
    """That share of the words of the table replaced."""

    def change(text: str, chance: random.Random) -> str:
        def replace(found: re.Match[str]) -> str:
            other = SYNONYMS.get(found[0])
            return other if other and chance.random() < share else found[0]

        return re.sub(r"[A-Za-z]+", replace, text)

    return change


def cut(share: float) -> Change:
    return lambda text, chance: text[: int(len(text) * (1 - share))]


def on_both(change: Change) -> Callable[[str, str, random.Random], tuple[str, str]]:
    return lambda question, answer, chance: (change(question, chance), change(answer, chance))


def reordered(question: str, answer: str, chance: random.Random) -> tuple[str, str]:
    """The sentences of the question in another order, its last one kept at the end."""
    *sentences, last = SENTENCE.split(question)
    chance.shuffle(sentences)
    return " ".join([*sentences, last]), answer


def other_numbers(how_many: int | None) -> Callable[[str, str, random.Random], tuple[str, str]]:
    """So many numbers of the question (None: all) become others, in the question and wherever the answer has them."""

    def change(question: str, answer: str, chance: random.Random) -> tuple[str, str]:
        there = list(dict.fromkeys(NUMBER.findall(question)))
        chance.shuffle(there)
        new = {old: str(chance.randrange(11, 99)) for old in there[:how_many]}
        results = {} if how_many else {old: str(chance.randrange(11, 999)) for old in NUMBER.findall(answer)}
        mapping = {**results, **new}
        return tuple(NUMBER.sub(lambda found: mapping.get(found[0], found[0]), text) for text in (question, answer))  # type: ignore[return-value]

    return change


KINDS: dict[str, Callable[[str, str, random.Random], tuple[str, str]]] = {
    "copy": lambda question, answer, chance: (question, answer),
    "case": on_both(changed_case),
    "white space": on_both(changed_space),
    "punctuation": on_both(changed_marks),
    "typos, 1 word in 20": on_both(typos),
    "sentences reordered": reordered,
    "cut by 10%": on_both(cut(0.1)),
    "cut by 30%": on_both(cut(0.3)),
    "synonyms, a third": on_both(synonyms(0.33)),
    "synonyms, all": on_both(synonyms(1.0)),
    "one number changed": other_numbers(1),
    "all numbers changed": other_numbers(None),
}
OTHER_PROBLEMS = ("one number changed", "all numbers changed")


def chat(question: str, answer: str, ref: RowRef) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(kind="chat", ref=ref, messages=messages, message_weights=(None, None))


def plant(
    rows: list[dict[str, str]], *, copies: int = COPIES, seed: int = 0
) -> tuple[list[Conversation], dict[int, str]]:
    """All rows, then the planted ones, none of them unchanged; and the kind of each planted row by its index."""
    chance = random.Random(seed)
    planted = [chat(row["question"], row["answer"], RowRef("rows.jsonl", line)) for line, row in enumerate(rows, 1)]
    kinds: dict[int, str] = {}
    for kind, change in KINDS.items():
        places = list(range(len(rows)))
        chance.shuffle(places)
        done = 0
        for place in places:
            row = rows[place]
            question, answer = change(row["question"], row["answer"], chance)
            if done == copies:
                break
            unchanged = f"{question} {answer}".split() == f"{row['question']} {row['answer']}".split()
            if unchanged and kind not in {"copy", "white space"}:
                continue
            kinds[len(planted)] = kind
            planted.append(chat(question, answer, RowRef(kind, place + 1)))
            done += 1
    return planted, kinds


def found_by(rows: list[Conversation], kinds: dict[int, str], own: int, **keys: Any) -> tuple[Counter[str], list[int]]:
    """Planted rows of each kind that are dropped for their own original, and the rows of the file that are dropped."""
    result = deduplicate(rows, DedupSection(**keys))
    found: Counter[str] = Counter()
    base = []
    for item in result.dropped:
        if item.row < own:
            base.append(item.row)
        elif rows[item.kept].ref.line == rows[item.row].ref.line:  # planted rows have the line of their original
            found[kinds[item.row]] += 1
    return found, base


FUZZY = (0.9, 0.8, 0.7, 0.6, 0.5)
METHODS: dict[str, dict[str, Any]] = {
    "exact": {"fuzzy": None},
    "exact, no punctuation": {"fuzzy": None, "ignore": ["unicode", "case", "whitespace", "punctuation"]},
    **{f"fuzzy {threshold:g}": {"fuzzy": threshold} for threshold in FUZZY},
    **{f"fuzzy {threshold:g}, any numbers": {"fuzzy": threshold, "numbers": "any"} for threshold in FUZZY},
}
SEMANTIC = (0.98, 0.95, 0.92, 0.9, 0.85)


def semantic_table(rows: list[Conversation], kinds: dict[int, str], own: int) -> None:
    """The embeddings are made once; each line drops what the rows before it leave no need for."""
    for numbers in ("same", "any"):
        views = Views(rows, numbers=numbers)
        if numbers == "same":
            semantic = Semantic(views, range(len(rows)), 0.5, EMBEDDING_MODEL, Bar("embed", 1, "texts"))
        for threshold in SEMANTIC:
            semantic.threshold, semantic._views = threshold, views
            dropped: dict[int, int] = {}
            for members in semantic.clusters(Bar("compare", 1, "rows")).groups().values():
                dropped |= {row: of for row, (of, _) in choose(members, lambda row: (row,), semantic).items()}
            found = Counter(
                kinds[row] for row, of in dropped.items() if row >= own and rows[of].ref.line == rows[row].ref.line
            )
            base = [row for row in dropped if row < own]
            print_line(f"semantic {threshold:g}" + (", any numbers" if numbers == "any" else ""), found, base, kinds)


def print_line(name: str, found: Counter[str], base: list[int], kinds: dict[int, str]) -> None:
    planted = Counter(kinds.values())
    wrong = sum(found[kind] for kind in OTHER_PROBLEMS) + len(base)
    right = sum(found.values()) - sum(found[kind] for kind in OTHER_PROBLEMS)
    cells = [f"{found[kind] / planted[kind]:.0%}" for kind in planted]
    precision = f"{right / max(right + wrong, 1):.1%}"
    print(f"| {name} | " + " | ".join(cells) + f" | {len(base)} | {precision} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="JSON Lines with question and answer")
    parser.add_argument("--semantic", action="store_true", help="embeddings instead of shingles (minutes on a CPU)")
    parser.add_argument("--limit", type=int, help="only the first rows of the file")
    parser.add_argument("--copies", type=int, default=COPIES, help="planted rows of each kind")
    arguments = parser.parse_args()
    set_quiet(True)
    base = [json.loads(line) for line in arguments.rows.read_text("utf-8").splitlines()[: arguments.limit]]
    rows, kinds = plant(base, copies=arguments.copies)
    print(f"{len(base):,} rows of {arguments.rows.name}, {arguments.copies:,} planted of each kind\n")
    planted = list(dict.fromkeys(kinds.values()))
    print("| method | " + " | ".join(planted) + " | rows of the file | precision |")
    print("|---|" + "---:|" * (len(planted) + 2))
    if arguments.semantic:
        semantic_table(rows, kinds, len(base))
        return
    for name, keys in METHODS.items():
        print_line(name, *found_by(rows, kinds, len(base), **keys), kinds)


if __name__ == "__main__":
    main()
