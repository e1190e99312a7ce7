"""`luthier plan` of online RL: what is known, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.cli.output import show

if TYPE_CHECKING:
    from luthier.plan.online import OnlinePlan

__all__ = ["render_online"]

HOW = {
    "weights": "exact: parameters x bytes as held",
    "adapters": "exact: float32",
    "gradients": "exact: 4 bytes a trained parameter",
    "optimizer": "exact: states of train.optim",
    "reference": "exact: a second copy in float32",
    "cache": "formula: all completions of a step on a device at their longest",
}


def render_online(answer: OnlinePlan) -> None:
    """Counts, bytes, and what is left open."""
    from rich.table import Table

    from luthier.plan.online import UNKNOWN
    from luthier.plan.reasons import gib

    show(
        f"{answer.steps:,} steps of {answer.completions_per_step} completions ({answer.prompts_per_step} prompts "
        f"each); {answer.completions:,} completions, at most {answer.sampled_tokens_at_most:,} sampled tokens"
    )
    show(f"{answer.prompts:,} prompts: {answer.how}")
    if answer.devices > 1:
        each = answer.completions_per_step // answer.devices
        show(f"{answer.devices} devices, each with a copy of the model (ddp) and {each} completions of a step")
    show("")
    table = Table("part", "GiB" if answer.devices == 1 else "GiB a device", "how it is known", box=None, pad_edge=False)
    for part, how in HOW.items():
        size = getattr(answer, part)
        if size:
            table.add_row(part, f"{size / 2**30:,.2f}", how)
    table.add_row("sampling", f"{answer.sampling_bytes / 2**30:,.2f}", "without gradients")
    table.add_row("update", f"{answer.update_bytes / 2**30:,.2f}", "at least: activations come on top")
    show(table)
    show("")
    if answer.fits is False:
        show(f"does not fit: the update needs more than the {gib(answer.device_bytes)} of {answer.device}")
    else:
        show(f"device: {answer.device}, {gib(answer.device_bytes)}; whether it fits depends on what is not known:")
    for line in UNKNOWN:
        show(f"  {line}")
