"""Planted copies and rewordings of GSM8K test rows: what is found, by kind of change, and false alarms.

python benchmarks/decontaminate_planted.py FOLDER [--half tune|report] [--semantic] > table.md

FOLDER holds GSM8K's train.jsonl, test.jsonl and preferences.jsonl. Every test row of one half is planted once for each
kind of change, among the training rows; thresholds were chosen on the half `tune` and are measured on `report`.
Rewordings by hand are in benchmarks/data/gsm8k_paraphrases.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from dedup_planted import NUMBER, changed_case, changed_marks, changed_space, chat, synonyms

from luthier.curate.contamination.run import Decontaminated, decontaminate
from luthier.data.types import Conversation, RowRef
from luthier.recipe.decontaminate_schema import DecontaminateSection
from luthier.runtime.console import set_quiet

HAND = Path(__file__).parent / "data" / "gsm8k_paraphrases.jsonl"
SENTENCE = re.compile(r"(?<=[.!?])\s+")
NAMES = "Alma Bruno Carla Dario Elsa Felix Greta Hugo Ivana Jonas Karin Luis Marta Nils Olga Pablo Rosa Sven".split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
CALCULATION = re.compile(r"<<.*?>>")
OTHERS = ("one number changed", "all numbers changed")
Change = Callable[[str, random.Random], str]


def many_typos(text: str, chance: random.Random) -> str:
    """Two neighbouring letters swapped in one word of five."""

    def swap(found: re.Match[str]) -> str:
        word, place = found[0], chance.randrange(len(found[0]) - 1)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :] if chance.random() < 0.2 else word

    return re.sub(r"[A-Za-z]{4,}", swap, text)


def reordered(text: str, chance: random.Random) -> str:
    *sentences, last = SENTENCE.split(text)
    chance.shuffle(sentences)
    return " ".join([*sentences, last])


def other_names(text: str, chance: random.Random) -> str:
    """Capitalised words within a sentence, and wherever else they stand, become other names."""
    names = dict.fromkeys(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    new = dict(zip(names, chance.sample(NAMES, k=min(len(names), len(NAMES))), strict=False))
    return re.sub(r"[A-Z][a-z]+", lambda found: new.get(found[0], found[0]), text)


def spelled(text: str, chance: random.Random) -> str:
    """Whole numbers up to twenty in words."""
    return re.sub(r"(?<![\d.,/$])\d{1,2}(?![\d.,/%])", lambda found: _word(found[0]), text)


def _word(digits: str) -> str:
    return NUMBER_WORDS[int(digits)] if int(digits) <= 20 else digits


def all_at_once(text: str, chance: random.Random) -> str:
    for change in (reordered, other_names, synonyms(1.0), spelled):
        text = change(text, chance)
    return text


def other_problem(question: str, answer: str, how_many: int | None, chance: random.Random) -> tuple[str, str]:
    """So many numbers of the question (None: all) become others, in the answer, too, and so does the result."""
    there = list(dict.fromkeys(NUMBER.findall(question)))
    chance.shuffle(there)
    new = {old: str(chance.randrange(11, 99)) for old in there[:how_many]}
    last = NUMBER.findall(answer)[-1]
    new[last] = str(chance.randrange(101, 999))
    if how_many is None:
        new |= {old: str(chance.randrange(11, 999)) for old in NUMBER.findall(answer) if old not in new}
    asked = {old: value for old, value in new.items() if old in there[:how_many]}
    return (
        NUMBER.sub(lambda found: asked.get(found[0], found[0]), question),
        NUMBER.sub(lambda found: new.get(found[0], found[0]), answer),
    )


CHANGES: dict[str, Change] = {
    "copy": lambda text, chance: text,
    "case": changed_case,
    "white space": changed_space,
    "punctuation": changed_marks,
    "typos, 1 word in 5": many_typos,
    "sentences reordered": reordered,
    "cut by 10%": lambda text, chance: text[: int(len(text) * 0.9)],
    "cut by 30%": lambda text, chance: text[: int(len(text) * 0.7)],
    "cut by 50%": lambda text, chance: text[: int(len(text) * 0.5)],
    "synonyms, a third": synonyms(0.33),
    "synonyms, all": synonyms(1.0),
    "other names": other_names,
    "numbers in words": spelled,
    "reordered, names, synonyms, number words": all_at_once,
}


@dataclass(frozen=True)
class Data:
    train: list[dict[str, str]]
    test: list[dict[str, str]]
    solutions: dict[int, str]
    """Test row -> another right solution, by a model (preferences.jsonl)."""
    hand: list[dict[str, Any]]

    @staticmethod
    def load(folder: Path) -> Data:
        def read(file: Path) -> list[dict[str, Any]]:
            return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

        test, chosen = (
            read(folder / "test.jsonl"),
            {row["prompt"]: row["chosen"] for row in read(folder / "preferences.jsonl")},
        )
        solutions = {place: chosen[row["question"]] for place, row in enumerate(test) if row["question"] in chosen}
        return Data(read(folder / "train.jsonl"), test, solutions, read(HAND))

    def rows_of(self, half: str) -> list[int]:
        """Test rows by the parity of their line."""
        return [place for place in range(len(self.test)) if half == "all" or place % 2 == (half == "report")]


@dataclass(frozen=True)
class Planted:
    kind: str
    answer: str
    """own, other (a model's solution), none."""
    test: int
    row: Conversation


def text_row(text: str, ref: RowRef) -> Conversation:
    return Conversation(kind="text", ref=ref, text=text)


def plants(data: Data, half: str, seed: int = 0) -> list[Planted]:
    """Each test row of a half, changed in every way; question with its own answer, another solution, and alone."""
    chance = random.Random(seed)
    found: list[Planted] = []

    def put(kind: str, place: int, question: str, same: bool = True, own: str | None = None) -> None:
        ref = RowRef(f"planted: {kind}", place + 1)
        answer = own if own is not None else data.test[place]["answer"]
        found.append(Planted(kind, "own", place, chat(question, answer, ref)))
        if same and place in data.solutions:
            found.append(Planted(kind, "other", place, chat(question, data.solutions[place], ref)))
        found.append(Planted(kind, "none", place, text_row(question, ref)))

    for place in data.rows_of(half):
        question, answer = data.test[place]["question"], data.test[place]["answer"]
        for kind, change in CHANGES.items():
            put(kind, place, change(question, chance))
        put("within 300 other words", place, _within(question, data, chance))
        for kind, how_many in zip(OTHERS, (1, None), strict=True):
            other_question, other_answer = other_problem(question, answer, how_many, chance)
            if other_question != question:
                put(kind, place, other_question, same=False, own=other_answer)
        ref = RowRef("planted: answer", place + 1)
        found.append(Planted("only the answer", "own", place, chat("Here is one more for you.", answer, ref)))
        plain = CALCULATION.sub("", answer).split("####")[0]
        found.append(Planted("only the answer, no <<...>>", "own", place, text_row(plain, ref)))
        if place in data.solutions:
            found.append(Planted("only another solution", "other", place, text_row(data.solutions[place], ref)))
    wanted = set(data.rows_of(half))
    for item in data.hand:
        if item["test_line"] - 1 in wanted:
            put(f"by hand: {item['kind']}", item["test_line"] - 1, item["question"])
    return found


def _within(question: str, data: Data, chance: random.Random) -> str:
    """About 150 words of training rows before and after."""
    around = [" ".join(row["question"] for row in chance.sample(data.train, 4)) for _ in range(2)]
    return f"{around[0]} {question} {around[1]}"


def conversations(rows: list[dict[str, str]], name: str) -> list[Conversation]:
    return [chat(row["question"], row["answer"], RowRef(name, line)) for line, row in enumerate(rows, 1)]


def table(
    data: Data, half: str, settings: DecontaminateSection, only: str | None = None
) -> list[tuple[str, str, int, int, int]]:
    """Kind, answer, planted, found, found as a variant: for its own test row."""
    train, test = conversations(data.train, "train.jsonl"), conversations(data.test, "test.jsonl")
    lines = []
    groups: dict[tuple[str, str], list[Planted]] = {}
    for item in plants(data, half):
        if only is None or only in item.kind:
            groups.setdefault((item.kind, item.answer), []).append(item)
    for (kind, answer), items in groups.items():
        rows = [item.row for item in items]
        result = decontaminate(rows, test, settings, common=[*train, *rows])
        found = [match for match in result.matches if match.of == items[match.row].test or match.others]
        variants = sum(match.verdict == "variant" for match in found)
        lines.append((kind, answer, len(items), len(found) - variants, variants))
        missed = set(range(len(items))) - {match.row for match in found}
        if missed and len(missed) < 10:
            print(
                f"  missed {kind}, {answer}: test rows {[items[row].test + 1 for row in sorted(missed)]}",
                file=sys.stderr,
            )
    return lines


def false_alarms(data: Data, half: str, settings: DecontaminateSection) -> Decontaminated:
    """The clean training rows against the test rows of a half."""
    test = conversations(data.test, "test.jsonl")
    return decontaminate(conversations(data.train, "train.jsonl"), [test[row] for row in data.rows_of(half)], settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", choices=["tune", "report", "all"], default="report")
    parser.add_argument("--semantic", action="store_true", help="with embeddings of doubtful pairs (minutes on a CPU)")
    parser.add_argument("--only", help="only kinds with this in their name")
    arguments = parser.parse_args()
    set_quiet(True)
    settings = DecontaminateSection(embedding=0.73) if arguments.semantic else DecontaminateSection()
    data = Data.load(arguments.folder)
    clean = false_alarms(data, arguments.half, settings)
    counts = clean.counts()
    wrong = sum(count for verdict, count in counts.items() if verdict != "variant")
    print(f"half {arguments.half}; clean training rows: {wrong:,} of {len(data.train):,} flagged "
          f"({wrong / len(data.train):.2%}), {counts.get('variant', 0):,} variants; {counts}\n")  # fmt: skip
    print("| planted | its answer | rows | found | as a variant |\n|---|---|---:|---:|---:|")
    for kind, answer, planted, found, variants in table(data, arguments.half, settings, arguments.only):
        print(f"| {kind} | {answer} | {planted:,} | {found / planted:.1%} | {variants / planted:.1%} |", flush=True)


if __name__ == "__main__":
    main()
