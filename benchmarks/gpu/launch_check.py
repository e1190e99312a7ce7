"""`luthier launch` itself on the GPUs of one box: both strategies, resume on another number, a killed process.

    python3 benchmarks/gpu/launch_check.py --gpus 8            # on the box, after setup_box.sh (tokenizer, GSM8K rows)
    python benchmarks/gpu/launch_check.py --gpus 2 --dry-run --tokenizer FOLDER --rows FILE     # here, on the CPU

A model of a few layers with random weights is saved once; each case is a run folder of its own. One line a case, and
`RESULT {json}` at the end. Exit codes prove nothing: the number of processes and the strategy are read from the run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])


def save_model(folder: Path, tokenizer: str, *, tiny: bool) -> None:
    from transformers import AutoTokenizer

    from benchmarks.gpu.models import random_model, shape

    kind, settings = shape("tiny" if tiny else "smol135m")
    model = random_model(kind, settings, device="cpu", dtype="float32" if tiny else "bfloat16")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def recipe(options: argparse.Namespace, folder: Path, name: str, method: str, strategy: str, steps: int) -> Path:
    """A recipe over GSM8K's rows, the same tokens a step on any number of processes."""
    every = 4 if steps <= 24 else steps // 2  # a checkpoint of 1B takes as long as 20 steps
    lines = [
        f"model: {{name_or_path: {folder / 'model'}}}",
        f"data: {{train: [{{path: {folder / 'rows.jsonl'}}}], validation: {{fraction: 0.04}}, max_length: 512}}",
        f"method: {{name: {method}}}",
        f"train: {{max_steps: {steps}, tokens_per_step: {options.step}, eval_steps: {every},",
        f"        save_steps: {every}, learning_rate: 1.0e-3}}",
        f"distributed: {{strategy: {strategy}}}",
        "export: {merge: false}",
        f"output_dir: {folder / name}",
    ]
    file = folder / f"{name}.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def conversation(row: dict[str, str]) -> dict[str, Any]:
    """A row of GSM8K as messages."""
    asked, said = {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
    return {"messages": [asked, said]}


def launch(options: argparse.Namespace, file: Path, number: int, **settings: Any) -> subprocess.Popen[str]:
    count = ["--num-processes" if options.dry_run else "--num-gpus", str(number)]
    command = [sys.executable, "-m", "luthier", "launch", str(file), *count, "--train-only"]
    command += [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})


def lines_of(run: Path) -> list[str]:
    """Steps that are on record so far."""
    file = run / "metrics.jsonl"
    return [line for line in file.read_text().splitlines() if '"loss"' in line] if file.exists() else []


def facts(run: Path) -> dict[str, Any]:
    """What the run says of itself."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    beats = sorted((run / "processes").glob("rank-*.json"))
    losses = [line["loss"] for line in metrics if "loss" in line]
    evals = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return {"steps": len(losses), "losses": losses, "eval_losses": evals, "ranks": len(beats)}


def case(
    options: argparse.Namespace, folder: Path, name: str, method: str, strategy: str, number: int
) -> dict[str, Any]:
    began = time.time()
    child = launch(options, recipe(options, folder, name, method, strategy, 8), number)
    said = child.communicate(timeout=options.cap)[0]
    if child.returncode:
        return {"error": said[-600:], "code": child.returncode}
    return {**facts(folder / name), "seconds": round(time.time() - began, 1)}


def resumed(options: argparse.Namespace, folder: Path, name: str, method: str, strategy: str) -> dict[str, Any]:
    """Ctrl-C after the first steps on all processes, the rest on half of them."""
    steps = 24 if options.dry_run else 60
    file, run = recipe(options, folder, name, method, strategy, steps), folder / name
    child, end = launch(options, file, options.gpus), time.time() + options.cap
    while time.time() < end and child.poll() is None and len(lines_of(run)) < 4:
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=options.cap)[0]
    if child.returncode != 130:
        return {"error": f"exit code {child.returncode}, not 130: {said[-400:]}"}
    stopped = len(lines_of(run))
    child = launch(options, file, max(1, options.gpus // 2))
    said = child.communicate(timeout=options.cap)[0]
    if child.returncode:
        return {"error": said[-600:], "code": child.returncode}
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    done = facts(run)
    return {
        "stopped_after": stopped, "other_number": "resumed_on_other_processes" in events, "steps": done["steps"],
        "losses": done["losses"][-4:], "eval_losses": done["eval_losses"][-2:],
    }  # fmt: skip


def killed(options: argparse.Namespace, folder: Path, method: str, strategy: str) -> dict[str, Any]:
    """SIGKILL to the last process once training runs: how soon the launcher ends, and what it says last."""
    name = "killed"
    child = launch(options, recipe(options, folder, name, method, strategy, 4000), options.gpus)
    beat = folder / name / "processes" / f"rank-{options.gpus - 1}.json"
    metrics, end = folder / name / "metrics.jsonl", time.time() + options.cap
    while time.time() < end and child.poll() is None and not (beat.exists() and metrics.exists()):
        time.sleep(0.5)
    if not metrics.exists():
        child.kill()
        return {"error": "training did not begin: " + str(child.communicate()[0])[-400:]}
    os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL)
    began = time.time()
    said = child.communicate(timeout=options.cap)[0]
    error = next((line.strip() for line in said.splitlines() if "error[" in line), said[-300:])
    return {"seconds_to_the_end": round(time.time() - began, 1), "says": error[:300], "code": child.returncode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--tokenizer", default=f"{os.environ.get('SITE')}/tok")
    parser.add_argument("--rows", type=Path, default=Path(f"{os.environ.get('SITE')}/data/train.jsonl"))
    parser.add_argument("--cap", type=float, default=120, help="seconds of one run")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="*", default=[""], help="words of the cases to run")
    options = parser.parse_args()
    options.step = 2048 if options.dry_run else 16384
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()[:400]]
        (folder / "rows.jsonl").write_text("".join(json.dumps(conversation(row)) + "\n" for row in rows))
        save_model(folder / "model", options.tokenizer, tiny=options.dry_run)
        actions = {
            "lora, ddp": lambda: case(options, folder, "a", "lora", "ddp", options.gpus),
            "full, fsdp2, then half as many": lambda: resumed(options, folder, "b", "full", "fsdp2"),
            "a killed process, fsdp2": lambda: killed(options, folder, "full", "fsdp2"),
        }
        for label, action in actions.items():
            if not any(word in label for word in options.only):
                continue
            try:
                found[label] = action()
            except Exception as error:  # noqa: BLE001  the next case can still be run
                found[label] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            print(label, json.dumps(found[label]), flush=True)
    print("RESULT " + json.dumps({"cases": found}))


if __name__ == "__main__":
    main()
