"""`luthier plan`: memory of a recipe, before a weight is loaded. Imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.output import emit_json, show

# The token budgets of `recipe/steps.py`: what a run takes when the recipe does not say.
MICRO_BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384}


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpu: Annotated[str | None, typer.Option(help="Device to fit, for instance H200, L4, RTX4090.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Memory by part for one micro-batch; with --gpu, whether it fits. No weights are loaded."""
    from luthier.model.locate import locate_model
    from luthier.plan.devices import device_bytes
    from luthier.plan.memory import plan_memory
    from luthier.plan.shape import read_shape
    from luthier.runtime.device import cpu_native_bf16

    wanted = load_with_overrides(recipe, overrides).recipe
    available = device_bytes(gpu) if gpu else None
    shape = read_shape(locate_model(wanted.model.name_or_path, wanted.model.revision))
    native = gpu is not None or cpu_native_bf16()
    full_width = wanted.model.dtype == "float32" or (wanted.model.dtype == "auto" and not native)
    tokens = max(wanted.data.max_length, MICRO_BATCH_TOKENS["cuda" if gpu else "cpu"])
    result = plan_memory(shape, wanted, dtype_bytes=4 if full_width else 2, tokens=tokens)
    fits = None if available is None else result.total <= available
    if as_json:
        emit_json({**result.to_json(), "device_bytes": available, "fits": fits})
        return
    from rich.table import Table

    table = Table("part", "MiB", "how it is known", box=None, pad_edge=False)
    exact, estimate = "exact: parameters x bytes", "estimate: see docs/plan.md"
    for part in ("weights", "gradients", "optimizer", "masters"):
        table.add_row(part, f"{getattr(result, part) / 2**20:,.0f}", exact)
    for part in ("activations", "logits"):
        table.add_row(
            part, f"{getattr(result, part) / 2**20:,.0f}", f"{estimate}; {result.tokens:,} tokens a micro-batch"
        )
    table.add_row(
        "total", f"{result.total / 2**20:,.0f}", "" if available is None else f"of {available / 2**20:,.0f} on {gpu}"
    )
    show(table)
    share = result.trainable / result.parameters
    show(f"{result.trainable:,} trained parameters beside {result.parameters:,} of the base ({share:.2%})")
    if fits is False:
        show("does not fit: try method.name=qlora, train.gradient_checkpointing=true or a smaller data.max_length")
