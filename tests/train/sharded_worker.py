"""One of several processes under torchrun: `python -m torch.distributed.run ... -m tests.train.sharded_worker FOLDER`.

What FSDP2 is combined with beyond plain tuning; each case also runs in one process (`test_sharded_more.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.data.pack import pack
from tests.support.pairs import pairs, preferences, rated
from tests.support.tiny import tiny_model
from tests.train.preference_support import tune
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, Data, Run, data, train, whole
from tests.train.torchrun import work
from tests.train.worker import thirteen, unequal, unequal_level

SAVED = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
NEW_TOKENS = (7, 300, 599)
"""Ids that occur in the rows: only their rows of embeddings and head are trained."""


def saved(folder: Path, world_size: int) -> Run:
    """Embeddings and head trained in full beside adapters."""
    return thirteen(folder, world_size, SAVED, strategy="fsdp2")


def saved_tied(folder: Path, world_size: int) -> Run:
    """The same where both are one weight."""
    return thirteen(folder, world_size, SAVED, strategy="fsdp2", model=tiny_model(tied=True))


def tokens(folder: Path, world_size: int) -> Run:
    """Rows of new tokens beside adapters."""
    return thirteen(folder, world_size, LORA, strategy="fsdp2", new_token_ids=NEW_TOKENS)


def tokens_tied(folder: Path, world_size: int) -> Run:
    """Rows of new tokens of a tied table; layers stay whole between their passes."""
    return thirteen(
        folder, world_size, LORA, strategy="fsdp2", reshard=False, new_token_ids=NEW_TOKENS, model=tiny_model(tied=True)
    )  # fmt: skip


def preferred(folder: Path, world_size: int, method: dict[str, Any], objective: dict[str, Any], **settings: Any) -> Run:
    """13 pairs (rated answers for KTO) in 4 a step: in the last step one process has nothing at all."""
    rows = rated(13) if objective["name"] == "kto" else pairs(13)
    return tune(
        folder, preferences(rows, validation=5), method=method, objective=objective, strategy="fsdp2", max_steps=6,
        save_steps=3, eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4 // world_size,
        learning_rate=3e-3, **settings,
    )  # fmt: skip


def dpo_full(folder: Path, world_size: int) -> Run:
    return preferred(folder, world_size, FULL, {"name": "dpo", "beta": 0.3})


def dpo_lora(folder: Path, world_size: int) -> Run:
    """With a cache of the reference, which all processes look at together."""
    settings = {"reference_cache": folder.parent / "reference"}
    return preferred(folder, world_size, LORA, {"name": "dpo", "beta": 0.3}, **settings)


def kto_full(folder: Path, world_size: int) -> Run:
    return preferred(folder, world_size, FULL, {"name": "kto", "beta": 0.3})


def kto_saved(folder: Path, world_size: int) -> Run:
    """Layers stay whole between their passes."""
    return preferred(folder, world_size, SAVED, {"name": "kto", "beta": 0.3}, reshard=False)


def orpo_full(folder: Path, world_size: int) -> Run:
    return preferred(folder, world_size, FULL, {"name": "orpo", "beta": 0.3})


def simpo_lora(folder: Path, world_size: int) -> Run:
    return preferred(folder, world_size, LORA, {"name": "simpo", "beta": 2.0, "simpo_gamma": 0.5})


def reward_model(folder: Path) -> Any:
    """The tiny model with a head of one output, from files, as a run loads it."""
    from luthier.model.load import load_base
    from luthier.recipe.schema import ModelSection
    from luthier.runtime.env import read_env
    from tests.support.tiny import save_tiny

    base = folder / "base"
    if read_env().rank == 0:
        save_tiny(base)
    torch.distributed.barrier() if read_env().world_size > 1 else None
    cpu = SimpleNamespace(type="cpu", torch_device=torch.device("cpu"), name="cpu")
    return load_base(ModelSection(name_or_path=str(base)), device=cpu, dtype="float32", reward_seed=3)


def reward_full(folder: Path, world_size: int) -> Run:
    """The head has one row: one process holds it, the other nothing of it."""
    return preferred(folder, world_size, FULL, {"name": "reward"}, model=reward_model(folder.parent))


def reward_lora(folder: Path, world_size: int) -> Run:
    return preferred(folder, world_size, LORA, {"name": "reward"}, model=reward_model(folder.parent))


def pissa(folder: Path, world_size: int) -> Run:
    """Each process takes its adapters out of the whole base, which is sharded after that."""
    return thirteen(folder, world_size, {**LORA, "init_lora_weights": "pissa"}, strategy="fsdp2")


def olora(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, {**LORA, "init_lora_weights": "olora"}, strategy="fsdp2")


def dora(folder: Path, world_size: int) -> Run:
    """Norms of W + BA in each pass: the layers run as PEFT wrote them, inside the passes that gather them."""
    return thirteen(folder, world_size, {**LORA, "use_dora": True}, strategy="fsdp2")


def dora_again(folder: Path, world_size: int) -> Run:
    """Layers run again in the backward pass."""
    return thirteen(folder, world_size, {**LORA, "use_dora": True}, strategy="fsdp2", gradient_checkpointing=True)


def adamw8(folder: Path, world_size: int) -> Run:
    """Moments in 8 bits: shards of all matrices are whole blocks, so blocks and values are those of one process.

    In fp64, for a gradient that is off by its last fp32 bit can tip a code, and that is a visible step.
    """
    return thirteen(folder, world_size, FULL, strategy="fsdp2", optim="adamw_8bit", model=tiny_model().double())


def adamw8_odd(folder: Path, world_size: int) -> Run:
    """602 rows of embeddings and head over two processes: no whole blocks, their moments stay in fp32."""
    model = tiny_model(vocab_size=602).double()
    return thirteen(folder, world_size, FULL, strategy="fsdp2", optim="adamw_8bit", model=model)


def adagrad(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", optim="adagrad")


def rmsprop(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", optim="rmsprop", learning_rate=3e-4)


def lion(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", optim="lion_32bit")


def level(folder: Path, world_size: int, method: dict[str, Any], *, steps: int = 5, **settings: Any) -> Run:
    """32 rows of 20 tokens, most trained tokens on one process, 8 a step in micro-batches of 4 over all processes."""
    return train(
        folder, data(unequal_level(32)), method=method, max_steps=steps, shuffle=False, strategy="fsdp2",
        per_device_train_batch_size=4 // world_size, gradient_accumulation_steps=2, **settings,
    )  # fmt: skip


def halved_forward(folder: Path, world_size: int) -> Run:
    """The last process runs out of memory in a forward pass of the second step; the other has memory enough."""
    with short_of_memory(30, after=2, rank=world_size - 1):
        return level(folder, world_size, FULL)


def halved_backward(folder: Path, world_size: int) -> Run:
    """In a backward pass, when most gradients are exchanged."""
    with short_of_memory(30, backward=True, after=2, rank=world_size - 1):
        return level(folder, world_size, FULL)


def halved_lora(folder: Path, world_size: int) -> Run:
    """Layers stay whole: after the embeddings there is no exchange in which the others could learn of it."""
    with short_of_memory(30, backward=True, after=3, rank=0):
        return level(folder, world_size, LORA, reshard=False)


def halved_before(folder: Path, world_size: int) -> Run:
    """Process 0 runs out of memory in the trial before the first step, with one pack a micro-batch."""
    rows = unequal(40)
    packed = Data(rows, [], pack([len(row) for row in rows], 200))
    with short_of_memory(120, rank=0):
        return train(
            folder, packed, method=FULL, strategy="fsdp2", max_steps=5, shuffle=False, calibrate=True,
            per_device_train_batch_size=1, gradient_accumulation_steps=2 // world_size,
        )  # fmt: skip


CASES: dict[str, Callable[[Path, int], Run]] = {
    case.__name__: case
    for case in (
        saved, saved_tied, tokens, tokens_tied, dpo_full, dpo_lora, kto_full, kto_saved, orpo_full, simpo_lora,
        reward_full, reward_lora, pissa, olora, dora, dora_again, adamw8,
        adamw8_odd, adagrad, rmsprop, lion, halved_forward, halved_backward, halved_lora, halved_before,
    )
}  # fmt: skip
RESUMED: dict[str, Callable[[Path, int], Run]] = {
    f"resumed_{case.__name__}": case
    for case in (saved_tied, tokens, dpo_full, kto_full, reward_full, pissa, dora, adamw8, adagrad)
}
"""Whose folders hold the first half of a run of another number of processes."""


def classes(model: Any) -> dict[str, Any]:
    """What the model is made of after its run: an exit code proves nothing."""
    names = {name: type(parameter.data).__name__ for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layer = (model.get_base_model() if hasattr(model, "peft_config") else model).get_decoder().layers[0]
    return {
        "layer": [kind.__name__ for kind in type(layer).__mro__],
        "trained": sorted({names[name] for name in trained}),
        "frozen": sorted({names[name] for name in names if name not in trained}),
        "names": sorted(trained),
    }


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    begun = {name: case for name, case in RESUMED.items() if (folder / name).exists()}
    for name, case in {**CASES, **begun}.items():
        if wanted and name not in wanted:
            continue
        run = case(folder / name, world_size)
        torch.distributed.barrier() if world_size > 1 else None
        weights = {key: whole(p.detach()).contiguous() for key, p in run.model.named_parameters() if p.requires_grad}
        save_file(weights, folder / f"{name}-{rank}.safetensors")
        facts = {"processes": torch.distributed.get_world_size(), **classes(run.model), **run.result.to_json()}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    work(run_all)
