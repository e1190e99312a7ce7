"""One of several processes under torchrun: `python -m torch.distributed.run ... -m tests.train.worker FOLDER`.

Runs the cases named below and writes what each came to, from every process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.data.pack import pack
from luthier.data.types import Example, RowRef
from luthier.model.load import load_base
from luthier.recipe.schema import ModelSection
from luthier.runtime.console import set_quiet
from luthier.runtime.device import pick_device
from luthier.runtime.env import read_env
from luthier.runtime.errors import LuthierError
from tests.support.pairs import pairs, preferences, rated
from tests.support.tiny import tiny_model
from tests.train.packed_cases import FP8, NF4, fp8_base, gathered_bytes, nf4_facts, packed_run
from tests.train.preference_support import tune
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, SPECTRUM, Data, Run, data, examples, resolved, train, tuned, whole

EIGHT = {"shuffle": False, "eval_steps": 3, "max_steps": 6}


def unequal(n: int) -> list[Example]:
    """Every other row, so one of two processes, has nearly all trained tokens: a mean of means is far off."""
    rows = examples(n, low=20, high=60)
    return [
        row
        if index % 2
        else Example(ids=row.ids, weights=[0.0] * (len(row) - 1) + [1.0], ref=RowRef("rows", index + 1))
        for index, row in enumerate(rows)
    ]


def unequal_level(n: int) -> list[Example]:
    """As `unequal`, every row of 20 tokens."""
    ids = examples(n, low=20, high=20)
    return [
        Example(ids=row.ids, weights=[0.0] * (19 - 15 * (index % 2)) + [1.0] * (1 + 15 * (index % 2)), ref=row.ref)
        for index, row in enumerate(ids)
    ]


def per_process(world_size: int, total: int = 8) -> dict[str, int]:
    return {"per_device_train_batch_size": total // world_size, "gradient_accumulation_steps": 1}


def full(folder: Path, world_size: int) -> Run:
    return train(folder, data(unequal(48), validation=7), method=FULL, **EIGHT, **per_process(world_size))


def lora(folder: Path, world_size: int) -> Run:
    settings = {**EIGHT, **per_process(world_size), "learning_rate": 5e-3}
    return train(folder, data(unequal(48), validation=7), method=LORA, **settings)


def uneven_tail(folder: Path, world_size: int) -> Run:
    """13 rows, 8 a step in micro-batches of 2: 5 in the last step, 3 and 2, one micro-batch half, one empty."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // world_size}
    return train(folder, data(unequal(13), validation=5), num_train_epochs=3, shuffle=False, **settings)


def thirteen(folder: Path, world_size: int, method: dict[str, Any], **settings: Any) -> Run:
    """13 rows in packs, 4 a step: nearly all trained tokens on one process, and a last step that is not whole."""
    rows = unequal(13)
    packed = Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128))
    return train(
        folder, packed, method=method, max_steps=6, save_steps=3, eval_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // world_size, **{"learning_rate": 3e-3, **settings},
    )  # fmt: skip


def thirteen_full(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL)


def thirteen_lora(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, LORA)


def thirteen_spectrum(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, SPECTRUM)


def sharded_full(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", served=True)


def sharded_lora(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, LORA, strategy="fsdp2")


def sharded_spectrum(folder: Path, world_size: int) -> Run:
    """Layers stay whole between the passes, also after the engine's probes, which precede the shards' first use."""
    return thirteen(folder, world_size, SPECTRUM, strategy="fsdp2", reshard=False)


def sharded_hollow(folder: Path, world_size: int) -> Run:
    """As `sharded_full`, with a model of which each process reads only its rows."""
    if world_size == 1:
        return thirteen(folder, world_size, FULL)
    section = ModelSection(name_or_path=str(folder.parent / "base"))  # as `tiny_model` makes it
    model = load_base(section, device=pick_device(), dtype="float32", hollow=True)
    return thirteen(folder, world_size, FULL, strategy="fsdp2", model=model)


def offloaded_all(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", offload="all")


def offloaded_optimizer(folder: Path, world_size: int) -> Run:
    return thirteen(folder, world_size, FULL, strategy="fsdp2", offload="optimizer")


def shared(folder: Path, world_size: int, method: dict[str, Any], **settings: Any) -> Run:
    """As `thirteen`, every sequence shared by all processes: documents cross the split, and so do targets."""
    rows = unequal(13)
    packed = Data(rows, examples(5, seed=99, low=7, high=31), pack([len(row) for row in rows], 128))
    return train(
        folder, packed, method=method, max_steps=6, save_steps=3, eval_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=4, learning_rate=3e-3, shared=world_size, **settings,
    )  # fmt: skip


def shared_full(folder: Path, world_size: int) -> Run:
    return shared(folder, world_size, FULL)


def shared_lora(folder: Path, world_size: int) -> Run:
    return shared(folder, world_size, LORA, gradient_checkpointing=True)


def shared_spectrum(folder: Path, world_size: int) -> Run:
    return shared(folder, world_size, SPECTRUM, strategy="fsdp2", gradient_checkpointing="selective")


def shared_one_half(folder: Path, world_size: int) -> Run:
    """Rows of odd lengths, alone, trained in their last tokens: process 0 has no target in any step."""
    rows = [
        Example(ids=row.ids, weights=[0.0] * (len(row) - 5) + [1.0] * 5, ref=row.ref)
        for row in examples(13, low=21, high=21)
    ]
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "shared": world_size}
    return train(folder, data(rows, validation=3), num_train_epochs=1, eval_steps=2, shuffle=False, **settings)


def sharded_qlora(folder: Path, world_size: int) -> Run:
    return packed_run(folder, world_size, unequal(13), model=NF4)


def sharded_qlora_unpacked(folder: Path, world_size: int) -> Run:
    return packed_run(folder, world_size, unequal(13), model={**NF4, "dequantize_base": True})


def sharded_fp8(folder: Path, world_size: int) -> Run:
    """In fp32: an 8-bit base without the rounding of 16-bit activations."""
    return packed_run(folder, world_size, unequal(13), model=FP8, method=LORA, gradient_checkpointing=True)


def sharded_bf16(folder: Path, world_size: int) -> Run:
    recipe = resolved(method=FULL, strategy="fsdp2", **EIGHT, **per_process(world_size))
    return train(folder, data(unequal(48)), recipe=recipe, model=tiny_model().to(torch.bfloat16))


def one_row_in_the_last_step(folder: Path, world_size: int) -> Run:
    """9 rows, 8 a step: one process has nothing at all in the second step."""
    return train(folder, data(unequal(9)), num_train_epochs=3, shuffle=False, **per_process(world_size))


def bf16(folder: Path, world_size: int) -> Run:
    recipe = resolved(method=FULL, **EIGHT, **per_process(world_size))
    return train(folder, data(unequal(48)), recipe=recipe, model=tiny_model().to(torch.bfloat16))


def halved(folder: Path, world_size: int) -> Run:
    """The last process runs out of memory in a backward pass of the second step; the other has memory enough."""
    settings = {"per_device_train_batch_size": 4 // world_size, "gradient_accumulation_steps": 2}
    with short_of_memory(30, backward=True, after=2, rank=world_size - 1):
        return train(folder, data(unequal_level(32)), max_steps=5, shuffle=False, **settings)


def halved_by_documents(folder: Path, world_size: int) -> Run:
    """Process 0 runs out of memory in the calibration, with one pack a micro-batch; parts differ in number by rank."""
    rows = unequal(40)
    packed = pack([len(row) for row in rows], 200)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2 // world_size, "max_steps": 5}
    with short_of_memory(120, rank=0):
        return train(folder, Data(rows, [], packed), shuffle=False, calibrate=True, **settings)


def dpo(folder: Path, world_size: int) -> Run:
    """13 pairs, 8 a step: one process has fewer rows in the last step, and so its means have no say."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4 // world_size}
    prepared = preferences(pairs(13), validation=5)
    return tune(folder, prepared, num_train_epochs=3, shuffle=False, eval_steps=2, **settings)


def kto(folder: Path, world_size: int) -> Run:
    """9 rated answers, 8 a step: the reference point of a step is that of both processes' rows."""
    objective = {"name": "kto", "beta": 0.3}
    prepared = preferences(rated(9), validation=5)
    return tune(folder, prepared, objective=objective, num_train_epochs=3, shuffle=False, eval_steps=2,
                **per_process(world_size))  # fmt: skip


def sharded_kto(folder: Path, world_size: int) -> Run:
    """9 rated answers, 8 a step, embeddings and head beside adapters: one process has no row, but every pass."""
    objective = {"name": "kto", "beta": 0.3}
    prepared = preferences(rated(9), validation=5)
    method = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
    return tune(folder, prepared, objective=objective, method=method, num_train_epochs=3, shuffle=False, eval_steps=2,
                strategy="fsdp2", **per_process(world_size))  # fmt: skip


def sharded_halved(folder: Path, world_size: int) -> Run:
    """As `halved`, inside of the passes that all make together."""
    settings = {"per_device_train_batch_size": 4 // world_size, "gradient_accumulation_steps": 2, "strategy": "fsdp2"}
    with short_of_memory(30, backward=True, after=2, rank=world_size - 1):
        return train(folder, data(unequal_level(32)), max_steps=3, shuffle=False, **settings)


CASES: dict[str, Callable[[Path, int], Run]] = {
    case.__name__: case
    for case in (
        full, lora, uneven_tail, one_row_in_the_last_step, bf16, halved, halved_by_documents, dpo, kto,
        thirteen_full, thirteen_lora, thirteen_spectrum, sharded_full, sharded_lora, sharded_spectrum, sharded_bf16,
        shared_full, shared_lora, shared_spectrum, shared_one_half,
        sharded_hollow, offloaded_all, offloaded_optimizer,
        sharded_kto, sharded_halved,
        sharded_qlora, sharded_qlora_unpacked, sharded_fp8,
    )
}  # fmt: skip
RESUMED: dict[str, Callable[[Path, int], Run]] = {
    f"resumed_{case.__name__}": case
    for case in (thirteen_full, thirteen_lora, sharded_full, sharded_spectrum, shared_lora, sharded_qlora)
}
"""Whose folders hold the first half of a run of another number of processes."""


def failures(folder: Path, world_size: int) -> dict[str, Any]:
    """What every process says when one of them meets a NaN, or cannot save."""
    found: dict[str, Any] = {}
    rows = examples(16)
    rows[9] = Example(ids=[599, *rows[9].ids[1:]], weights=rows[9].weights, ref=rows[9].ref)
    clean = [Example(ids=[4 if i == 599 else i for i in r.ids], weights=r.weights, ref=r.ref) for r in rows]
    clean[9] = rows[9]
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[599] = float("nan")
    found["nan"] = _error(
        lambda: train(folder / "nan", data(clean), model=model, shuffle=False, **per_process(world_size))
    )
    blocked = folder / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "checkpoints").touch()
    too_long = examples(8, low=40, high=40)
    with short_of_memory(30, rank=0):
        found["too long"] = _error(
            lambda: train(folder / "long", data(too_long), max_steps=1, shuffle=False, **per_process(world_size))
        )
    found["blocked"] = _error(lambda: train(blocked, data(rows), max_steps=1, **per_process(world_size)))
    return found


def _error(action: Callable[[], Any]) -> dict[str, Any] | None:
    try:
        action()
    except LuthierError as error:
        return {"type": type(error).__name__, "text": str(error), "exit_code": error.exit_code}
    return None


def wrapper_of(strategy: str, offload: str = "none") -> dict[str, Any]:
    """What the loss really runs through: an exit code proves nothing."""
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import make_trainer

    recipe = resolved(strategy=strategy, offload=offload)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    model = tuned(recipe).model
    trainer = make_trainer(accelerator, model, recipe.recipe, total_steps=1)
    layer = model.get_decoder().layers[0]
    return {
        "processes": accelerator.num_processes,
        "kind": str(accelerator.distributed_type),
        "wrapper": type(trainer.wrapper).__name__,
        "root": type(getattr(trainer.wrapper, "root", None)).__name__,
        "layer": type(layer).__name__,
        "weight": type(layer.self_attn.q_proj.weight).__name__,
        "parameter": type(layer.self_attn.q_proj.weight.data).__name__,
        "weights": type(trainer.weights).__name__,
        "policies": sorted(
            {
                type(module._get_fsdp_state()._fsdp_param_group.offload_policy).__name__
                for module in model.modules()
                if hasattr(module, "_get_fsdp_state")
            }
        ),
        "devices": sorted({str(tensor.device) for tensor in trainer.weights.tensors.values()}),
        "masters": len(trainer.weights.masters),
        "held": sum(tensor.numel() for tensor in trainer.weights.tensors.values()),
        "whole": sum(parameter.numel() for parameter in model.parameters()),
    }


def rows_of_a_shared_sequence() -> dict[str, Any]:
    """Rows of hidden states and heads that this process really has, seen from inside the model."""
    from luthier.fast.decoder import shared_attention
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import make_feed, make_order, make_trainer
    from luthier.train.step import forward_backward

    recipe = resolved(shared=2, per_device_train_batch_size=2).recipe
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    model = tuned(resolved()).model
    trainer = make_trainer(accelerator, model, recipe, total_steps=1)
    rows = examples(2, low=21, high=21) + examples(2, low=32, high=32)
    prepared = data([rows[0], rows[2]])
    order = make_order(recipe.train, sequences=2, world_size=2, parts=2)
    feed = make_feed(
        accelerator, order, recipe.train, examples=prepared.train, packs=prepared.packs, size=None, parts=2
    )
    seen: dict[str, Any] = {"embedded": [], "layers": []}
    trunk = model.get_decoder()
    trunk.embed_tokens.register_forward_hook(lambda _, __, out: seen["embedded"].append(list(out.shape)))
    for layer in trunk.layers:
        layer.register_forward_pre_hook(lambda _, args: seen["layers"].append(list(args[0].shape)))
    attended: list[list[int]] = []
    original = shared_attention.attend
    shared_attention.attend = lambda q, k, v, *rest, **named: (
        attended.append([list(part.shape) for part in (q, k, v)]) or original(q, k, v, *rest, **named)
    )
    try:
        forward_backward(trainer, feed.step(0)[0], step=0, scale=1.0)
    finally:
        shared_attention.attend = original
    return {
        **seen, "attended": attended, "tokens": feed.step(0)[0].batch.tokens, "wrapper": type(trainer.wrapper).__name__,
        "layer": type(trunk.layers[0]).__name__, "groups": feed.groups, "sequences": order.sequences_per_step,
    }  # fmt: skip


def run_all(folder: Path, world_size: int, rank: int) -> None:
    begun = {name: case for name, case in RESUMED.items() if (folder / name).exists()}
    for name, case in {**CASES, **begun}.items():
        run = case(folder / name, world_size)
        torch.distributed.barrier() if world_size > 1 else None
        weights = {key: whole(p.detach()) for key, p in run.model.named_parameters() if p.requires_grad}
        save_file(weights, folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps({**run.result.to_json(), "moved": run.moved}))
    base, fp8 = fp8_base()
    save_file(base, folder / f"fp8_base-{rank}.safetensors")
    bytes_kept = {"as they are": gathered_bytes(cast=False), "cast": gathered_bytes(cast=True)}
    packed = {"nf4": nf4_facts(), "fp8": fp8, "bytes_kept": bytes_kept}
    facts = {
        **wrapper_of("ddp"),
        "sharded": wrapper_of("fsdp2"),
        **{f"offload {kind}": wrapper_of("fsdp2", kind) for kind in ("all", "optimizer")},
        "packed": packed,
        "shared": rows_of_a_shared_sequence(),
        **failures(folder, world_size),
    }
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_quiet(True)
    run_all(Path(sys.argv[1]), read_env().world_size, read_env().rank)
    if torch.distributed.is_initialized():
        # One that leaves while the other still talks to it makes that one abort.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
