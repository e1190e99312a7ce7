"""One of four processes under torchrun: `python -m torch.distributed.run ... -m tests.train.hybrid_worker FOLDER`.

Two copies of the model, each in two shards (`distributed.dp_replicate_size: 2`); each case also runs in one process
(`test_hybrid.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.data.pack import pack
from luthier.model.load import load_base
from luthier.recipe.schema import ModelSection
from luthier.runtime.device import pick_device
from tests.support.pairs import pairs, preferences
from tests.support.tiny import save_tiny, tiny_model
from tests.train.packed_cases import FP8, NF4, WIDTH, nf4_model
from tests.train.preference_support import tune
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, SPECTRUM, Data, Run, data, examples, resolved, train, whole
from tests.train.torchrun import work
from tests.train.worker import unequal, unequal_level

SAVED = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
QLORA = {"name": "qlora", "r": 4, "lora_alpha": 8.0}


def hybrid(
    folder: Path, world_size: int, method: dict[str, Any], *, a_step: int = 4, copies: int = 2, shared: int = 1,
    **settings: Any,
) -> Run:  # fmt: skip
    """13 rows in packs, nearly all trained tokens on one process; a last step that is not whole."""
    alone, shared, rows = world_size == 1, min(shared, world_size), unequal(13)
    held_out = examples(5, seed=99, low=7, high=31)
    return train(
        folder, Data(rows, held_out, pack([len(row) for row in rows], 128)), method=method, max_steps=6, save_steps=3,
        eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=a_step * shared // world_size,
        strategy="ddp" if alone else "fsdp2", copies=1 if alone else copies, shared=shared,
        **{"learning_rate": 3e-3, **settings},
    )  # fmt: skip


def full(folder: Path, n: int) -> Run:
    """Checkpoints are served, too."""
    return hybrid(folder, n, FULL, served=True)


def full_clipped(folder: Path, n: int) -> Run:
    """SGD sees the size of a gradient, which AdamW divides out: a norm over all copies would clip otherwise."""
    return hybrid(folder, n, FULL, optim="sgd", learning_rate=3e-1, max_grad_norm=0.3)


def full_two_passes(folder: Path, n: int) -> Run:
    return hybrid(folder, n, FULL, a_step=8)


def full_hollow(folder: Path, n: int) -> Run:
    """Each process reads only its rows."""
    if n == 1:
        return hybrid(folder, n, FULL)
    section = ModelSection(name_or_path=str(folder.parent / "base"))  # as `tiny_model` makes it
    model = load_base(section, device=pick_device(), dtype="float32", hollow=True)
    return hybrid(folder, n, FULL, model=model)


def full_uneven(folder: Path, n: int) -> Run:
    """601 rows of embeddings and head over two processes."""
    return hybrid(folder, n, FULL, model=tiny_model(vocab_size=601))


def full_8bit(folder: Path, n: int) -> Run:
    """Moments in 8 bits, whose blocks are those of one process; in fp64, see `sharded_worker.py: adamw8`."""
    return hybrid(folder, n, FULL, optim="adamw_8bit", model=tiny_model().double())


def full_offloaded(folder: Path, n: int) -> Run:
    return hybrid(folder, n, FULL, offload="none" if n == 1 else "all")


def full_updated_on_host(folder: Path, n: int) -> Run:
    return hybrid(folder, n, FULL, offload="none" if n == 1 else "optimizer")


def spectrum(folder: Path, n: int) -> Run:
    """Layers stay whole between their passes."""
    return hybrid(folder, n, SPECTRUM, reshard=False)


def lora(folder: Path, n: int) -> Run:
    return hybrid(folder, n, LORA)


def lora_saved(folder: Path, n: int) -> Run:
    """Embeddings and head trained in full beside adapters, whole on each process."""
    return hybrid(folder, n, SAVED)


def lora_hollow(folder: Path, n: int) -> Run:
    if n == 1:
        return hybrid(folder, n, LORA)
    section = ModelSection(name_or_path=str(folder.parent / "base"))
    return hybrid(folder, n, LORA, model=load_base(section, device=pick_device(), dtype="float32", hollow=True))


def packed(folder: Path, n: int, model: dict[str, Any], method: dict[str, Any]) -> Run:
    """A base in 4 or 8 bits."""
    rows = unequal(13)
    recipe = resolved(
        method=method, model=model, strategy="fsdp2" if n > 1 else "ddp", copies=2 if n > 1 else 1, max_steps=6,
        save_steps=3, eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4 // n,
        learning_rate=3e-3,
    )  # fmt: skip
    base = tiny_model(intermediate_size=WIDTH) if model == FP8 else nf4_model(whole=n == 1)
    return train(
        folder, Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128)), recipe=recipe, model=base
    )


def qlora(folder: Path, n: int) -> Run:
    return packed(folder, n, NF4, QLORA)


def lora_fp8(folder: Path, n: int) -> Run:
    return packed(folder, n, FP8, LORA)


def dpo(folder: Path, n: int) -> Run:
    """13 pairs, 4 a step: in the last step three processes have nothing at all."""
    return tune(
        folder, preferences(pairs(13), validation=5), method=FULL, objective={"name": "dpo", "beta": 0.3},
        strategy="fsdp2" if n > 1 else "ddp", copies=2 if n > 1 else 1, max_steps=6, save_steps=3, eval_steps=3,
        per_device_train_batch_size=1, gradient_accumulation_steps=4 // n, learning_rate=3e-3,
    )  # fmt: skip


def shared_in_a_copy(folder: Path, n: int) -> Run:
    """The two processes of a copy share their sequences."""
    return hybrid(folder, n, FULL, shared=2)


def shared_by_all(folder: Path, n: int) -> Run:
    """Both copies share each sequence."""
    return hybrid(folder, n, LORA, shared=4, gradient_checkpointing=True)


def halved(folder: Path, n: int) -> Run:
    """A process of the second copy runs out of memory in a backward pass: all of both copies leave it."""
    with short_of_memory(30, backward=True, after=2, rank=n - 1):
        return train(
            folder, data(unequal_level(32)), method=FULL, max_steps=5, shuffle=False,
            strategy="fsdp2" if n > 1 else "ddp", copies=2 if n > 1 else 1, per_device_train_batch_size=8 // n,
            gradient_accumulation_steps=2,
        )  # fmt: skip


CASES: dict[str, Callable[[Path, int], Run]] = {
    case.__name__: case
    for case in (
        full, full_clipped, full_two_passes, full_hollow, full_uneven, full_8bit, full_offloaded, full_updated_on_host,
        spectrum, lora, lora_saved, lora_hollow, qlora, lora_fp8, dpo, shared_in_a_copy, shared_by_all, halved,
    )
}  # fmt: skip
RESUMED: dict[str, Callable[[Path, int], Run]] = {
    f"resumed_{case.__name__}": case for case in (full, lora, qlora, full_8bit, full_updated_on_host)
}
"""Whose folders hold the first half of a run of one process."""


def half(source: Path, target: Path) -> None:
    """A run that was interrupted after its checkpoint of step 3."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints/step-6")
    shutil.rmtree(target / "final")


def regrouped(folder: Path, n: int) -> dict[str, Run]:
    """Half of a run in four shards goes on in two copies of two, and the other way round."""
    first = hybrid(folder / "four", n, FULL, copies=1)
    found = {"four": first}
    for name, source, copies in (("four_to_hybrid", "four", 2), ("hybrid_to_four", "full", 1)):
        if torch.distributed.get_rank() == 0:
            half(folder / source, folder / name)
        torch.distributed.barrier()
        found[name] = hybrid(folder / name, n, FULL, copies=copies, served=source == "full")
    return found


def classes(model: Any) -> dict[str, Any]:
    """What the model is made of after its run: an exit code proves nothing."""
    parameters = dict(model.named_parameters())
    sharded = [p for p in parameters.values() if hasattr(p, "device_mesh")]
    mesh = sharded[0].device_mesh
    layer = (model.get_base_model() if hasattr(model, "peft_config") else model).get_decoder().layers[0]
    trained = {type(p.data).__name__ for p in parameters.values() if p.requires_grad}
    return {
        "layer": [kind.__name__ for kind in type(layer).__mro__], "mesh": mesh.mesh.tolist(),
        "placements": sorted({str(p.placements) for p in sharded}), "trained": sorted(trained),
        "held": sum(p.to_local().numel() for p in sharded), "whole": sum(p.numel() for p in sharded),
        "copy": torch.distributed.get_process_group_ranks(mesh.get_group(mesh.ndim - 1)),
        "timeouts": [mesh.get_group(axis)._get_backend(torch.device("cpu")).options._timeout.total_seconds()
                     for axis in range(mesh.ndim)],
    }  # fmt: skip


def keep(folder: Path, name: str, run: Run, rank: int) -> None:
    torch.distributed.barrier()
    weights = {key: whole(p.detach()).contiguous() for key, p in run.model.named_parameters() if p.requires_grad}
    save_file(weights, folder / f"{name}-{rank}.safetensors")
    facts = {"world": torch.distributed.get_world_size(), **classes(run.model), **run.result.to_json()}
    (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))


def run_all(folder: Path, world_size: int, rank: int, wanted: list[str]) -> None:
    if rank == 0:
        save_tiny(folder / "base")
    torch.distributed.barrier()
    begun = {name: case for name, case in RESUMED.items() if (folder / name).exists()}
    for name, case in {**CASES, **begun}.items():
        if not wanted or name in wanted:
            keep(folder, name, case(folder / name, world_size), rank)
    if not wanted or "four" in wanted:
        for name, run in regrouped(folder, world_size).items():
            keep(folder, name, run, rank)


if __name__ == "__main__":
    work(run_all)
