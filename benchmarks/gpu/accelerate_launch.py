"""Every way to start two processes on one tiny recipe: processes, wrapper, strategy, losses, weights against one GPU.

    python benchmarks/gpu/accelerate_launch.py                 # a box with two GPUs
    python benchmarks/gpu/accelerate_launch.py --dry-run       # two gloo processes of a CPU
    python benchmarks/gpu/accelerate_launch.py --only fsdp2    # ways whose name has this word, beside the reference

Model, tokenizer and rows are made from seeds; no network. Exit code 1 if a way fails, starts another number of
processes, has another wrapper, or ends more than 5e-4 from one process (fp32; 5e-5 on CPUs).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "luthier", "train")
DDP, SHARDS = "DistributedDataParallel", "Passes"
RECIPE = """\
model: {{name_or_path: {folder}/tiny, dtype: float32}}
data: {{train: [{{path: {folder}/rows.jsonl}}], max_length: 128}}
method: {{name: full}}
train: {{learning_rate: 1.0e-3, num_train_epochs: 3, per_device_train_batch_size: 1, gradient_accumulation_steps: 2}}
export: {{merge: false}}
output_dir: {folder}/run
"""
HEAD = "compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 2\nmixed_precision: 'no'\nuse_cpu: false\n"
FILES = {
    "fsdp2.yaml": HEAD + "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n"
    "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_cpu_ram_efficient_loading: true\n"
    "  fsdp_state_dict_type: SHARDED_STATE_DICT\n",
    "fsdp1.yaml": HEAD + "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: SHARD_GRAD_OP\n"
    "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_state_dict_type: FULL_STATE_DICT\n",
    "copies.yaml": HEAD + "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: NO_SHARD\n",
}  # fmt: skip


def ways(folder: Path, *, dry: bool) -> list[tuple[str, str, list[str]]]:
    """(name, wrapper, arguments of python without the output folder)."""
    recipe = str(folder / "recipe.yaml")
    train = ("-m", "luthier", "train", recipe)
    file = {name: str(folder / name) for name in FILES}
    number = ["--num-processes", "2"] if dry else []
    return [
        ("accelerate --multi_gpu, ddp", DDP,
         [*ACCELERATE, "--multi_gpu", "--num_processes", "2", *train, "distributed.strategy=ddp"]),
        ("accelerate --multi_gpu, fsdp2", SHARDS,
         [*ACCELERATE, "--multi_gpu", "--num_processes", "2", *train, "distributed.strategy=fsdp2"]),
        ("accelerate fsdp2.yaml", SHARDS, [*ACCELERATE, "--config_file", file["fsdp2.yaml"], *train]),
        ("accelerate fsdp1.yaml", SHARDS, [*ACCELERATE, "--config_file", file["fsdp1.yaml"], *train]),
        ("accelerate copies.yaml", DDP, [*ACCELERATE, "--config_file", file["copies.yaml"], *train]),
        ("luthier launch --accelerate-config fsdp2.yaml", SHARDS,
         ["-m", "luthier", "launch", recipe, "--train-only", "--accelerate-config", file["fsdp2.yaml"], *number]),
        ("torchrun, fsdp2", SHARDS, [*TORCHRUN, recipe, "distributed.strategy=fsdp2"]),
    ]  # fmt: skip


def prepare(folder: Path) -> None:
    """Model, rows, recipe and files."""
    from tests.support.tiny import conversations, save_tiny

    save_tiny(folder / "tiny")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(13)))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    for name, text in FILES.items():
        (folder / name).write_text(text)


def run(folder: Path, name: str, words: Sequence[str], *, dry: bool, seconds: float) -> dict[str, Any]:
    """What one way came to."""
    out = folder / "".join(letter if letter.isalnum() else "_" for letter in name)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "LUTHIER_CACHE": str(folder / "cache")}
    environment |= {"OMP_NUM_THREADS": "1", "LUTHIER_FORCE_CPU": "1"} if dry else {}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *words, f"output_dir={out}"], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {"failed": f"no end after {seconds:.0f} s: {_end(error.stderr)}"}
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}: {_end(done.stderr)}"}
    result = json.loads((out / "stages/train.json").read_text())["result"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "out": out, "seconds": time.monotonic() - began, "processes": result["processes"], "wrapper": result["wrapper"],
        "losses": [line["loss"] for line in lines if "loss" in line], "taken": manifest["configured"]["taken"],
    }  # fmt: skip


def _end(text: str | bytes | None) -> str:
    return (text.decode(errors="replace") if isinstance(text, bytes) else text or "")[-2500:]


def _weights(out: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(out / "final/model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def main() -> int:
    """Run all; 0 if every way is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=180.0, help="limit of a way")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        one = ["-m", "luthier", "train", str(folder / "recipe.yaml"), "train.gradient_accumulation_steps=4"]
        reference = run(folder, "one process", one, dry=options.dry_run, seconds=options.seconds)
        print("one process:", reference.get("failed") or [round(loss, 4) for loss in reference["losses"]], flush=True)
        if "failed" in reference:
            return 1
        bound = 5e-5 if options.dry_run else 5e-4
        for way, wrapper, words in ways(folder, dry=options.dry_run):
            if options.only not in way:
                continue
            found = run(folder, way, words, dry=options.dry_run, seconds=options.seconds)
            if "failed" in found:
                print(f"WRONG  {way}: {found['failed']}", flush=True)
                wrong += 1
                continue
            apart = float((_weights(found["out"]) - _weights(reference["out"])).abs().max())
            right = (found["processes"], found["wrapper"]) == (2, wrapper) and apart <= bound
            wrong += not right
            taken = ", ".join(f"{one['key']}={one['value']}" for one in found["taken"]) or "nothing"
            print(
                f"{'ok   ' if right else 'WRONG'}  {way}: {found['processes']} processes, {found['wrapper']}, "
                f"losses {[round(loss, 4) for loss in found['losses']]}, largest difference of a weight {apart:.1e}, "
                f"taken: {taken}, {found['seconds']:.0f} s", flush=True,
            )  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
