"""Tables of `luthier plan`: bytes of a device, seconds of a step, ways to spread the model, memory of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.plan.result import Plan

__all__ = ["host_table", "memory_table", "time_table", "ways_table"]

HOW_MEMORY = {
    "weights": "exact: parameters x bytes as stored",
    "adapters": "exact: A and B with the padding of extended matrices",
    "gradients": "exact at this moment: 4 bytes a trained parameter, 2 for one micro-batch in 16 bits",
    "masters": "exact: 4 bytes a trained parameter held in 16 bits",
    "optimizer": "exact: states of train.optim",
    "activations": "formula: what the layers keep (docs/plan.md)",
    "transient": "formula: one layer's backward",
    "logits": "formula: head and loss, one chunk",
    "gathered": "formula: weights from other devices, buffers of the exchange",
    "workspace": "stated constant: libraries",
    "recordings": "upper bound: CUDA graphs of small micro-batches, three shapes",
    "outside": "stated constants: context, and the allocator's fragmentation",
}


def memory_table(answer: Plan) -> object:
    """Bytes of one device by part."""
    from rich.table import Table

    chosen = answer.chosen
    unit, name = (2**30, "GiB") if chosen.needed_bytes >= 2**30 else (2**20, "MiB")
    table = Table(
        "part", name, f"how it is known ({chosen.memory.moment}: the peak of a step)", box=None, pad_edge=False
    )
    for part, size in chosen.memory.parts().items():
        if size or part in ("weights", "gradients", "optimizer", "activations"):
            moved = part == "optimizer" and not size and answer.host.states
            table.add_row(part, f"{size / unit:,.2f}", "in host memory" if moved else HOW_MEMORY[part])
    if chosen.correction.runs:
        factor, runs = chosen.correction.memory, chosen.correction.runs
        table.add_row(
            "correction",
            f"{(chosen.needed_bytes - chosen.memory.total) / unit:,.2f}",
            f"x {factor:.2f}, measured in {runs} runs here",
        )
    verdict = "fits" if chosen.needed_bytes <= chosen.available_bytes else "does not fit"
    table.add_row(
        "total",
        f"{chosen.needed_bytes / unit:,.2f}",
        f"of {answer.request.device.memory_bytes / unit:,.2f} on {answer.request.device.name} "
        f"({1 - chosen.available_bytes / answer.request.device.memory_bytes:.0%} stay free): {verdict}",
    )
    return table


HOW_TIME = {
    "products": "products with the weights of the layers",
    "thin": "adapters: memory traffic of their gradients",
    "head": "head and loss on trained tokens",
    "attention": "from the lengths of documents",
    "elementwise": "norms, RoPE, GLU: memory traffic",
    "unpack": "4-bit weights unpacked",
    "gradients": "fp32 sums of weight gradients",
    "optimizer": "update: memory traffic",
    "waiting": "the host launches kernels slower than they run",
    "exchange": "communication that is not hidden",
    "offload": "update in host memory, with the way there and back: assumed rates",
    "skew": "waiting for the slowest device: stated share, of one measured row",
    "reference": "passes without gradients: the reference point",
    "other": "collate, copies, logging: stated constant",
}


def time_table(answer: Plan) -> object:
    """Seconds of a step by part."""
    from rich.table import Table

    chosen = answer.chosen
    table = Table(
        "seconds of a step", "s", "formula x efficiency (luthier/plan/efficiency.py)", box=None, pad_edge=False
    )
    for part, seconds in chosen.step.parts().items():
        if seconds >= 0.0005 * chosen.step.total:
            table.add_row(part, f"{seconds:,.4f}", HOW_TIME[part])
    if chosen.correction.runs:
        table.add_row(
            "correction",
            f"{chosen.seconds - chosen.step.total:,.4f}",
            f"x {chosen.correction.seconds:.2f}, measured in {chosen.correction.runs} runs here",
        )
    table.add_row(
        "step",
        f"{chosen.seconds:,.4f}",
        f"{chosen.step_tokens:,.0f} tokens, {chosen.tokens_per_second:,.0f} tokens/s"
        + ("" if answer.mfu is None else f", MFU {answer.mfu:.0%} of the data sheet"),
    )
    return table


def ways_table(answer: Plan) -> object:
    """Every way that was looked at, with its fastest setting that fits, or its smallest."""
    from rich.table import Table

    table = Table("way", "GiB each", "tokens/s", "", box=None, pad_edge=False)
    for other in answer.ways:
        found = other.candidate
        speed = f"{found.tokens_per_second:,.0f}" if found.fits else "-"
        table.add_row(found.setting.way.words(), f"{found.needed_bytes / 2**30:,.1f}", speed, other.why)
    for words, reason in answer.refused.items():
        table.add_row(words, "-", "-", f"not looked at: {reason}")
    return table


HOW_HOST = {
    "processes": "stated constant: 3 GiB each",
    "loading": "formula: the largest tensor of each process, or the whole base where shards are cut from it",
    "states": "exact: masters and optimizer state of its devices",
    "weights": "exact: shards of its devices, with the gradients of trained ones",
    "checkpoint": "upper bound: trained shards in fp32 with their states, while one is written",
    "result": "upper bound: one file, while the result is written",
}


def host_table(answer: Plan) -> object:
    """Bytes of one host by part."""
    from rich.table import Table

    host = answer.host.to_json()
    table = Table(f"memory of a host ({host['devices']} devices)", "GiB", "how it is known", box=None, pad_edge=False)
    for part, size in host["parts"].items():
        if size:
            table.add_row(part, f"{size / 2**30:,.2f}", HOW_HOST[part])
    table.add_row("total", f"{host['total'] / 2**30:,.2f}", "loading, checkpoint and result come one after the other")
    return table
