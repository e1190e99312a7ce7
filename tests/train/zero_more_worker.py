"""One of two processes under torchrun: `python -m torch.distributed.run ... -m tests.train.zero_more_worker FOLDER`.

What DeepSpeed's strategies are combined with beyond plain tuning; each case also runs in one process
(`test_zero_more.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from luthier.model.packed import PackedLinear
from luthier.train.processes import make_accelerator
from luthier.train.setup import make_trainer
from tests.support.tiny import tiny_model
from tests.train import zero_cases, zero_worker
from tests.train.packed_cases import NF4, QLORA
from tests.train.sharded_worker import NEW_TOKENS, SAVED
from tests.train.support import LORA, SPECTRUM, resolved, tuned
from tests.train.torchrun import work
from tests.train.zero_cases import Case
from tests.train.zero_compared import run_cases

TWO_AND_THREE = ("zero2", "zero3")
ONE = zero_cases.named(zero_cases.full_bf16, zero_cases.saved_bf16, zero_cases.offloaded_bf16, zero_cases.saved_tied)
ONE |= {name: zero_cases.MORE[name] for name in ("dpo_lora", "kto_full", "qlora_unpacked", "qlora_bf16")}
ONE |= {name: zero_worker.CASES[name] for name in ("full", "lora", "spectrum", "offloaded")}
"""Under ZeRO-1."""
CASES: dict[str, Case] = {**ONE, **zero_cases.MORE}
RUNS = [(name, strategy) for name in zero_cases.MORE for strategy in TWO_AND_THREE]
RUNS += [(name, "zero1") for name in ONE] + [("offloaded_bf16", strategy) for strategy in TWO_AND_THREE]
RESUMED = [(name, strategy) for name in ("tokens_tied", "dpo_lora", "reward_full", "qlora_unpacked")
           for strategy in TWO_AND_THREE]  # fmt: skip
RESUMED += [(name, "zero1") for name in ("full", "full_bf16", "saved_tied")]
"""Whose folders `resumed_NAME-STRATEGY` hold the first half of a run of another number of processes."""


FACTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "saved": (SAVED, {}), "tokens": (LORA, {}), "spectrum": (SPECTRUM, {}), "bf16": (SAVED, {}),
    "nf4": ({**QLORA, "modules_to_save": ["lm_head"]}, NF4),
}  # fmt: skip
"""Method and model section of what `parts_of` looks at."""


def parts_of(name: str, strategy: str) -> dict[str, Any]:
    """What DeepSpeed holds on this process, and what a pass finds."""
    method, section = FACTS[name]
    recipe = resolved(method=method, model=section, strategy=strategy)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    base = zero_cases.nf4_base(2, strategy) if section else tiny_model()
    base = base.to(torch.bfloat16) if name == "bf16" else base
    model = tuned(recipe, model=base, new_token_ids=NEW_TOKENS if name == "tokens" else ()).model
    trained = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
    tables = {key: p for key, p in model.named_parameters() if p.requires_grad and "layers" not in key}
    sizes = {key: p.numel() for key, p in tables.items()}
    originals = {key: p for key, p in model.named_parameters() if ".original_module." in key}
    trainer = make_trainer(accelerator, model, recipe.recipe, total_steps=1)
    zero = trainer.wrapper.root
    packed = [module.weight for module in model.modules() if isinstance(module, PackedLinear)]
    held = sum(weight.numel() for weight in packed)
    with torch.no_grad():
        found, others = trainer.wrapper.run(
            lambda: [{key: p.numel() for key, p in some.items()} for some in (tables, originals)]
        )
    masters = zero_worker.masters_of(zero)
    mine = [weight.ds_tensor if hasattr(weight, "ds_tensor") else weight for weight in packed]
    report = {part.name: part.runs for part in trainer.engine.report}
    trainer.weights.close()
    return {
        "processes": accelerator.num_processes, "root": type(zero).__name__, "optimizer": type(zero.optimizer).__name__,
        "stage": int(zero.zero_optimization_stage()), "trained": sum(trained.values()),
        "masters": sum(group.numel() for group in masters), "tables": {key: (found[key], sizes[key]) for key in sizes},
        "originals": others, "report": report["decoder layers"],
        "packed": {
            "kinds": sorted({str(weight.dtype) for weight in packed}), "held": held,
            "mine": sum(part.numel() for part in mine),
            "whole": sum(getattr(weight, "ds_numel", weight.numel()) for weight in packed),
        },
    }  # fmt: skip


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    run_cases(folder, world_size, rank, wanted, cases=CASES, runs=RUNS, resumed=RESUMED)
    for name in FACTS:
        for strategy in ("zero1", "zero2", "zero3"):
            if not wanted or "facts" in wanted:
                found = parts_of(name, strategy)
                (folder / f"facts_{name}-{strategy}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    work(run_all)
