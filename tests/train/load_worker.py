"""One of two processes: `python -m torch.distributed.run --nproc_per_node 2 -m tests.train.load_worker BASES OUT`.

Loads every model of BASES by rows and whole, writes results, and says what each came to. Models are made by the test.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from luthier.model.adapters import apply_method
from luthier.model.hollow import values_of
from luthier.model.load import load_base, load_model_folder
from luthier.model.save import save_model_files
from luthier.recipe.schema import MethodSection, ModelSection
from luthier.runtime.console import set_quiet
from luthier.runtime.device import pick_device
from luthier.runtime.errors import LuthierError
from luthier.train.distributed.fsdp import shard
from luthier.train.distributed.gathered import write_gathered
from luthier.train.distributed.local import whole
from luthier.train.distributed.shards import load_whole
from luthier.train.processes import make_accelerator
from tests.support.tiny import tiny_model
from tests.train.support import FULL, data, resolved, train
from tests.train.worker import thirteen, unequal

CPU = torch.device("cpu")


def memory() -> dict[str, int]:
    """Bytes of this process: at its highest, and now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak": int(fields["VmHWM"].split()[0]) << 10, "now": int(fields["VmRSS"].split()[0]) << 10}


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def equal_to_loaded(folder: Path, *, method: str, dtype: str, to_host: bool) -> dict[str, Any]:
    """Whether every parameter and buffer of the sharded model is that of the model loaded whole."""
    section, device = ModelSection(name_or_path=str(folder)), pick_device()
    settings = MethodSection(name=method)
    real = apply_method(load_base(section, device=device, dtype=dtype), settings, seed=3).model
    hollow = apply_method(load_base(section, device=device, dtype=dtype, hollow=True), settings, seed=3).model
    by_rows = bool(values_of(hollow).files)
    shard(hollow, CPU, to_host=to_host)
    mine = dict(hollow.named_parameters())
    odd = [
        name for name, tensor in real.named_parameters()
        if not torch.equal(whole(mine[name]), tensor) or mine[name].dtype != tensor.dtype
        or mine[name].requires_grad != tensor.requires_grad
    ]  # fmt: skip
    buffers = dict(hollow.named_buffers())
    odd += [name for name, tensor in real.named_buffers() if not torch.equal(buffers[name], tensor)]
    kinds = {type(mine[name].data).__name__ for name, tensor in real.named_parameters() if "lora_" not in name}
    return {"odd": odd, "count": len(mine), "kinds": sorted(kinds), "by_rows": by_rows}


def nan_of_one(folder: Path) -> dict[str, str]:
    """The last row of a matrix is not finite: process 1 reads it."""
    model = load_base(ModelSection(name_or_path=str(folder)), device=pick_device(), dtype="float32", hollow=True)
    try:
        shard(model, CPU)
    except LuthierError as error:
        return {"code": error.problems[0].code, "text": str(error)}
    return {}


def large(folder: Path, out: Path, accelerator: Any) -> dict[str, Any]:
    """Memory of loading, and of writing file by file."""
    section = ModelSection(name_or_path=str(folder))
    before = memory()["now"]
    reset_peak()
    model = load_model_folder(folder, section, device=pick_device(), dtype=torch.float32, hollow=True)
    made = memory()["peak"] - before
    shard(model, CPU)
    loading = memory()["peak"] - before
    before = memory()["now"]
    reset_peak()

    def write(source: Any) -> None:
        (out / "large").mkdir()
        save_model_files(model, out / "large", max_shard_size="40MB", whole=source)

    write_gathered(accelerator, model, write)
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    return {
        "made": made, "loading": loading, "writing": memory()["peak"] - before, "bytes": sum(sizes),
        "largest": max(sizes),
    }  # fmt: skip


def offloads(out: Path, world_size: int) -> dict[str, Any]:
    """bf16 with two passes a step: the same weights and masters, wherever they live; and a run that goes on."""
    kept, found = {}, {}
    for offload in ("none", "optimizer", "all"):
        recipe = resolved(
            method=FULL, strategy="fsdp2", offload=offload, shuffle=False, max_steps=4, save_steps=2,
            per_device_train_batch_size=2, gradient_accumulation_steps=4 // world_size,
        )  # fmt: skip
        run = train(out / f"bf16 {offload}", data(unequal(48)), recipe=recipe, model=tiny_model().to(torch.bfloat16))
        masters = load_whole(out / f"bf16 {offload}/checkpoints/step-4", "trainable")
        kept[offload] = {**{f"live {n}": whole(p.detach()) for n, p in run.model.named_parameters()}, **masters}
        assert any(tensor.dtype == torch.float32 for tensor in masters.values())
    for offload in ("optimizer", "all"):
        mine, theirs = kept[offload], kept["none"]
        assert mine.keys() == theirs.keys()
        found[offload] = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    again = thirteen(out / "resumed all", world_size, FULL, strategy="fsdp2", offload="all")
    found["resumed_from"] = again.result.resumed_from
    found["weights"] = {name: whole(p.detach()).double().flatten().tolist()[:64] for name, p in
                        again.model.named_parameters()}  # fmt: skip
    return found


def main(bases: Path, out: Path) -> None:
    rank = int(os.environ["RANK"])
    accelerator = make_accelerator(CPU, report_to=[], logging_dir="unused")
    found: dict[str, Any] = {"processes": accelerator.num_processes}
    for name in ("plain", "tied", "old_names", "experts"):
        for method in ("full", "lora"):
            for dtype, to_host in (("float32", False), ("bfloat16", True)):
                key = f"{name} {method} {dtype}"
                found[key] = equal_to_loaded(bases / name, method=method, dtype=dtype, to_host=to_host)
    found["large"] = large(bases / "large", out, accelerator)  # when all libraries are there
    found["offloads"] = offloads(out, accelerator.num_processes)
    found["nan"] = nan_of_one(bases / "nan")
    (out / f"facts-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_quiet(True)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
