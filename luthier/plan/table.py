"""The hardware table: which method fits which model on how much memory, and how fast. For docs/hardware.md.

Every cell is `make_plan` of one recipe: 16,384 tokens a step, rows of 300 tokens packed to 1,024, 60% trained, AdamW,
everything else `auto`. Sizes of memory stand for a usual card each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from luthier.plan.devices import DEVICES, Accelerator
from luthier.plan.known import known_model
from luthier.plan.request import Request
from luthier.plan.result import Plan
from luthier.plan.search import make_plan
from luthier.plan.sizes import Sizes, sizes_of
from luthier.plan.work import Documents, assumed_documents
from luthier.recipe.schema import DataSection, MethodSection, ModelSection, Recipe, Source, TrainSection

__all__ = ["CARDS", "METHODS", "MODELS", "Cell", "cells", "hardware_page"]

MODELS = {
    "1B": "Llama-3.2-1B", "3B": "Llama-3.2-3B", "8B": "Llama-3.1-8B", "14B": "Qwen2.5-14B", "32B": "Qwen2.5-32B",
    "70B": "Llama-3.1-70B",
}  # fmt: skip
CARDS = {16: "RTX4080", 24: "RTX4090", 40: "A100-40GB", 80: "H100", 141: "H200"}
"""GB on the box: the card that stands for it."""
COUNTS = (1, 2, 4, 8)
METHODS = ("full", "full, 8-bit AdamW", "freeze 30%", "LoRA", "QLoRA")
TOKENS, MAX_LENGTH, MEAN_TOKENS, ROWS = 16_384, 1_024, 300, 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One plan of the table."""

    model: str
    method: str
    gigabytes: int
    devices: int
    plan: Plan

    def text(self) -> str:
        """`17,000 / 52` for what fits, with `+ 90` in host memory, else a dash with what it needs."""
        if not self.plan.fits:
            return f"– ({self.plan.chosen.needed_bytes / 2**30:,.0f})"
        moved = (self.plan.host.states + self.plan.host.weights) / 2**30
        beside = f" + {moved:,.0f}" if moved else ""
        return f"{_rounded(self.plan.chosen.tokens_per_second)} / {self.plan.chosen.needed_bytes / 2**30:.0f}{beside}"


def cells() -> Iterator[Cell]:
    """Every cell: models x methods x cards x numbers of cards."""
    documents = assumed_documents(max_length=MAX_LENGTH, packing=True, mean_tokens=MEAN_TOKENS, rows=ROWS)
    for model, name in MODELS.items():
        shape = known_model(name)
        assert shape is not None
        for method in METHODS:
            recipe = _recipe(method, shape.layers)
            sizes = sizes_of(shape, recipe.method)
            for gigabytes, card in CARDS.items():
                for count in COUNTS:
                    plan = _plan(recipe, sizes, DEVICES[card], count, documents)
                    yield Cell(model=model, method=method, gigabytes=gigabytes, devices=count, plan=plan)


def _plan(recipe: Recipe, sizes: Sizes, card: Accelerator, count: int, documents: Documents) -> Plan:
    asked = Request(recipe=recipe, sizes=sizes, documents=documents, device=card, num_gpus=count)
    return make_plan(asked, with_remedies=False)


def _recipe(method: str, layers: int) -> Recipe:
    sections = {
        "full": MethodSection(name="full"), "full, 8-bit AdamW": MethodSection(name="full"),
        "freeze 30%": MethodSection(name="freeze", last_n_layers=max(1, round(0.3 * layers))),
        "LoRA": MethodSection(name="lora"), "QLoRA": MethodSection(name="qlora"),
    }  # fmt: skip
    train = TrainSection(tokens_per_step=TOKENS, optim="adamw_8bit" if "8-bit" in method else "adamw_torch_fused")
    return Recipe(
        model=ModelSection(name_or_path="table"), data=DataSection(train=[Source(path="x")], max_length=MAX_LENGTH),
        method=sections[method], train=train, output_dir="runs/x",
    )  # fmt: skip


def _rounded(value: float) -> str:
    """Two significant digits: more would claim what the constants do not hold."""
    digits = len(f"{value:.0f}")
    scale = 10 ** max(0, digits - 2)
    return f"{round(value / scale) * scale:,.0f}"


TRUST = {"steps": "measured", "rates": "in part", "": "assumed"}

HEAD = """\
# What fits where

Computed by `luthier plan`, not copied: `python docs/generate.py` writes this page and a test holds it to the code.

Each cell: **tokens/s of all cards together / GiB needed on each card**, for the fastest setting that fits;
`– (n)`: does not fit, the smallest setting needs n GiB on a card. `+ n`: nothing fits without offload; masters and
moments (of several cards shards of the weights, if need be) take n GiB of the host's memory. The recipe has the
defaults: 16,384 tokens a step over all cards, rows of 300 tokens packed to 1,024, 60% of the tokens trained, AdamW in
fp32 with fp32 masters, LoRA r = 16 on all linear layers, `freeze 30%` the upper 30% of the decoder layers. Micro-batch,
recompute and the storage of a 4-bit base are the plan's choice. `luthier plan recipe.yaml --gpu NAME` says it for your
recipe, with reasons.

How far to trust it. Memory: the formulas were within 1% of 12 steps on an H200, and are taken to hold on other cards.
Speed, by column: **measured** (H200): the constants are fitted to steps on it. **In part** (H100): products and copies
were measured, the rest is carried over from the H200. **Assumed** (all others, and communication between cards): shares
of the data sheet; nothing was measured on such a card. [Measured beside planned](plan.md#measured-beside-planned).

Several cards shard the weights (FSDP2, docs/distributed.md) where copies do not fit or are slower.
"""


@cache
def hardware_page() -> str:
    """The page as Markdown: one table a number of cards."""
    table = {(cell.model, cell.method, cell.gigabytes, cell.devices): cell for cell in cells()}
    lines = [HEAD]
    for count in COUNTS:
        lines += [f"## {count} card{'s' if count > 1 else ''}\n"]
        heads = [f"{size} GB ({card}, {TRUST[DEVICES[card].measured]})" for size, card in CARDS.items()]
        lines += [f"| model | method | {' | '.join(heads)} |", "|---|---|" + "---|" * len(CARDS)]
        for model, name in MODELS.items():
            for method in METHODS:
                row = [table[model, method, gigabytes, count].text() for gigabytes in CARDS]
                lines.append(f"| {model} ({name}) | {method} | {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
