"""Speed and memory of exact and fuzzy deduplication on synthetic short rows.

python benchmarks/dedup.py --rows 1000000 [--out benchmarks/results/dedup.jsonl]

A row is a chat of about 40 made-up words. One in twenty is a copy of an earlier row in other case, one in ten an
earlier row with one word replaced. Each stage runs in a process of its own; memory is the peak of the process less
what it held when the rows were read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COPIES, NEAR = 0.05, 0.1
STAGES = {"exact": {"fuzzy": None}, "exact and fuzzy 0.8": {"fuzzy": 0.8}}


def make_rows(n: int, *, seed: int = 0) -> list[Any]:
    """Chats of a question of 25 words and an answer of 15, from 20,000 made-up words."""
    from luthier.data.types import Conversation, RowRef

    chance = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(20_000)]

    def chat(index: int, question: str, answer: str) -> Conversation:
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        ref = RowRef("rows.jsonl", index + 1)
        return Conversation(kind="chat", ref=ref, messages=messages, message_weights=(None, None))

    rows: list[Conversation] = []
    for index in range(n):
        draw = chance.random() if rows else 1.0
        if draw < COPIES + NEAR:
            old = rows[chance.randrange(len(rows))].messages
            question, answer = old[0]["content"], old[1]["content"]
            if draw < COPIES:
                question = question.upper()
            else:
                parts = question.split()
                parts[chance.randrange(len(parts))] = chance.choice(words)
                question = " ".join(parts)
        else:
            question, answer = " ".join(chance.choices(words, k=25)), " ".join(chance.choices(words, k=15))
        rows.append(chat(index, question, answer))
    return rows


def measure(n: int, stage: str) -> dict[str, Any]:
    """One stage in this process."""
    from luthier.curate.dedup.run import deduplicate
    from luthier.recipe.schema import DedupSection
    from luthier.runtime.console import set_quiet

    set_quiet(True)
    rows = make_rows(n)
    deduplicate(rows[:1000], DedupSection(**STAGES[stage]))  # imports and code are no part of the measure
    held = _resident()
    started, cpu = time.perf_counter(), time.process_time()
    found = deduplicate(rows, DedupSection(**STAGES[stage]))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "stage": stage,
        "rows": n,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "rows_per_second": round(n / seconds),
        "rows_in_memory_mib": round(held / 2**20),
        "added_peak_mib": round((peak - held) / 2**20),
        "added_bytes_a_row": round((peak - held) / n),
        "dropped": found.counts(),
        "pairs_compared": found.stages.get("fuzzy", {}).get("pairs_compared"),
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="JSON Lines to append to")
    parser.add_argument("--stage", choices=list(STAGES), help="measure this one in this process")
    options = parser.parse_args(arguments)
    if options.stage:
        print(json.dumps(measure(options.rows, options.stage)))
        return
    for stage in STAGES:
        command = [sys.executable, __file__, "--rows", str(options.rows), "--stage", stage]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        load = [round(value, 1) for value in os.getloadavg()]
        result |= {"cores": os.cpu_count(), "load_average": load, "python": platform.python_version()}
        print(json.dumps(result), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
