"""Planted bad rows: what each filter finds, and what it takes of good ones.

python benchmarks/filters_planted.py GSM8K.jsonl [--json out.json] > table.md

Good rows: GSM8K (train) and 2,000 tickets of the quickstart. Of each kind, up to 300 bad rows are made from GSM8K rows
(or from the texts below), changed in one way; a filter should drop or change all of them (recall), and none of the
good rows. Look-alikes are rows that are fine and look bad. The texts below were written for this benchmark, not taken
from the filters' lists.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.curate.filters.run import Looked, Tools, filter_rows
from luthier.curate.steps import Curation
from luthier.data.sources import read_conversations
from luthier.data.types import Conversation, RowRef
from luthier.quickstart.tickets import write_tickets
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.schema import Source
from luthier.runtime.console import set_quiet

sys.path.insert(0, str(Path(__file__).parent))
from filters_texts import LAST_REFUSALS, LOOK_ALIKES, NEW_REFUSALS, PERSONAL, REFUSALS, SENTENCES

COPIES = 300
PHONE = re.compile(r"\b(?:201|312|415|884|450) \d{4}\b")
"""How the tickets of the quickstart write phone numbers (`luthier/quickstart/phrases.py`)."""
Made = list[tuple[str, str]]


def chat(question: str, answer: str, line: int) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(kind="chat", ref=RowRef("planted", line), messages=messages, message_weights=(None, None))


def texts(row: Conversation) -> tuple[str, str]:
    return row.messages[-2]["content"], row.messages[-1]["content"]


# -- what is planted: (question, answer) of good rows -> bad ones


def cut_words(good: Made, chance: random.Random) -> Made:
    """Cut behind a word inside a sentence of prose."""
    found = []
    for question, answer in good:
        words = f"{answer.splitlines()[0]} {question}".split()
        end = chance.randrange(len(words) // 2, len(words) - 1)
        while words[end - 1][-1] in ".?!" and end > 3:
            end -= 1
        found.append((question, " ".join(words[:end])))
    return found


def cut_characters(good: Made, chance: random.Random) -> Made:
    """Cut anywhere in the second half: at the limit of a generator."""
    return [(q, a[: chance.randrange(len(a) // 2, len(a) - 8)]) for q, a in good]


def cut_code(good: Made, chance: random.Random) -> Made:
    block = (
        "Here is the program.\n\n```python\ndef solve(x):\n    total = 0\n    for i in range(x):\n        total += i\n"
    )
    return [(q, block[: chance.randrange(45, len(block))]) for q, _ in good]


def cut_json(good: Made, chance: random.Random) -> Made:
    found = []
    for question, answer in good:
        text = json.dumps({"answer": answer.rsplit("#### ", 1)[-1], "steps": answer.splitlines()[:-1]}, indent=1)
        found.append((question, text[: chance.randrange(10, len(text) - 2)]))
    return found


def repeated(how: str) -> Callable[[Made, random.Random], Made]:
    def make(good: Made, chance: random.Random) -> Made:
        found = []
        for question, answer in good:
            words, lines = answer.split(), answer.split("\n")
            if how == "twice":
                bad = f"{answer}\n{answer}"
            elif how == "sentence":
                place = chance.randrange(len(lines))
                bad = "\n".join([*lines[: place + 1], *[lines[place]] * chance.randint(3, 12)])
            elif how == "phrase":
                bad = f"{answer} " + " ".join(words[-chance.randrange(2, 7) :] * chance.randint(6, 20))
            else:
                bad = f"{answer} " + " ".join([chance.choice(words)] * chance.randint(15, 60))
            found.append((question, bad))
        return [(q, a) for q, a in found if len(a.split()) >= 50]

    return make


def mojibake(good: Made, chance: random.Random) -> Made:
    found = []
    for question, _ in good:
        text = chance.choice([s for lines in SENTENCES.values() for s in lines if not s.isascii()])
        try:
            found.append((question, text.encode("utf-8").decode(chance.choice(["cp1252", "latin-1", "cp1252"]))))
        except UnicodeDecodeError:
            found.append((question, text.encode("utf-8").decode("latin-1")))
    return found


def inserted(letter: str) -> Callable[[Made, random.Random], Made]:
    def make(good: Made, chance: random.Random) -> Made:
        places = [(q, a, chance.randrange(len(a))) for q, a in good]
        return [(q, a[:place] + letter + a[place:]) for q, a, place in places]

    return make


def foreign(sentences: int) -> Callable[[Made, random.Random], Made]:
    def make(good: Made, chance: random.Random) -> Made:
        others = [code for code in SENTENCES if code != "en"]
        return [(q, " ".join(chance.sample(SENTENCES[chance.choice(others)], sentences))) for q, _ in good]

    return make


def personal(kind: str) -> Callable[[Made, random.Random], Made]:
    def make(good: Made, chance: random.Random) -> Made:
        carriers = ["Please note: {}", "You can use {} for this.", "({})", "first {}, then we see", "Value: {}\nThanks"]
        found = []
        for question, answer in good:
            text = chance.choice(carriers).format(PERSONAL[kind](chance))
            lines = answer.split("\n")
            lines.insert(chance.randrange(len(lines) + 1), text)
            found.append((question, "\n".join(lines)))
        return found

    return make


def spread(items: Sequence[str]) -> Callable[[Made, random.Random], Made]:
    return lambda good, chance: [(q, item) for (q, _), item in zip(good, items, strict=False)]


def phrases(good: Made, chance: random.Random) -> Made:
    said = [
        "As an AI language model, I find this easy.",
        "I'm just an AI, but here it is.",
        "As of my last update in 2021,",
    ]
    said += ["As a large language model trained by OpenAI, I can do this.", "Being an AI, I have no opinion of my own."]
    return [(q, f"{chance.choice(said)} {a}") for q, a in good]


def ending(good: Made, chance: random.Random) -> Made:
    return [(q, f"{a}\n\nI hope this helps! Let me know if you have any other questions.") for q, a in good]


PLANTED: dict[str, dict[str, Callable[[Made, random.Random], Made]]] = {
    "encoding": {"mojibake": mojibake, "U+FFFD": inserted("\ufffd"), "control character": inserted("\x07")},
    "pii": {kind: personal(kind) for kind in PERSONAL},
    "echo": {"the question again": lambda good, chance: [(q, f" {q.upper()}\n") for q, _ in good]},
    "endings": {
        "cut behind a word": cut_words, "cut at a character": cut_characters, "cut code": cut_code,
        "cut JSON": cut_json,
    },
    "refusals": {
        "first list": spread(REFUSALS), "second list": spread(NEW_REFUSALS), "last list": spread(LAST_REFUSALS),
    },
    "boilerplate": {"phrase": phrases, "shared ending": ending},
    "repetition": {how: repeated(how) for how in ("twice", "sentence", "phrase", "word")},
    "language": {"1 sentence": foreign(1), "2 sentences": foreign(2), "3 sentences": foreign(3)},
}  # fmt: skip
SETTINGS: dict[str, dict[str, object]] = {"language": {"languages": ["en"]}}


def hit_lines(rows: Sequence[Conversation], name: str) -> tuple[set[int], float, list[str]]:
    """(ids of the rows that a filter drops or changes, seconds, what it says of the first)."""
    looked = Looked()
    started = time.process_time()
    section = FilterSection.model_validate({name: SETTINGS.get(name, {})})
    filter_rows(Curation(list(rows), ()), section, Tools(), looked=looked)
    seconds = time.process_time() - started
    marks = looked.marks.get(name, [])
    return {id(row) for row, _ in marks}, seconds, [f"{row.ref}: {verdict.detail}" for row, verdict in marks[:20]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", action="store_true", help="what was missed and what was taken wrongly, on stderr")
    given = parser.parse_args()
    set_quiet(True)
    columns = {"user": "question", "assistant": "answer"}
    gsm8k = read_conversations(Source(path=given.rows, map=columns), 0).conversations
    with tempfile.TemporaryDirectory() as folder:
        tickets = write_tickets(Path(folder) / "tickets.jsonl", 2_000, seed=0, split="train")
        quickstart = read_conversations(Source(path=str(tickets)), 1).conversations
    good = [texts(row) for row in gsm8k if len(row.messages[1]["content"].split()) >= 20]
    report: dict[str, dict[str, object]] = {}
    print("| filter | planted | found | recall | of GSM8K | of the quickstart | of look-alikes | precision | rows/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, kinds in PLANTED.items():
        chance = random.Random(0)
        alike = [chat("Tell me about it.", text, line) for line, text in enumerate(LOOK_ALIKES.get(name, []), 1)]
        all_found = all_planted = 0
        taken, seconds, said = hit_lines(gsm8k, name)
        of_quickstart, _, more = hit_lines(quickstart, name)
        of_alike, _, further = hit_lines(alike, name)
        if name == "pii":  # a ticket with a phone number is none to be left alone
            real = {id(row) for row in quickstart if PHONE.search(texts(row)[0])}
            report["pii, tickets"] = {"with a phone number": len(real), "found": len(real & of_quickstart)}
            of_quickstart -= real
        wrong = len(taken) + len(of_quickstart) + len(of_alike)
        lines = []
        for kind, make in kinds.items():
            made = make(chance.sample(good, COPIES), chance)
            planted = [chat(q, a, line) for line, (q, a) in enumerate(made, 1)]
            found, _, _ = hit_lines([*planted, *gsm8k] if kind == "shared ending" else planted, name)
            missed = [row.messages[1]["content"] for row in planted if id(row) not in found]
            if given.show:
                print(
                    f"## {name}, {kind}: missed {len(missed)}",
                    *[f"  {text[-160:]!r}" for text in missed[:6]],
                    sep="\n",
                    file=sys.stderr,
                )
            hits = len(planted) - len(missed)
            all_found, all_planted = all_found + hits, all_planted + len(planted)
            lines.append(f"| {name}: {kind} | {len(planted)} | {hits} | {hits / len(planted):.1%} | | | | | |")
            report.setdefault(name, {})[kind] = {"planted": len(planted), "found": hits}
        if given.show:
            print(f"## {name}: taken wrongly", *said, *more, *further, sep="\n  ", file=sys.stderr)
        precision = all_found / (all_found + wrong)
        print(
            f"| **{name}** | {all_planted:,} | {all_found:,} | {all_found / all_planted:.1%} | "
            f"{len(taken)} of {len(gsm8k):,} | {len(of_quickstart)} of {len(quickstart):,} | "
            f"{len(of_alike)} of {len(alike)} | {precision:.1%} | {len(gsm8k) / seconds:,.0f} |"
        )
        print("\n".join(lines) if len(lines) > 1 else "", end="\n" if len(lines) > 1 else "")
        report[name] |= {"gsm8k": len(taken), "quickstart": len(of_quickstart), "alike": len(of_alike)}
    shorter = [chat(q, a.rsplit("\n", 1)[0], line) for line, (q, a) in enumerate(map(texts, gsm8k), 1)]
    cut, _, _ = hit_lines(shorter, "endings")
    tickets_found = report["pii, tickets"]
    print(f"\nEndings of GSM8K answers without their last line (`#### 72`): {len(cut)} of {len(shorter):,} taken.")
    print(
        f"Phone numbers in tickets, as `450 2991`: {tickets_found['found']} of {tickets_found['with a phone number']}."
    )
    report["endings, without the last line"] = {"rows": len(shorter), "taken": len(cut)}
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
