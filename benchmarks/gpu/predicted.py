"""What the plan says of a setting, beside what was measured: `luthier.plan` alone, no calibration of earlier runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.types import Example, Pack
from luthier.plan.devices import GIB
from luthier.plan.efficiency import efficiency_of
from luthier.plan.machine import this_machine
from luthier.plan.memory import estimate_memory
from luthier.plan.setting import Base, Setting
from luthier.plan.shape import shape_from_config
from luthier.plan.sizes import sizes_of
from luthier.plan.time import estimate_step
from luthier.plan.work import Documents
from luthier.recipe.schema import Recipe

__all__ = ["predicted"]


def predicted(
    config: Mapping[str, Any], recipe: Recipe, options: argparse.Namespace, examples: Sequence[Example],
    packs: Sequence[Pack],
) -> dict[str, Any]:  # fmt: skip
    """Predicted peak of the allocator (GiB), milliseconds of a step, tokens/s, and the parts of both.

    Args:
        config: of the model, as in its config.json.
        options: flags of bench.py.
    """
    device, _ = this_machine()
    table = efficiency_of(device.type)
    sizes = sizes_of(shape_from_config(config, where="benchmark", source="benchmark"), recipe.method)
    tokens = sum(pack.tokens for pack in packs)
    supervised = sum(example.trained_tokens for example in examples) / sum(len(example) for example in examples)
    lengths = [len(example) for example in examples]
    documents = Documents(
        rows=len(lengths), tokens=tokens, squares=float(sum(n * n for n in lengths)), supervised=supervised,
        sequences=len(packs), longest_sequence=options.max_doc, how="measured",
    )  # fmt: skip
    base: Base = "plain"
    if options.quantization == "nf4":
        base = "nf4_dequantized" if options.dequantize_base else "nf4"
    elif options.quantization == "fp8":
        base = "fp8"
    sequences = max(1, options.tokens // options.max_doc)
    setting = Setting(
        micro_tokens=sequences // options.micro_batches * options.max_doc, recompute=options.recompute,
        recompute_layers=options.recompute_layers, base=base, dtype_bytes=2 if options.dtype == "bfloat16" else 4,
        accumulate=options.micro_batches, extended=device.type == "cuda" and sizes.adapters and sizes.fast,
    )  # fmt: skip
    memory = estimate_memory(
        sizes, setting, optim=options.optim, supervised=supervised, device_type=device.type, table=table
    )
    step_tokens = tokens / len(packs) * sequences
    step = estimate_step(sizes, setting, documents, device, step_tokens=step_tokens, optim=options.optim, table=table)
    return {
        "device": device.name, "peak_gib": round(memory.peak / GIB, 2), "ms_step": round(1e3 * step.total, 1),
        "tok_s": round(step_tokens / step.total, 1), "moment": memory.moment,
        "gib": {name: round(size / GIB, 2) for name, size in memory.parts().items() if size > 0.005 * GIB},
        "ms": {name: round(1e3 * seconds, 1) for name, seconds in step.parts().items() if seconds > 5e-5},
    }  # fmt: skip
