"""A tiny run that several launchers start, and how their results are compared."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from tests.support.tiny import conversations, save_tiny

ROOT = Path(__file__).parents[2]


def write_recipe(folder: Path, *, run: Path | None = None, more: str = "") -> Path:
    """13 rows, 4 sequences a step whatever the number of processes, fp32."""
    if not (folder / "tiny").is_dir():
        save_tiny(folder / "tiny")
        rows = "".join(json.dumps(row) + "\n" for row in conversations(13))
        (folder / "rows.jsonl").write_text(rows)
    file = folder / "recipe.yaml"
    file.write_text(
        f"""
model: {{name_or_path: {folder}/tiny, dtype: float32}}
data: {{train: [{{path: {folder}/rows.jsonl}}], max_length: 128}}
method: {{name: full}}
train: {{learning_rate: 1.0e-3, num_train_epochs: 3, per_device_train_batch_size: 1, gradient_accumulation_steps: 2}}
export: {{merge: false}}
output_dir: {run or folder / "run"}
{more}"""
    )
    return file


def environment(**more: str) -> dict[str, str]:
    """Of a process with Luthier from this tree, on CPUs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SKYPILOT_", "PET_"))}
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1", **more}


def start(*words: str, cwd: Path = ROOT, **more: str) -> subprocess.Popen:
    """A command with its output as text."""
    return subprocess.Popen(
        list(words), cwd=cwd, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen, seconds: float = 200) -> str:
    """What it wrote to stderr; it ended well."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"{out}\n{err}"
    return err


def launched(recipe: Path, processes: int) -> tuple[dict, str]:
    """(result, what was printed) of `luthier launch --json`."""
    words = ["-m", "luthier", "launch", str(recipe), "--num-processes", str(processes), "--json"]
    process = start(sys.executable, *words)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out[out.index("{\n") :]), err  # other libraries print there, too


def one_process(recipe: Path, run: Path) -> None:
    """The run that several processes are compared with: the same sequences in a step."""
    ended(start(
        sys.executable, "-m", "luthier", "train", str(recipe), f"output_dir={run}",
        "train.gradient_accumulation_steps=4", "distributed.strategy=ddp",
    ))  # fmt: skip


def largest_difference(one: Path, other: Path) -> float:
    """Of any weight of two results."""
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys() and a
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def largest_change(base: Path, run: Path) -> float:
    """How far training moved a weight: a comparison of untrained models proves nothing."""
    a, b = load_file(base / "model.safetensors"), load_file(run / "final" / "model.safetensors")
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in b if name in a)


def stage(run: Path, name: str) -> dict:
    """Result of a finished stage."""
    from luthier.runs.folder import RunFolder

    record = RunFolder(run).stage(name)
    assert record is not None, f"{run} has not finished {name}"
    return record.result


def free_port() -> int:
    """Of this machine, now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until(true: Callable[[], object], seconds: float = 120, what: str = "it") -> None:
    """Look every tenth of a second."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(0.1)


def kill_group(process: subprocess.Popen) -> None:
    """A test's own process and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
