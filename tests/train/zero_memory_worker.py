"""One of two processes under torchrun: what ZeRO-3 holds at its peak, by the code of DeepSpeed that made it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from luthier.model.quantize import nf4_config, nf4_later
from luthier.plan.gathered import WHOLE_BYTES
from luthier.plan.states import PACKED_BYTES
from luthier.recipe.resolve import Resolved
from luthier.runtime.console import set_quiet
from luthier.runtime.env import read_env
from tests.support.tiny import tiny_model
from tests.train.live_bytes import LiveBytes
from tests.train.packed_cases import FP8, NF4, QLORA
from tests.train.support import FULL, LORA, data, examples, resolved, train
from tests.train.zero_cases import DORA

KINDS = {
    "gathered": {"_all_gather_dtype", "_all_gather_sequential", "wait"},  # of runtime/zero/partition_parameters.py
    "step": {"_prepare_fp32_grad_for_sub_group"},  # of runtime/zero/stage3.py
}
BASES = {"qlora": NF4, "fp8": FP8}
SHARES = {"qlora": PACKED_BYTES / WHOLE_BYTES, "fp8": 2 / WHOLE_BYTES}
"""Of packed values in elements: integers of four bytes."""
CASES: dict[str, dict[str, Any]] = {
    "full": {"method": FULL, "reuse": 3.6, "layers": 8, "hidden_size": 64, "intermediate_size": 224},
    "wider": {"method": FULL, "reuse": 1.5, "layers": 5, "hidden_size": 128, "intermediate_size": 448},
    "lora": {"method": LORA, "reuse": 2.4, "layers": 6, "hidden_size": 128, "intermediate_size": 448},
    "qlora": {"method": QLORA, "reuse": 9.0, "layers": 6, "hidden_size": 128, "intermediate_size": 448},
    "fp8": {"method": LORA, "reuse": 1.5, "layers": 5, "hidden_size": 128, "intermediate_size": 448},
    "dora": {"method": DORA, "reuse": 1.5, "layers": 4, "hidden_size": 128, "intermediate_size": 448},
}
"""`reuse`: `stage3_max_reuse_distance` in decoder layers, as the default of 1e9 is 4.6 layers of an 8B."""


def model_of(case: str) -> Any:
    """Of DoRA in bfloat16: on a CPU products in fp32 may have a function of their own for another reason."""
    model = tiny_model(**{key: value for key, value in CASES[case].items() if key not in ("method", "reuse")})
    return model.to(torch.bfloat16) if case == "dora" else model


def base_of(case: str) -> Any:
    """Of a 4-bit base as the loader leaves it."""
    model = model_of(case)
    if case == "qlora":
        nf4_later(model, nf4_config(model.dtype))
    return model


def distance(case: str) -> int:
    """`stage3_max_reuse_distance` of a case, in elements."""
    layer = model_of(case).model.layers[0]
    share = SHARES.get(case, 1.0)
    return round(CASES[case]["reuse"] * share * sum(parameter.numel() for parameter in layer.parameters()))


def run(case: str, folder: Path, rank: int) -> dict[str, int]:
    """Peaks of three steps, set-up included."""
    file = folder / f"{case}-{rank}.json"
    # Parameters below a threshold stay whole; of these models half of the adapters and some packed matrices would.
    zero = {"stage": 3, "stage3_max_reuse_distance": distance(case), "stage3_param_persistence_threshold": 0}
    file.write_text(json.dumps({"zero_optimization": zero}))
    recipe = resolved(
        method=CASES[case]["method"], model=BASES.get(case), strategy="zero3", max_steps=3,
        per_device_train_batch_size=2,
    ).recipe  # fmt: skip
    distributed = recipe.distributed.model_copy(update={"deepspeed_config": str(file)})
    with LiveBytes(KINDS) as live:
        train(
            folder / case, data(examples(16)), model=base_of(case),
            recipe=Resolved(recipe=recipe.model_copy(update={"distributed": distributed}), derived=()),
        )  # fmt: skip
    return dict(live.peaks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_quiet(True)
    here = read_env().rank
    found = {}
    for case in sys.argv[2:] or CASES:
        began = time.perf_counter()
        found[case] = run(case, Path(sys.argv[1]), here)
        print(case, f"{time.perf_counter() - began:.1f} s", file=sys.stderr)
    (Path(sys.argv[1]) / f"peaks-{here}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
