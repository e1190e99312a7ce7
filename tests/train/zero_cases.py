"""Cases of `zero_worker.py` and `zero_more_worker.py`: what DeepSpeed's strategies are combined with.

Each takes (folder, number of processes, strategy) and runs with any of them, also in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luthier.data.pack import pack
from tests.support.pairs import pairs, preferences, rated
from tests.support.tiny import tiny_model
from tests.train.packed_cases import FP8, NF4, QLORA, WIDTH, nf4_model
from tests.train.sharded_worker import NEW_TOKENS, SAVED, reward_model
from tests.train.support import FULL, LORA, SPECTRUM, Data, Run, examples, resolved, train
from tests.train.worker import thirteen, unequal

__all__ = ["DORA", "FEW", "MORE", "Case", "full_bf16", "named", "offloaded_bf16", "saved_bf16"]

DORA = {**LORA, "use_dora": True}
Case = Callable[[Path, int, str], Run]


def saved(folder: Path, world_size: int, strategy: str) -> Run:
    """Embeddings and head trained in full beside adapters."""
    return thirteen(folder, world_size, SAVED, strategy=strategy)


def saved_tied(folder: Path, world_size: int, strategy: str) -> Run:
    """The same where both are one weight."""
    return thirteen(folder, world_size, SAVED, strategy=strategy, model=tiny_model(tied=True))


def saved_again(folder: Path, world_size: int, strategy: str) -> Run:
    """Layers run again in the backward pass, and a head that is more than its matrix: its chunks run again as well."""
    method = {**LORA, "modules_to_save": ["embed_tokens"], "target_modules": ["q_proj", "down_proj", "lm_head"]}
    return thirteen(folder, world_size, method, strategy=strategy, gradient_checkpointing=True)


def tokens(folder: Path, world_size: int, strategy: str) -> Run:
    """Rows of new tokens beside adapters."""
    return thirteen(folder, world_size, LORA, strategy=strategy, new_token_ids=NEW_TOKENS)


def tokens_tied(folder: Path, world_size: int, strategy: str) -> Run:
    """Rows of new tokens of a tied table."""
    return thirteen(
        folder, world_size, LORA, strategy=strategy, new_token_ids=NEW_TOKENS, model=tiny_model(tied=True)
    )  # fmt: skip


def spectrum_tied(folder: Path, world_size: int, strategy: str) -> Run:
    """Spectrum's choice with embeddings that are the head."""
    return thirteen(folder, world_size, SPECTRUM, strategy=strategy, model=tiny_model(tied=True))


def preferred(
    folder: Path, world_size: int, strategy: str, *, method: dict[str, Any], objective: dict[str, Any],
    base: Any = None, cache: Path | None = None, **settings: Any,
) -> Run:  # fmt: skip
    """13 pairs (rated answers for KTO) in 4 a step: in the last step one process has nothing at all."""
    rows = rated(13) if objective["name"] == "kto" else pairs(13)
    recipe = resolved(
        method=method, objective=objective, strategy=strategy, **a_step(world_size), **settings,
    )  # fmt: skip
    prepared = preferences(rows, validation=5)
    return train(folder, prepared, recipe=recipe, model=base, reference_cache=cache)  # type: ignore[arg-type]


def a_step(world_size: int) -> dict[str, Any]:
    """4 sequences a step, one at a time; 6 steps, a checkpoint and a validation after 3."""
    return {
        "max_steps": 6, "save_steps": 3, "eval_steps": 3, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4 // world_size, "learning_rate": 3e-3,
    }  # fmt: skip


def dpo_full(folder: Path, world_size: int, strategy: str) -> Run:
    return preferred(folder, world_size, strategy, method=FULL, objective={"name": "dpo", "beta": 0.3})


def dpo_lora(folder: Path, world_size: int, strategy: str) -> Run:
    """With a cache of the reference, which all processes look at together."""
    cache = folder.parent / f"reference-{strategy}"
    objective = {"name": "dpo", "beta": 0.3}
    return preferred(folder, world_size, strategy, method=LORA, objective=objective, cache=cache)


def kto_full(folder: Path, world_size: int, strategy: str) -> Run:
    return preferred(folder, world_size, strategy, method=FULL, objective={"name": "kto", "beta": 0.3})


def kto_saved(folder: Path, world_size: int, strategy: str) -> Run:
    """Embeddings and head beside adapters, layers run again in the backward pass."""
    objective, again = {"name": "kto", "beta": 0.3}, {"gradient_checkpointing": True}
    return preferred(folder, world_size, strategy, method=SAVED, objective=objective, **again)


def orpo_full(folder: Path, world_size: int, strategy: str) -> Run:
    return preferred(folder, world_size, strategy, method=FULL, objective={"name": "orpo", "beta": 0.3})


def simpo_lora(folder: Path, world_size: int, strategy: str) -> Run:
    objective = {"name": "simpo", "beta": 2.0, "simpo_gamma": 0.5}
    return preferred(folder, world_size, strategy, method=LORA, objective=objective)


def reward_full(folder: Path, world_size: int, strategy: str) -> Run:
    base = reward_model(folder.parent)
    return preferred(folder, world_size, strategy, method=FULL, objective={"name": "reward"}, base=base)


def reward_lora(folder: Path, world_size: int, strategy: str) -> Run:
    base = reward_model(folder.parent)
    return preferred(folder, world_size, strategy, method=LORA, objective={"name": "reward"}, base=base)


def nf4_base(world_size: int, strategy: str, dtype: torch.dtype = torch.float32) -> Any:
    """In 4 bits; under ZeRO-3 it waits in its own type to be quantised, as the loader leaves it."""
    return nf4_model(whole=world_size == 1 or strategy != "zero3", dtype=dtype)


def qlora(
    folder: Path, world_size: int, strategy: str, *, dtype: torch.dtype = torch.float32, **model: Any
) -> Run:  # fmt: skip
    """Bytes of a 4-bit base, unpacked in each layer's passes."""
    rows = unequal(13)
    prepared = Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128))
    recipe = resolved(method=QLORA, model={**NF4, **model}, strategy=strategy, **a_step(world_size))
    return train(folder, prepared, recipe=recipe, model=nf4_base(world_size, strategy, dtype))


def qlora_unpacked(folder: Path, world_size: int, strategy: str) -> Run:
    """Its values in the partitions, as any frozen base's."""
    return qlora(folder, world_size, strategy, dequantize_base=True)


def qlora_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    """DeepSpeed casts every float parameter to bf16, and the bytes must stay what they are."""
    return qlora(folder, world_size, strategy, dtype=torch.bfloat16)


def qlora_saved(folder: Path, world_size: int, strategy: str) -> Run:
    """DPO on a 4-bit base, with embeddings and head."""
    method = {**QLORA, "modules_to_save": ["embed_tokens", "lm_head"]}
    base = nf4_base(world_size, strategy)
    return preferred(
        folder, world_size, strategy, method=method, objective={"name": "dpo", "beta": 0.3}, model=NF4, base=base
    )  # fmt: skip


def fp8(folder: Path, world_size: int, strategy: str, **settings: Any) -> Run:
    """Two 8-bit copies of each projection, fitted; in fp32, so that nothing else rounds."""
    rows = unequal(13)
    prepared = Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128))
    recipe = resolved(method=LORA, model=FP8, strategy=strategy, **a_step(world_size), **settings)
    return train(folder, prepared, recipe=recipe, model=tiny_model(intermediate_size=WIDTH))


def dora(folder: Path, world_size: int, strategy: str, **settings: Any) -> Run:
    """Norms of W + BA in each pass: the layers run as PEFT wrote them, each gathered as one."""
    return thirteen(folder, world_size, DORA, strategy=strategy, **settings)


def pissa(folder: Path, world_size: int, strategy: str) -> Run:
    """Adapters are cut out of the whole base, and what is left of it goes into the partitions."""
    return thirteen(folder, world_size, {**LORA, "init_lora_weights": "pissa"}, strategy=strategy)


def olora(folder: Path, world_size: int, strategy: str) -> Run:
    return thirteen(folder, world_size, {**LORA, "init_lora_weights": "olora"}, strategy=strategy)


def bf16(folder: Path, world_size: int, strategy: str, method: dict[str, Any], **settings: Any) -> Run:
    """In 16 bits with fp32 masters, which checkpoints hold."""
    model = tiny_model().to(torch.bfloat16)
    return thirteen(folder, world_size, method, strategy=strategy, model=model, **settings)


def full_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    """Resumed from a checkpoint's masters."""
    return bf16(folder, world_size, strategy, FULL)


def saved_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    return bf16(folder, world_size, strategy, SAVED)


def tokens_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    return bf16(folder, world_size, strategy, LORA, new_token_ids=NEW_TOKENS)


def offloaded_bf16(folder: Path, world_size: int, strategy: str) -> Run:
    """Masters and moments in host memory."""
    return bf16(folder, world_size, strategy, FULL, offload="none" if strategy == "ddp" else "optimizer")


def named(*cases: Case) -> dict[str, Case]:
    """By their names."""
    return {case.__name__: case for case in cases}


FEW = named(saved_tied, tokens, kto_saved, qlora, fp8, dora, pissa, olora)
"""For `test_zero.py`, which runs with `make test-processes`."""
MORE = named(
    saved, saved_again, tokens_tied, spectrum_tied, dpo_full, dpo_lora, kto_full, orpo_full, simpo_lora, reward_full,
    reward_lora, qlora_unpacked, qlora_saved, qlora_bf16, saved_bf16, tokens_bf16,
)  # fmt: skip
