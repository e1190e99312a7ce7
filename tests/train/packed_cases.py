"""Runs on a 4-bit or 8-bit base, whole and in shards: cases of `worker.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.data.pack import pack
from luthier.fast.decoder.bases import unpack
from luthier.fast.loss import inner_model
from luthier.model.hosted import PackedStore
from luthier.model.packed import PackedLinear
from luthier.model.quantize import nf4_config, nf4_later
from luthier.runtime.env import read_env
from luthier.train.processes import make_accelerator
from luthier.train.setup import make_order, make_trainer
from tests.support.tiny import tiny_model
from tests.train.support import LORA, Data, Run, examples, resolved, train, tuned

QLORA = {"name": "qlora", "r": 4, "lora_alpha": 8.0}
NF4 = {"quantization": "nf4", "dequantize_base": False}
FP8 = {"quantization": "fp8"}
WIDTH = 96
"""Of the MLP."""


def nf4_model(*, whole: bool, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model in 4 bits (`whole`), or marked for it as the loader marks a model that is to be sharded."""
    model = tiny_model(intermediate_size=WIDTH).to(dtype)
    nf4_later(model, nf4_config(model.dtype))
    return model.to("cpu") if whole else model


def packed_run(
    folder: Path, world_size: int, rows: list[Any], *, model: dict[str, Any], method: dict[str, Any] = QLORA,
    **settings: Any,
) -> Run:  # fmt: skip
    """13 rows in packs, 4 a step, 6 steps, a checkpoint after 3; in shards where there are several processes."""
    recipe = resolved(
        method=method, model=model, strategy="fsdp2" if world_size > 1 else "ddp", max_steps=6, save_steps=3,
        eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4 // world_size, learning_rate=3e-3,
        **settings,
    )  # fmt: skip
    prepared = Data(rows, examples(5, seed=99), pack([len(row) for row in rows], 128))
    base = tiny_model(intermediate_size=WIDTH) if model == FP8 else nf4_model(whole=world_size == 1)
    return train(folder, prepared, recipe=recipe, model=base)


def _trainer(
    method: dict[str, Any], model: dict[str, Any], base: Any, strategy: str = "fsdp2"
) -> tuple[Any, Any, Any]:  # fmt: skip
    strategy = strategy if read_env().world_size > 1 else "ddp"
    recipe = resolved(method=method, model=model, strategy=strategy, max_steps=1)
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    subject = tuned(recipe, model=base).model
    return make_trainer(accelerator, subject, recipe.recipe, total_steps=1), subject, recipe.recipe


def _in_layers(trainer: Any, model: Any, read: Any) -> None:
    """Call `read(layer)` for each layer while its weights are whole."""
    layers = inner_model(model).get_decoder().layers
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: read(layer)) for layer in layers]
    with trainer.engine.inference(), torch.no_grad():
        trainer.engine.whole(lambda: [layer(torch.zeros(1, 2, 64), position_embeddings=_angles()) for layer in layers])
    for hook in hooks:
        hook.remove()


def _angles() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, 2, 16), torch.zeros(1, 2, 16)


def nf4_facts() -> dict[str, Any]:
    """What sharded 4-bit layers are made of, this process' share of the bytes, and whether they unpack to one
    process' values."""
    trainer, model, _ = _trainer(QLORA, NF4, nf4_model(whole=False))
    layers = inner_model(model).get_decoder().layers
    values: dict[str, torch.Tensor] = {}
    names = {id(module): name for name, module in layers.named_modules()}

    def read(layer: Any) -> None:
        for projection in layer.luthier_program.projections:
            for view in projection.views:
                values[names[id(view.base)].replace(".base_layer", "")] = unpack(view, torch.float32).clone()

    _in_layers(trainer, model, read)
    whole = nf4_model(whole=True).model.layers
    import bitsandbytes.functional as bnb

    expected = {name: whole.get_submodule(name).weight for name in values}
    linears = [module for module in layers.modules() if isinstance(module, PackedLinear)]
    first = layers[0].self_attn.q_proj.base_layer
    return {
        "layer": type(layers[0]).__name__, "linear": type(first).__name__,
        "parameter": type(first.weight.data).__name__,
        "bases": sorted({type(projection.base).__name__ for projection in layers[0].luthier_program.projections}),
        "held": sum(module.weight.to_local().numel() for module in linears),
        "all": sum(module.weight.numel() for module in linears), "compared": len(values), "matrices": len(linears),
        "same_values": all(
            torch.equal(value, bnb.dequantize_4bit(expected[name].data, expected[name].quant_state))
            for name, value in values.items()
        ),
    }  # fmt: skip


def fp8_base(strategy: str = "fsdp2") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(the fitted 8-bit matrices, facts); of one process without shards where there is only one."""
    from luthier.train.setup import fit_base

    trainer, model, recipe = _trainer(LORA, FP8, tiny_model(intermediate_size=WIDTH), strategy)
    rows = examples(13)
    packs = pack([len(row) for row in rows], 128)
    fit_base(trainer, rows, packs, order=make_order(recipe.train, sequences=len(packs), world_size=1))
    programs = trainer.engine._decoder.programs
    found: dict[str, torch.Tensor] = {}

    def read(program: Any) -> None:
        for index, projection in enumerate(program.projections):
            base = projection.base
            for name in ("rows_nk", "rows_scale", "columns_kn", "columns_scale"):
                found[f"{program.index}.{index}.{name}"] = getattr(base, name).view(torch.uint8).clone()

    layers = inner_model(model).get_decoder().layers
    if not torch.distributed.is_initialized():
        for program in programs:
            read(program)
        return found, {}
    stores = [module for module in layers.modules() if isinstance(module, PackedStore)]
    for layer in layers:
        with _whole(layer, strategy, [store.weight for store in stores]):
            read(layer.luthier_program)
    bases = [projection.base for program in programs for projection in program.projections]
    facts = {
        "bases": sorted({type(base).__name__ for base in bases}),
        "fitted": sum(base.kept_error is not None for base in bases),
        "held": sum(_part(store.weight).numel() for store in stores),
        "all": sum(getattr(store.weight, "ds_numel", store.weight.numel()) for store in stores),
        "kinds": sorted({str(store.weight.dtype) for store in stores}),
        "matrices_left": sum(
            hasattr(view.base, "store") and not view.base.weight.is_meta for base in bases for view in base.views
        ),
    }  # fmt: skip
    if strategy != "fsdp2":
        trainer.weights.close()
    return found, facts


@contextmanager
def _whole(layer: Any, strategy: str, parts: list[Any]) -> Iterator[None]:
    """What of `layer` is in shards or partitions, whole: put together from what each process holds."""
    if strategy == "fsdp2":
        layer.unshard()
        yield
        layer.reshard()
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([part for part in parts if hasattr(part, "ds_id")]):
        yield


def _part(weight: Any) -> torch.Tensor:
    return weight.ds_tensor if hasattr(weight, "ds_tensor") else weight.to_local()


def gathered_bytes(*, cast: bool) -> bool:
    """Whether every pattern of 16 bits comes through `fully_shard` beside 16-bit and 32-bit weights; `cast`: with the
    mixed precision that must not be on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Parameter(torch.ones(5, dtype=torch.bfloat16), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
            self.store = PackedStore([patterns])

        def forward(self) -> torch.Tensor:
            return self.store.parts()[0].clone()

    patterns = torch.arange(65536).to(torch.uint16).view(torch.uint8)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if cast else None, reduce_dtype=torch.float32)
    holder = fully_shard(
        Holder(), mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)), mp_policy=policy
    )
    try:
        with torch.no_grad():
            return torch.equal(holder(), patterns)
    except RuntimeError:  # half as many bytes
        return False
