"""Steps that were measured, and what the plan says of the same steps: `measured.jsonl`, one row a step.

`tests/plan/test_measured.py` holds the plan to them, docs/plan.md shows them, and `tests/plan/fit.py` takes new ones
from results of `benchmarks/gpu/bench.py` and `distributed_rank.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from luthier.plan.devices import DEVICES
from luthier.plan.known import known_model
from luthier.plan.memory import MemoryPlan, estimate_memory
from luthier.plan.setting import Base, Offload, Recompute, Setting, Strategy, Way
from luthier.plan.sizes import Sizes, sizes_of
from luthier.plan.time import StepTime, estimate_step
from luthier.plan.work import Documents
from luthier.recipe.schema import MethodSection

__all__ = ["FILE", "Row", "measured_rows", "measured_table"]

FILE = Path(__file__).parent / "measured.jsonl"
_BASES = {"plain": "", "fp8": ", fp8 base", "nf4": ", 4-bit base", "nf4_dequantized": ", 4-bit base kept unpacked"}
_RECOMPUTE = {"none": "", "selective": ", selective", "layer": ", all layers recomputed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step as it was measured."""

    device: str
    model: str
    method: str
    base: Base
    optim: str
    tokens: int
    """Room of a step: packs x `max_length`."""
    max_length: int
    micro_batches: int
    recompute: Recompute
    step_tokens: float
    """Real tokens of a step; on several devices the mean of each."""
    supervised: float
    squares_per_token: float
    """Sum of n^2 over documents by sum of n."""
    flops_per_token: float | None = None
    """Model FLOPs by the benchmark's own formula, where it was recorded."""
    peak_gib: float
    """Of the allocator (`max_memory_allocated`); of several devices the largest."""
    ms: float
    """Of a step, median."""
    replayed: bool
    """The decoder was replayed as CUDA graphs."""
    source: str
    """Hash of the engine's sources that ran."""
    world: int = 1
    """Devices; tokens and bytes are of each of them."""
    strategy: Strategy = "ddp"
    reshard: bool = True
    """`distributed.reshard_after_forward`."""
    offload: Offload = "none"
    sequence_parallel: int = 1
    keep_attention: bool = False
    """Recomputed layers kept attention's output."""
    reserved_gib: float | None = None
    """Held by the allocator, where it was recorded."""
    changed: str = ""
    """What of the engine has changed since, so that its time is no longer that of this step; empty: nothing known."""

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a later measurement one of the same step."""
        step = (
            self.tokens,
            self.max_length,
            self.micro_batches,
            self.recompute,
            self.keep_attention,
            self.replayed,
            round(self.squares_per_token, -2),
        )
        spread = (self.world, self.strategy, self.reshard, self.offload, self.sequence_parallel)
        return (self.device, self.model, self.method, self.base, self.optim, *step, *spread)

    def with_squares(self, squares_per_token: float) -> Row:
        """The same step of other documents."""
        return replace(self, squares_per_token=squares_per_token)

    def sizes(self) -> Sizes:
        """Of model and method."""
        return _sizes(self.model, self.method)

    def setting(self) -> Setting:
        """As it ran."""
        return Setting(
            micro_tokens=self.tokens // self.micro_batches, recompute=self.recompute, base=self.base,
            accumulate=self.micro_batches, replay=self.replayed, world=self.world, way=self.way(),
            reshard=self.reshard, extended=not self.way().sharded, keep_attention=self.keep_attention,
        )  # fmt: skip

    def way(self) -> Way:
        """How the devices shared the work."""
        return Way(strategy=self.strategy, offload=self.offload, sequence_parallel=self.sequence_parallel)

    def documents(self) -> Documents:
        """With the measured lengths: those of one step stand for all."""
        tokens = round(self.step_tokens)
        return Documents(
            rows=max(1, tokens // 300), tokens=tokens, squares=self.squares_per_token * tokens,
            supervised=self.supervised, sequences=max(1, self.tokens // self.max_length),
            longest_sequence=self.max_length, how="measured",
        )  # fmt: skip

    def step(self) -> StepTime:
        """What the plan says of its time, without any calibration."""
        return estimate_step(
            self.sizes(), self.setting(), self.documents(), DEVICES[self.device], step_tokens=self.step_tokens,
            optim=self.optim,
        )  # fmt: skip

    def memory(self) -> MemoryPlan:
        """What the plan says of its memory."""
        return estimate_memory(self.sizes(), self.setting(), optim=self.optim, supervised=self.supervised)

    def words(self) -> str:
        """`Llama-3.1-8B LoRA, 16,384 tokens`."""
        method = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "freeze": "freeze", "spectrum": "Spectrum"}[
            self.method
        ]
        optim = ", 8-bit AdamW" if self.optim == "adamw_8bit" else ""
        documents = f", documents up to {self.max_length:,}" if self.max_length != 1024 else ""
        documents += ", replayed" if self.replayed else ""
        if self.world > 1:
            kept = "" if self.reshard else ", layers kept whole"
            documents += f", {self.world} devices: {self.way().words()}{kept}"
        elif self.offload != "none":
            documents += f", {self.offload} offloaded"
        kept = " but for attention" if self.keep_attention else ""
        more = f"{_BASES[self.base]}{_RECOMPUTE[self.recompute]}{kept}{optim}{documents}"
        return f"{self.model} {method}, {self.tokens:,} tokens{more}"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@cache
def _sizes(model: str, method: str) -> Sizes:
    shape = known_model(model)
    assert shape is not None
    return sizes_of(shape, MethodSection(name=method))  # type: ignore[arg-type]


def measured_rows() -> list[Row]:
    """Every row of the file."""
    return [Row(**json.loads(line)) for line in FILE.read_text("utf-8").splitlines()] if FILE.is_file() else []


def measured_table() -> Iterator[str]:
    """Lines of a Markdown table: predicted beside measured."""
    yield "| step | card | ms measured | ms planned | difference | GiB measured | GiB planned | difference |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in measured_rows():
        step, peak = row.step(), row.memory().peak / 2**30
        ms = 1e3 * step.total
        words = row.words() + (" (launches decide)" if step.waiting else "") + (" (*)" if row.changed else "")
        yield (
            f"| {words} | {row.device} | {row.ms:.0f} | {ms:.0f} | {ms / row.ms - 1:+.1%} "
            f"| {row.peak_gib:.1f} | {peak:.1f} | {peak / row.peak_gib - 1:+.1%} |"
        )
