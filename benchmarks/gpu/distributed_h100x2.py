"""One box with several GPUs: is the trajectory right, how fast is it, how much memory has each process?

    python3 benchmarks/gpu/distributed_h100x2.py --budget 500            # on the box, after setup_box.sh
    python benchmarks/gpu/distributed_h100x2.py --dry-run                # here: two gloo processes, tiny sizes

1. Checks: fp32, 13 documents, 8 a step, 6 steps; DDP and FSDP2 on all GPUs against one: largest difference of a loss
   and of a trained weight.
2. Tokens/s (all processes together), ms a step, GiB of each process; the same tokens for each GPU.
3. TRL + accelerate on the same documents (its own packing), one GPU and all, where its packages are there.

Each setting is a torchrun of its own with a time limit; the table comes last, and what was run so far if time is up.
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

HERE = Path(__file__).resolve().parent


def settings(tiny: bool) -> list[tuple[str, int, list[str]]]:
    """(label, processes: 0 for all, flags) in order of worth."""
    if tiny:
        small = [
            "--device",
            "cpu",
            "--model",
            "tiny",
            "--tokens",
            "256",
            "--max-doc",
            "64",
            "--warmup",
            "1",
            "--steps",
            "2",
        ]
        return [
            ("lora, one", 1, [*small, "--method", "lora"]),
            ("lora, DDP", 0, [*small, "--method", "lora"]),
            ("full, FSDP2", 0, [*small, "--method", "full", "--strategy", "fsdp2", "--recompute", "layer"]),
        ]
    lora = ["--model", "llama8b", "--method", "lora", "--tokens", "8192"]
    full3 = ["--model", "llama3b", "--method", "full", "--tokens", "8192", "--recompute", "selective"]
    return [
        ("8B LoRA, one GPU", 1, lora),
        ("8B LoRA, DDP", 0, lora),
        ("8B LoRA, FSDP2", 0, [*lora, "--strategy", "fsdp2"]),
        ("3B full, one GPU", 1, full3),
        ("3B full, FSDP2", 0, [*full3, "--strategy", "fsdp2"]),
        ("8B full, FSDP2, recompute", 0, ["--model", "llama8b", "--method", "full", "--tokens", "8192", "--recompute",
                                          "layer", "--strategy", "fsdp2"]),
        ("3B full, FSDP2, layers kept gathered", 0, [*full3, "--strategy", "fsdp2", "--keep-gathered"]),
    ]  # fmt: skip


def torchrun(processes: int, words: list[str], *, seconds: float, environment: dict[str, str]) -> list[str]:
    """Run and return its lines; what outlives its time is ended with all its processes."""
    if seconds < 20:
        return [f"RESULT {json.dumps({'error': 'no time left'})}"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
        *words,
    ]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        out = child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            out = child.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out = child.communicate()[0]
        out += f"\nRESULT {json.dumps({'error': f'not done after {seconds:.0f} s'})}"
    return out.splitlines()


def result(lines: list[str]) -> dict[str, Any]:
    """The last RESULT of a run; its last lines where there is none."""
    found = [json.loads(line.split("RESULT ", 1)[1]) for line in lines if "RESULT {" in line]
    good = [one for one in found if "error" not in one]
    if found:
        return (good or found)[-1]
    return {"error": " | ".join(lines[-3:])[:400]}


def checks(run: Any, processes: int, tiny: bool, folder: Path, *more: str) -> list[str]:
    """Trajectories on all GPUs against one."""
    import torch

    words = [str(HERE / "distributed_rank.py"), "--check", str(folder), *more]
    words += ["--model", "tiny", "--layers", "4", "--max-doc", "64", "--device", "cpu"] if tiny else []
    words += [] if tiny else ["--model", "smol135m", "--layers", "6", "--max-doc", "512"]
    one, many = run("check, one", 1, words), run("check, all", processes, words)
    if "error" in one or "error" in many:
        return [f"checks NOT DONE: {one.get('error')} / {many.get('error')}"]
    lines = []
    for name, case in many["cases"].items():
        method, strategy = name.split()
        files = (folder / f"{method}-ddp-1.pt", folder / f"{method}-{strategy}-{processes}.pt")
        a, b = (torch.load(path) for path in files)
        loss = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
        weight = max(float((a["weights"][k].double() - b["weights"][k].double()).abs().max()) for k in a["weights"])
        lines.append(
            f"check {method:6} {strategy:5}: {many['processes']} processes, {case['wrapper']}, loss {loss:.1e}, weight "
            f"{weight:.1e} {'ok' if weight <= 5e-5 else 'TOO FAR (bound 5e-5)'}; {'; '.join(case['layers'])}"
        )
    return lines


def trl(run: Any, processes: int, tiny: bool, site: str | None) -> None:
    """bench_peers.py under torchrun; each process sees one GPU."""
    peers = [path for path in (Path(".gpu/pack/peers/bench_peers.py"), HERE / "bench_peers.py") if path.exists()]
    if not peers:
        run("TRL", 0, [])
        return
    flags = ["--peer", "trl", "--attn", "sdpa", "--device", "cpu", "--tiny", "--steps", "2", "--warmup", "1"]
    if not tiny:
        flags = ["--peer", "trl_liger_nockpt", "--model", "llama8b", "--seq", "1024", "--bs", "8", "--steps", "8"]
    packages = {"PYTHONPATH": f"{site}/trl:{site}/common:{site}/fa2"} if site and not tiny else {}
    if site and not tiny:
        flags += ["--tok", f"{site}/tok"]
    words = [str(HERE / "one_gpu_each.py"), str(peers[0]), *flags, "--method", "lora"]
    run("TRL + Liger 8B LoRA, one GPU", 1, words, packages)
    run("TRL + Liger 8B LoRA, DDP", processes, words, packages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="GPUs")
    parser.add_argument("--budget", type=float, default=500, help="seconds in all")
    parser.add_argument("--cap", type=float, default=90, help="seconds of one setting")
    parser.add_argument("--dry-run", action="store_true", help="gloo on the CPU, tiny sizes")
    parser.add_argument("--only", nargs="*", default=["check", "speed", "trl"], help="check, beside, speed, trl")
    parser.add_argument("--settings", nargs="*", help="words; settings whose label holds one of them are run")
    options = parser.parse_args()
    began, rows = time.time(), []
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp())
    base = {"LUTHIER_FORCE_CPU": "1", "OMP_NUM_THREADS": "1"} if options.dry_run else {"CUDA_VISIBLE_DEVICES": ",".join(
        map(str, range(options.processes)))}  # fmt: skip

    def run(label: str, processes: int, words: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
        left = options.budget - (time.time() - began)
        lines = torchrun(
            processes, words, seconds=min(options.cap, left), environment={**base, **(environment or {})}
        ) if words else ['RESULT {"error": "its package is not in the pack"}']  # fmt: skip
        found = {**result(lines), "label": label, "processes": processes}
        with (out / "distributed.log").open("a") as log:
            log.write(f"=== {label}\n" + "\n".join(lines) + "\n")
        with (out / "distributed.jsonl").open("a") as log:
            log.write(json.dumps(found) + "\n")
        print(f"[{time.time() - began:5.0f} s] {label}: {found.get('error', 'done')}", flush=True)
        rows.append(found)
        return found

    said = []
    with tempfile.TemporaryDirectory() as folder:
        if "check" in options.only:
            said = checks(run, options.processes, options.dry_run, Path(folder))
        if "beside" in options.only:
            said += checks(run, options.processes, options.dry_run, Path(folder), "--beside")
    if "speed" in options.only:
        for label, processes, flags in settings(options.dry_run):
            if options.settings and not any(word in label for word in options.settings):
                continue
            run(label, processes or options.processes, [str(HERE / "distributed_rank.py"), *flags])
    if "trl" in options.only:
        trl(run, options.processes, options.dry_run, os.environ.get("SITE"))
    print("\n".join(said))
    print(f"{'setting':40} {'proc':>4} {'tokens/s':>10} {'median':>10} {'ms/step':>8}  GiB of each process")
    for row in rows:
        if row["label"].startswith("check"):
            continue
        if "error" in row:
            print(f"{row['label']:40} {row['processes']:4}  {row['error'][:90]}")
            continue
        times = row["processes"] if "gib_by_rank" not in row else 1  # bench_peers counts its own process
        memory = row.get("gib_by_rank") or [row.get("mem_gb")]
        rate, median = times * row["tok_s"], times * row.get("tok_s_median", 0)
        head = f"{row['label']:40} {row['processes']:4}"
        print(f"{head} {rate:10,.0f} {median:10,.0f} {row.get('ms_step_median', 0):8,.1f}  {memory}")


if __name__ == "__main__":
    main()
