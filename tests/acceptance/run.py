"""`make acceptance`: the checks of the reliability catalogue that need no server, through the real command line.

    python tests/acceptance/run.py [--only 1,2,27] [--json] [--fork] [--tree FOLDER] [--keep]

One line a check: correct | refused with a reason | silently wrong, with the numbers beside their
tolerances; then the three counts. Exit 1 if anything is silently wrong or failed. `--fork` takes
commands from processes with the libraries loaded (minutes instead of a quarter of an hour); `--tree`
tests the `luthier` of another folder, for instance a copy with a planted bug.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # where DeepSpeed is installed it says on stdout what it finds
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.acceptance import hostile, saving, tokens, training
from tests.acceptance.lab import CHECKS, ROOT, Check, Lab, perform

WORKERS = 2
WORDS = ("correct", "refused with a reason", "silently wrong")


def main() -> int:
    """Run the checks and report; the exit code."""
    parser = argparse.ArgumentParser(description="Acceptance checks of Luthier.")
    parser.add_argument("--only", default="", help="numbers of checks, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--fork", action="store_true", help="fork commands from a process with the libraries loaded")
    parser.add_argument("--tree", type=Path, default=ROOT, help="folder that holds the `luthier` to test")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all runs")
    options = parser.parse_args()
    wanted = set(options.only.split(",")) if options.only else None
    checks = sorted(
        (entry for entry in CHECKS if wanted is None or entry[0] in wanted), key=lambda entry: int(entry[0])
    )
    started = time.monotonic()
    lab = Lab(Path(tempfile.mkdtemp(prefix="luthier-acceptance-")), fork=options.fork, tree=options.tree.resolve())
    try:
        lab.prepare()
        found = _all(lab, checks, say=not options.json)
    finally:
        lab.close()
        if options.keep:
            sys.stderr.write(f"runs: {lab.folder}\n")
        else:
            shutil.rmtree(lab.folder, ignore_errors=True)
    counts = {word: sum(check.verdict == word for check in found) for word in (*WORDS, "failed")}
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps({
            "ok": not (counts["silently wrong"] or counts["failed"]), "counts": counts, "seconds": round(seconds, 1),
            "commands": lab.commands,
            "checks": [
                {"number": item.number, "title": item.title, "verdict": item.verdict, "seconds": round(item.seconds, 1),
                 "measures": [{"text": measure.text, "ok": measure.ok} for measure in item.measures]}
                for item in found
            ],
        }, indent=2))  # fmt: skip
    else:
        print("\n" + ", ".join(f"{count} {word}" for word, count in counts.items() if count or word in WORDS))
        print(f"{len(found)} checks, {lab.commands} commands, {seconds:.0f} s")
    return int(bool(counts["silently wrong"] or counts["failed"]))


def _all(lab: Lab, checks: list[Any], *, say: bool) -> list[Check]:
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(perform, lab, *entry) for entry in checks]
        found = []
        for future in futures:
            found.append(future.result())
            if say:
                print(found[-1].line(), flush=True)
    return found


__all__ = ["hostile", "main", "saving", "tokens", "training"]

if __name__ == "__main__":
    sys.exit(main())
