"""Speed and memory of decontamination: many training rows against the GSM8K test rows.

python benchmarks/decontaminate.py FOLDER [--rows 1000000] > table.md

FOLDER holds GSM8K's train.jsonl, test.jsonl and preferences.jsonl. The training rows are made while they are read (so
that memory is that of the search alone): sentences of three training rows in a new order, with other numbers, and an
answer; every thousandth row is a test row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

sys.path.insert(0, str(Path(__file__).parent))

from decontaminate_planted import NUMBER, SENTENCE, Data, conversations
from dedup_planted import chat

from luthier.curate.contamination.run import decontaminate
from luthier.data.types import Conversation, RowRef
from luthier.recipe.decontaminate_schema import DecontaminateSection

PLANTED_EVERY = 1_000


class Rows(Sequence[Conversation]):
    """Rows that are made when asked for; the same index always gives the same row."""

    def __init__(self, data: Data, count: int) -> None:
        self.data, self.count = data, count
        self.sentences = [SENTENCE.split(row["question"]) for row in data.train]

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(self.count))]
        return self.make(index)

    def make(self, index: int) -> Conversation:
        ref = RowRef("made.jsonl", index + 1)
        if index % PLANTED_EVERY == PLANTED_EVERY - 1:
            row = self.data.test[index // PLANTED_EVERY % len(self.data.test)]
            return chat(row["question"], row["answer"], ref)
        chance = random.Random(index)
        places = [chance.randrange(len(self.sentences)) for _ in range(3)]
        chosen = [chance.choice(self.sentences[place]) for place in places]

        def other(found: re.Match[str]) -> str:
            return str(chance.randrange(1, 10 ** len(found[0])))

        answer = NUMBER.sub(other, self.data.train[places[0]]["answer"])
        return chat(NUMBER.sub(other, " ".join(chosen)), answer, ref)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--against", type=int, default=1_000, help="evaluation rows: test rows, then prompts of preferences"
    )
    arguments = parser.parse_args()
    data = Data.load(arguments.folder)
    tested = {row["question"] for row in data.test}
    pairs = [json.loads(line) for line in (arguments.folder / "preferences.jsonl").read_text("utf-8").splitlines()]
    more = [{"question": row["prompt"], "answer": row["chosen"]} for row in pairs if row["prompt"] not in tested]
    against = conversations((data.test + more)[: arguments.against], "test.jsonl")
    rows = Rows(data, arguments.rows)
    started = time.process_time()
    for start in range(0, min(20_000, len(rows)), 1_000):
        rows[start : start + 1_000]
    making = (time.process_time() - started) / min(20_000, len(rows))
    before = peak_mib()
    clock, cpu = time.perf_counter(), time.process_time()
    found = decontaminate(rows, against, DecontaminateSection())
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu - making * len(rows)
    planted = {row for row in range(len(rows)) if row % PLANTED_EVERY == PLANTED_EVERY - 1}
    wanted = [row for row in planted if row // PLANTED_EVERY % len(data.test) < arguments.against]
    hit = {match.row for match in found.matches if match.verdict != "variant"}
    print("# Decontamination: speed and memory\n")
    print(f"`python benchmarks/decontaminate.py FOLDER --rows {len(rows)} --against {len(against)}`; "
          f"{platform.machine()}, Python {platform.python_version()}, one thread; load average "
          f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")  # fmt: skip
    print(
        "| training rows | evaluation rows | CPU seconds, making the rows aside | rows per CPU second | seconds on the "
        "clock | added memory, MiB | pairs compared | planted | of them found | other rows flagged |"
    )
    print("|---:" * 10 + "|")
    print(f"| {len(rows):,} | {len(against):,} | {cpu:.0f} | {len(rows) / cpu:,.0f} | {clock:.0f} | "
          f"{peak_mib() - before:.0f} | {found.compared:,} | {len(wanted):,} | {len(hit & set(wanted)):,} | "
          f"{len(hit - planted):,} |")  # fmt: skip


if __name__ == "__main__":
    main()
