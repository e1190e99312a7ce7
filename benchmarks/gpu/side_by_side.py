"""Many settings of distributed_rank.py on one box: as many at once as its GPUs allow, each on GPUs of its own.

    python3 benchmarks/gpu/side_by_side.py benchmarks/gpu/lists/fsdp2_parts.txt --gpus 8 --budget 540     # on the box
    python benchmarks/gpu/side_by_side.py LIST --gpus 2 --dry-run                                          # here

A line of LIST: `GPUs | label | flags of distributed_rank.py`, or `GPUs | label | ! command` for anything else that
prints `RESULT {json}` (`{gpus}` stands for their number, `$NAME` for a variable). `#` begins a comment. Settings start
in the order of the list; one that finds too few free GPUs waits, and later, smaller ones may pass it. `cap=SECONDS`
before the flags limits one setting. Settings that run at the same time share the host and its switch, not their GPUs.

Results go to $OUT/side_by_side.jsonl as they come, what was printed to $OUT/side_by_side.log.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TINY = ["--device", "cpu", "--model", "tiny", "--tokens", "256", "--max-doc", "64", "--warmup", "1", "--steps", "2"]


@dataclass(slots=True)
class Setting:
    """One line of the list, and its process while it runs."""

    gpus: int
    label: str
    words: list[str]
    cap: float
    child: Any = None
    devices: list[int] = field(default_factory=list)
    began: float = 0.0
    output: Any = None


def read_list(path: Path, *, cap: float, dry: bool) -> list[Setting]:
    """The settings of a file."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        gpus, label, rest = (part.strip() for part in line.split("|", 2))
        limit = cap
        if rest.startswith("cap="):
            first, _, rest = rest.partition(" ")
            limit = float(first.removeprefix("cap="))
        if rest.startswith("!"):
            words = shlex.split(os.path.expandvars(rest[1:].replace("{gpus}", gpus)))
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", gpus]
            flags = [*shlex.split(rest), *(TINY if dry else [])]
            words = [*launch, str(HERE / "distributed_rank.py"), *flags, "--label", label]
        found.append(Setting(gpus=int(gpus), label=label, words=words, cap=limit))
    return found


def start(setting: Setting, devices: list[int], *, dry: bool) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1" if dry else "8"}
    environment |= {"LUTHIER_FORCE_CPU": "1"} if dry else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
    setting.output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    setting.devices, setting.began = devices, time.time()
    setting.child = subprocess.Popen(
        setting.words, stdout=setting.output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )


def finish(setting: Setting, *, late: bool) -> dict[str, Any]:
    """End what is left of it; its result and what it printed."""
    if late:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(setting.child.pid, kind)
                setting.child.wait(timeout=8)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
    setting.output.seek(0)
    lines = setting.output.read().splitlines()
    # Processes may write into one line: what follows the first object is another's.
    decoder = json.JSONDecoder()
    found = [decoder.raw_decode(line.split("RESULT ", 1)[1])[0] for line in lines if "RESULT {" in line]
    good = [one for one in found if "error" not in one]
    result = (good or found)[-1] if found else {"error": " | ".join(lines[-3:])[:400]}
    if late and not good:
        result = {"error": f"not done after {setting.cap:.0f} s"}
    out = Path(os.environ.get("OUT") or tempfile.gettempdir())
    with (out / "side_by_side.log").open("a", encoding="utf-8") as log:
        log.write(f"=== {setting.label}\n" + "\n".join(lines[-400:]) + "\n")
    row = {**result, "label": setting.label, "gpus": setting.gpus, "seconds": round(time.time() - setting.began, 1)}
    with (out / "side_by_side.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    return row


def run_all(waiting: list[Setting], *, gpus: int, budget: float, dry: bool) -> list[dict[str, Any]]:
    """Every setting that time allows."""
    began, free, running, rows = time.time(), list(range(gpus)), [], []
    while waiting or running:
        spent = time.time() - began
        for setting in list(waiting):
            if len(free) >= setting.gpus and spent < budget - 25:
                devices, free = free[: setting.gpus], free[setting.gpus :]
                start(setting, devices, dry=dry)
                waiting.remove(setting)
                running.append(setting)
        for setting in list(running):
            late = time.time() - setting.began > setting.cap or spent > budget
            if setting.child.poll() is None and not late:
                continue
            row = finish(setting, late=late)
            rows.append(row)
            running.remove(setting)
            free = sorted([*free, *setting.devices])
            said = row.get("error") or f"{row.get('tok_s', 0):,.0f} tokens/s, GiB {row.get('gib_by_rank')}"
            print(f"[{time.time() - began:5.0f} s] {setting.label} on {setting.devices}: {str(said)[:300]}", flush=True)
        if spent > budget:
            rows += [{"label": one.label, "gpus": one.gpus, "error": "no time left"} for one in waiting]
            waiting = []
        time.sleep(0.5)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--cap", type=float, default=150, help="seconds of one setting")
    parser.add_argument("--only", nargs="*", help="words; settings whose label holds one of them")
    parser.add_argument("--dry-run", action="store_true", help="gloo on the CPU, tiny sizes")
    options = parser.parse_args()
    settings = read_list(options.list, cap=options.cap, dry=options.dry_run)
    if options.only:
        settings = [one for one in settings if any(word in one.label for word in options.only)]
    rows = run_all(settings, gpus=options.gpus, budget=options.budget, dry=options.dry_run)
    print(f"\n{'setting':48} {'GPUs':>4} {'tokens/s':>10} {'ms/step':>8} {'GiB':>6}")
    for row in rows:
        if "error" in row:
            print(f"{row['label']:48} {row['gpus']:4}  {str(row['error'])[:110]}")
            continue
        memory = max(row.get("gib_by_rank") or [0.0])
        rate, step = row.get("tok_s_median", 0), row.get("ms_step_median", 0)
        print(f"{row['label']:48} {row['gpus']:4} {rate:10,.0f} {step:8,.1f} {memory:6.1f}")


if __name__ == "__main__":
    main()
