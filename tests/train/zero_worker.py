"""One of two processes under torchrun: `python -m torch.distributed.run ... -m tests.train.zero_worker FOLDER`.

DeepSpeed's strategies over the cases of `worker.py`; what each came to is written by every process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.data.types import Example
from luthier.runtime.console import set_quiet
from luthier.runtime.env import read_env
from luthier.runtime.errors import LuthierError
from tests.support.tiny import tiny_model
from tests.train.packed_cases import fp8_base
from tests.train.support import FULL, LORA, SPECTRUM, Run, data, examples, resolved, train, tuned, whole
from tests.train.worker import EIGHT, per_process, thirteen, unequal
from tests.train.zero_cases import FEW

METHODS = {
    "full": FULL, "lora": LORA, "spectrum": SPECTRUM,
    # Adapters of the first layer take several of DeepSpeed's buckets, and nothing before them has a gradient.
    "wide_lora": {**LORA, "r": 16},
    "last_layer": {"name": "freeze", "last_n_layers": 1},
}  # fmt: skip


def tied_full(folder: Path, world_size: int, strategy: str) -> Run:
    """Embeddings that are the head as well: their gradient comes from both ends of the model."""
    recipe = resolved(method=FULL, strategy=strategy, **EIGHT, **per_process(world_size))
    return train(folder, data(unequal(48)), recipe=recipe, model=tiny_model(tied=True))


def recomputed(folder: Path, world_size: int, strategy: str) -> Run:
    return thirteen(folder, world_size, LORA, strategy=strategy, gradient_checkpointing=True)


def bf16(folder: Path, world_size: int, strategy: str) -> Run:
    recipe = resolved(method=FULL, strategy=strategy, **EIGHT, **per_process(world_size))
    return train(folder, data(unequal(48)), recipe=recipe, model=tiny_model().to(torch.bfloat16))


def offloaded(folder: Path, world_size: int, strategy: str) -> Run:
    offload = {"zero2": "optimizer", "zero3": "all"}.get(strategy, "none")
    return thirteen(folder, world_size, FULL, strategy=strategy, offload=offload)


def by_method(name: str) -> Callable[[Path, int, str], Run]:
    return lambda folder, world_size, strategy: thirteen(folder, world_size, METHODS[name], strategy=strategy)


CASES: dict[str, Callable[[Path, int, str], Run]] = {
    **{name: by_method(name) for name in METHODS},
    "tied_full": tied_full, "recomputed": recomputed, "bf16": bf16, "offloaded": offloaded, **FEW,
}  # fmt: skip
RESUMED = ("full", "lora", "kto_saved", "dora")
STRATEGIES = ("zero2", "zero3")


def facts_of(strategy: str) -> dict[str, Any]:
    """What the loss really runs through, and what of the weights this process holds."""
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import make_trainer

    recipe = resolved(strategy=strategy)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    model = tuned(recipe).model
    names = [name for name, _ in model.named_parameters()]
    sizes = sum(parameter.numel() for parameter in model.parameters())
    trainer = make_trainer(accelerator, model, recipe.recipe, total_steps=1)
    layer, zero = model.get_decoder().layers[0], trainer.wrapper.root
    matrix = layer.self_attn.q_proj.weight
    found = {
        "processes": accelerator.num_processes, "wrapper": type(trainer.wrapper).__name__, "root": type(zero).__name__,
        "optimizer": type(zero.optimizer).__name__, "stage": int(zero.zero_optimization_stage()),
        "layer": type(layer).__name__, "leaf": getattr(layer, "_z3_leaf", False), "matrix": list(matrix.shape),
        "status": getattr(getattr(matrix, "ds_status", None), "name", None),
        "weights": sum(p.ds_tensor.numel() if hasattr(p, "ds_id") else p.numel() for p in model.parameters()),
        "masters": sum(group.numel() for group in masters_of(zero)), "whole": sizes,
        "names": sorted(trainer.weights.live) == sorted(names), "clipping": zero.gradient_clipping(),
        "report": {part.name: part.runs for part in trainer.engine.report},
    }  # fmt: skip
    trainer.weights.close()
    return found


def matrices(model: Any) -> dict[str, torch.Tensor]:
    """What each adapted module multiplies with, whole: what is left of the base, and the adapter."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            w, a, b = (
                whole(part.weight).detach()
                for part in (module.get_base_layer(), module.lora_A["default"], module.lora_B["default"])
            )
            found[name.removeprefix("base_model.model.")] = w + float(module.scaling["default"]) * b @ a
    return found


def masters_of(zero: Any) -> list[torch.Tensor]:
    optimizer = zero.optimizer
    names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
    return next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))


def not_finite(folder: Path, world_size: int, strategy: str) -> dict[str, Any]:
    """A NaN in the rows of one process."""
    rows = examples(16)
    clean = [Example(ids=[4 if i == 599 else i for i in r.ids], weights=r.weights, ref=r.ref) for r in rows]
    clean[9] = Example(ids=[599, *rows[9].ids[1:]], weights=rows[9].weights, ref=rows[9].ref)
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[599] = float("nan")
    try:
        train(folder, data(clean), model=model, shuffle=False, strategy=strategy, **per_process(world_size))
    except LuthierError as error:
        return {"type": type(error).__name__, "text": str(error)}
    return {}


def run_all(folder: Path, world_size: int, rank: int) -> None:
    facts = {}
    for strategy in STRATEGIES:
        for name in [*CASES, *(f"resumed_{name}" for name in RESUMED)]:
            label = f"{name}-{strategy}"
            run = CASES[name.removeprefix("resumed_")](folder / label, world_size, strategy)
            trained = {key: whole(p).detach() for key, p in run.model.named_parameters() if p.requires_grad}
            save_file({key: tensor.clone() for key, tensor in trained.items()}, folder / f"{label}-{rank}.safetensors")
            result = {**run.result.to_json(), "moved": run.moved}
            (folder / f"{label}-{rank}.json").write_text(json.dumps(result))
            if name == "pissa":
                save_file(matrices(run.model), folder / f"matrices_{label}-{rank}.safetensors")
        base, fp8 = fp8_base(strategy)
        save_file(base, folder / f"fp8_base-{strategy}-{rank}.safetensors")
        nan = not_finite(folder / f"nan-{strategy}", world_size, strategy)
        facts[strategy] = {**facts_of(strategy), "nan": nan, "fp8": fp8}
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_quiet(True)
    run_all(Path(sys.argv[1]), read_env().world_size, read_env().rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
