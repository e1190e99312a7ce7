"""One of two processes under torchrun: `python -m torch.distributed.run ... -m tests.train.zero_bases_worker FOLDER`.

DeepSpeed's strategies with an fp8 base, and with adapters that read the base (DoRA, PiSSA, OLoRA); each case also runs
in one process (`test_zero_bases.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier.data.pack import pack
from tests.fast.families import build
from tests.support.tiny import tiny_model
from tests.train.packed_cases import FP8, WIDTH
from tests.train.sharded_worker import SAVED
from tests.train.support import LORA, Data, Run, examples, resolved, train
from tests.train.torchrun import work
from tests.train.worker import thirteen, unequal
from tests.train.zero_cases import DORA, Case, a_step, dora, fp8, named, olora, pissa, preferred
from tests.train.zero_compared import run_cases

DPO = {"name": "dpo", "beta": 0.3}
PISSA = {**LORA, "init_lora_weights": "pissa"}
AGAIN = {"gradient_checkpointing": True}


def fp8_base_of(folder: Path, world_size: int, strategy: str, model: Any, method: dict[str, Any] = LORA) -> Run:
    rows = unequal(13)
    prepared = Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128))
    recipe = resolved(method=method, model=FP8, strategy=strategy, **a_step(world_size))
    return train(folder, prepared, recipe=recipe, model=model)


def fp8_again(folder: Path, world_size: int, strategy: str) -> Run:
    return fp8(folder, world_size, strategy, **AGAIN)


def fp8_offloaded(folder: Path, world_size: int, strategy: str) -> Run:
    """The fit writes into partitions that are in host memory."""
    offload = {"ddp": "none", "zero3": "all"}.get(strategy, "optimizer")
    return fp8(folder, world_size, strategy, offload=offload)


def fp8_biased(folder: Path, world_size: int, strategy: str) -> Run:
    """A family whose projections have biases, which lie outside the bytes."""
    return fp8_base_of(folder, world_size, strategy, build("qwen2"))


def fp8_some(folder: Path, world_size: int, strategy: str) -> Run:
    """Adapters on some projections: the others stay as they were loaded."""
    method = {**LORA, "target_modules": ["q_proj", "down_proj"]}
    return fp8_base_of(folder, world_size, strategy, tiny_model(intermediate_size=WIDTH), method)


def fp8_saved(folder: Path, world_size: int, strategy: str) -> Run:
    """With embeddings and head trained in full."""
    return fp8_base_of(folder, world_size, strategy, tiny_model(intermediate_size=WIDTH), SAVED)


def fp8_pissa(folder: Path, world_size: int, strategy: str) -> Run:
    """What PiSSA leaves of the base is what is rounded."""
    return fp8_base_of(folder, world_size, strategy, tiny_model(intermediate_size=WIDTH), PISSA)


def fp8_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    """DeepSpeed casts every float parameter to bf16, and the bytes must stay what they are."""
    return fp8_base_of(folder, world_size, strategy, tiny_model(intermediate_size=WIDTH).to(torch.bfloat16))


def fp8_dpo(folder: Path, world_size: int, strategy: str) -> Run:
    """The reference is measured on 16-bit matrices, which are there where weights are whole."""
    base = tiny_model(intermediate_size=WIDTH)
    return preferred(folder, world_size, strategy, method=LORA, objective=DPO, model=FP8, base=base)


def dora_again(folder: Path, world_size: int, strategy: str) -> Run:
    """Layers run again in the backward pass, by torch's checkpointing."""
    return dora(folder, world_size, strategy, **AGAIN)


def dora_wide(folder: Path, world_size: int, strategy: str) -> Run:
    """Adapters of a layer take several of DeepSpeed's buckets, and nothing before the first has a gradient."""
    return thirteen(folder, world_size, {**DORA, "r": 16}, strategy=strategy)


def dora_saved(folder: Path, world_size: int, strategy: str) -> Run:
    return thirteen(folder, world_size, {**SAVED, "use_dora": True}, strategy=strategy)


def dora_head(folder: Path, world_size: int, strategy: str) -> Run:
    """Norms of the head, which the loss reads outside of any layer."""
    method = {**DORA, "target_modules": ["q_proj", "down_proj", "lm_head"]}
    return thirteen(folder, world_size, method, strategy=strategy)


def dora_biased(folder: Path, world_size: int, strategy: str) -> Run:
    return thirteen(folder, world_size, DORA, strategy=strategy, model=build("qwen2"))


def dora_dpo(folder: Path, world_size: int, strategy: str) -> Run:
    return preferred(folder, world_size, strategy, method=DORA, objective=DPO)


def dora_offloaded(folder: Path, world_size: int, strategy: str) -> Run:
    offload = {"ddp": "none", "zero3": "all"}.get(strategy, "optimizer")
    return dora(folder, world_size, strategy, offload=offload)


def dora_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    """Magnitudes in bf16 with fp32 masters."""
    return dora(folder, world_size, strategy, model=tiny_model().to(torch.bfloat16))


def pissa_dpo(folder: Path, world_size: int, strategy: str) -> Run:
    """The reference is the start, which is the base."""
    return preferred(folder, world_size, strategy, method=PISSA, objective=DPO)


def pissa_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    return thirteen(folder, world_size, PISSA, strategy=strategy, model=tiny_model().to(torch.bfloat16))


CASES: dict[str, Case] = named(
    fp8, dora, pissa, olora, fp8_again, fp8_offloaded, fp8_biased, fp8_some, fp8_saved, fp8_pissa, fp8_bf16,
    fp8_dpo, dora_again, dora_wide, dora_saved, dora_head, dora_biased, dora_dpo, dora_offloaded, dora_bf16, pissa_dpo,
    pissa_bf16,
)  # fmt: skip
ONE = ("fp8", "dora", "pissa", "olora", "fp8_dpo", "fp8_biased", "dora_again", "dora_bf16")
"""Under ZeRO-1."""
RUNS = [(name, "zero1") for name in ONE]
RUNS += [
    (name, strategy) for name in CASES for strategy in ("zero2", "zero3")
    if name not in ("fp8", "dora", "pissa", "olora") and (name, strategy) != ("fp8_dpo", "zero3")
]  # fmt: skip
TIPPING = ("fp8_saved", "fp8_pissa", "fp8_bf16", "dora_bf16", "pissa_bf16")
"""In which a last bit of difference can become a visible one: in 16 bits, or where what a step changed is rounded to 8
bits, so that one code tips. Two processes under DDP differ from one there as well."""
RESUMED = [("fp8_again", "zero3"), ("fp8", "zero1"), ("pissa_dpo", "zero3"), ("dora", "zero1"), ("dora_bf16", "zero3")]
"""Whose folders `resumed_NAME-STRATEGY` hold the first half of a run of another number of processes."""


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    run_cases(folder, world_size, rank, wanted, cases=CASES, runs=RUNS, resumed=RESUMED)


if __name__ == "__main__":
    work(run_all)
