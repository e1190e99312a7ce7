"""Kill the processes of launches at random moments, go on, and hold the results against undisturbed runs.

    python -m tests.launch.faults --folder F --chains 8 --seed 0            # random chains over all strategies
    python -m tests.launch.faults --folder F --strategy fsdp2 --processes 3

A chain is a run that meets up to `--faults` faults, one after the other, each followed by the same command, and is then
let go to its end. Each fault is one JSON line in F/tally-SEED.jsonl: what was done, when, and everything that did not
hold. A fault that finds the run at its end already counts as missed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.launch.fault_harness import (
    HANG_SECONDS,
    MOMENTS,
    WHOLE,
    Faulty,
    Launched,
    differences,
    jitter,
    leftovers,
    reached,
    whole_or_absent,
    write_files,
)
from tests.launch.forked import warm_up

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
KILLS = ("a worker", "process 0", "all workers", "the launcher")
STOPS = ("SIGTERM to all", "SIGINT to the launcher", "SIGTERM to the launcher")
FAULTS = (*KILLS, *KILLS, *STOPS, "SIGSTOP")
GONE_SECONDS = 60.0
PATIENCE = 900.0


def do(fault: str, launched: Launched, chooser: random.Random) -> list[int]:
    """Do it; returns the ranks it was done to."""
    workers, launcher = launched.workers(), launched.process.pid
    ranks = sorted(workers)
    if fault == "a worker":
        ranks = [chooser.choice([rank for rank in ranks if rank] or ranks)] if ranks else []
    elif fault == "process 0":
        ranks = ranks[:1]
    elif fault == "SIGSTOP":
        ranks = [chooser.choice(ranks)] if ranks else []
    elif fault not in ("all workers", "SIGTERM to all"):
        ranks = []
    number = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGSTOP": signal.SIGSTOP}.get(fault.split()[0])
    targets = [workers[rank] for rank in ranks]
    targets += [launcher] if "launcher" in fault or fault.endswith("to all") else []
    for pid in targets:
        try:
            os.kill(pid, number or signal.SIGKILL)
        except ProcessLookupError:
            continue
    return ranks


def judge(fault: str, ranks: Sequence[int], code: int, said: str) -> list[str]:
    """What is wrong with an exit code and a last message."""
    found = []
    last = said[said.rindex("error[") :] if "error[" in said else ""
    expected = {"the launcher": -9, **dict.fromkeys(STOPS, 130)}.get(fault, 1)
    if code == 0:
        return []  # it had ended
    if code != expected:
        found.append(f"exit code {code} instead of {expected}")
    if "Traceback" in said:
        found.append("a traceback: " + said[said.rindex("Traceback") :].strip().splitlines()[-1][:160])
    if fault == "SIGSTOP":
        if not re.search(
            rf"error\[L142\].*process {ranks[0]} .*(has not answered|has been in|has not begun)", last, re.DOTALL
        ):
            found.append(f"the hang is not told: {last[:300]!r}")
    elif fault in KILLS and fault != "the launcher":
        named = re.search(r"process (\d+) \(pid \d+\) was ended by SIGKILL", last)
        if named is None or int(named[1]) not in ranks:
            found.append(f"the kill is not told: {last[:300]!r}")
    elif fault in STOPS and not re.search(r"stopped (after step|by SIG)|interrupted", last or said[-400:]):
        found.append(f"the stop is not told: {last[:300]!r}")
    return found


def one_fault(faulty: Faulty, fault: str, moment: str, chooser: random.Random) -> dict:
    """Start the run, wait for the moment, do the fault, look at what is left."""
    there = reached(faulty, moment, chooser)
    wait = chooser.uniform(0, jitter(moment))
    began = time.monotonic()
    launched = faulty.start()
    record: dict = {"strategy": faulty.strategy, "processes": faulty.processes, "fault": fault, "moment": moment}
    try:
        while not (there() and (fault == "the launcher" or fault in STOPS or launched.workers())):
            if launched.over or time.monotonic() - began > PATIENCE:
                wrong = [] if launched.over and launched.process.returncode == 0 else [launched.text()[-500:]]
                return {**record, "missed": True, "wrong": wrong}
            time.sleep(0.001)
        time.sleep(wait)
        beats = [json.loads(file.read_text()) for file in faulty.run.glob("processes/rank-*.json")]
        ranks = do(fault, launched, chooser)
        seconds = launched.gone_within(GONE_SECONDS + (60 + 2 * HANG_SECONDS if fault == "SIGSTOP" else 0))
        wrong = [] if seconds is not None else ["processes are left"]
        wrong += judge(fault, ranks, launched.process.returncode, launched.text())
    finally:
        launched.clear()
    wrong += [f"checkpoint: {problem}" for problem in whole_or_absent(faulty.run)]
    return {
        **record, "ranks": ranks, "code": launched.process.returncode, "gone": seconds and round(seconds, 1),
        "doing": [f"{beat['operation']} {beat['step']}" for beat in beats], "left": leftovers(faulty.run),
        "wrong": wrong, "log": launched.said.name, "missed": launched.process.returncode == 0,
    }  # fmt: skip


def finish(faulty: Faulty, reference: Path, *, exact: bool) -> dict:
    """Let the run go to its end and compare it."""
    launched = faulty.start()
    try:
        launched.process.wait(PATIENCE)
        code, rest = launched.process.returncode, launched.gone_within(10)
    finally:
        launched.clear()
    wrong = [] if code == 0 else [f"exit code {code}: {launched.text()[-600:]}"]
    wrong += [] if rest is not None else ["processes are left at the end"]
    if code == 0:
        wrong += differences(faulty.run, reference, exact=exact)
        wrong += [f"left over: {name}" for name in leftovers(faulty.run)]
        wrong += whole_or_absent(faulty.run)
    fault = "none" if exact else f"resumed on {faulty.processes}"
    return {"strategy": faulty.strategy, "processes": faulty.processes, "fault": fault, "moment": "end", "wrong": wrong,
            "log": launched.said.name, "missed": False}  # fmt: skip


def reference_of(faulty: Faulty) -> Path:
    """An undisturbed run of the same kind."""
    kind = f"{faulty.strategy}-{faulty.processes}-{faulty.method}-{'whole' if faulty.whole else 'train'}"
    undisturbed = replace(faulty, run=faulty.files / f"reference-{kind}")
    with (faulty.files / f"{kind}.lock").open("w") as lock:  # campaigns share a folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        last = "report.html" if faulty.whole else "stages/train.json"
        if not (undisturbed.run / last).is_file():
            launched = undisturbed.start()
            assert launched.process.wait(PATIENCE) == 0, launched.text()
    return undisturbed.run


def chain(faulty: Faulty, *, faults: int, chooser: random.Random, other: bool, say) -> None:
    """One run through several faults to its end."""
    reference = reference_of(faulty)
    for _ in range(faults):
        moment = chooser.choice(MOMENTS + (WHOLE if faulty.whole else ()))
        record = one_fault(faulty, chooser.choice(FAULTS), moment, chooser)
        say(record)
        if record["missed"]:
            break
    if other:
        faulty = replace(faulty, processes=5 - faulty.processes)
    say(finish(faulty, reference, exact=not other))


def main() -> int:
    """The command line; 1 if anything did not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--faults", type=int, default=4, help="of a chain")
    parser.add_argument("--strategy", choices=STRATEGIES)
    parser.add_argument("--processes", type=int, choices=(2, 3))
    parser.add_argument("--forked", action="store_true", help="all are forks of this process: no imports")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not (asked.folder / "held.jsonl").is_file():
        write_files(asked.folder)
    if asked.forked:
        warm_up()
    tally, bad = asked.folder / f"tally-{asked.seed}.jsonl", 0

    def say(record: dict) -> None:
        nonlocal bad
        bad += bool(record["wrong"])
        with tally.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    for number in range(asked.chains):
        chooser = random.Random(f"{asked.seed}/{number}")
        strategy = asked.strategy or STRATEGIES[(asked.seed + number) % len(STRATEGIES)]
        whole = chooser.random() < 0.25
        processes = asked.processes or (2 if whole else chooser.choice((2, 2, 3)))
        faulty = Faulty(
            files=asked.folder, run=asked.folder / f"run-{asked.seed}-{number}", strategy=strategy,
            processes=processes, whole=whole, method="lora" if whole or strategy in ("ddp", "zero2") else "full",
            forked=asked.forked,
        )  # fmt: skip
        chain(faulty, faults=asked.faults, chooser=chooser, other=chooser.random() < 0.25, say=say)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
