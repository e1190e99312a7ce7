"""Runs on a 4-bit base, whole and in shards: cases of `worker.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier.data.pack import pack
from luthier.model.packed import PackedLinear
from luthier.model.quantize import nf4_config, nf4_later
from tests.support.tiny import tiny_model
from tests.train.support import Data, Run, resolved, train, tuned

QLORA = {"name": "qlora", "r": 4, "lora_alpha": 8.0}


def nf4_model(*, whole: bool, **settings: Any) -> Any:
    """The tiny model in 4 bits (`whole`), or marked for it as the loader marks a model that is to be sharded."""
    model = tiny_model(**settings)
    nf4_later(model, nf4_config(model.dtype))
    return model.to("cpu") if whole else model


def packed_run(folder: Path, world_size: int, rows: list[Any], held_out: list[Any], **more: Any) -> Run:
    """13 rows in packs, 4 a step, 6 steps, a checkpoint after 3."""
    quantization = {"quantization": "nf4", "dequantize_base": more.pop("keep_unpacked", False)}
    strategy = "fsdp2" if world_size > 1 else "ddp"
    recipe = resolved(
        method=QLORA, model=quantization, strategy=strategy, reshard=more.pop("reshard", True), max_steps=6,
        save_steps=3, eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4 // world_size,
        learning_rate=3e-3, **more,
    )  # fmt: skip
    prepared = Data(rows, held_out, pack([len(row) for row in rows], 128))
    # Two matrices of 96 x 64 have no number of bytes that the processes could share evenly in whole rows.
    return train(folder, prepared, recipe=recipe, model=nf4_model(whole=world_size == 1, intermediate_size=96))


def layer_facts() -> dict[str, Any]:
    """Of one process: what a sharded 4-bit layer is made of, its share of the bytes, and what it unpacks to."""
    from luthier.fast.decoder.bases import unpack
    from luthier.train.processes import make_accelerator
    from luthier.train.setup import make_trainer

    recipe = resolved(method=QLORA, model={"quantization": "nf4", "dequantize_base": False}, strategy="fsdp2")
    accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
    model = tuned(recipe, model=nf4_model(whole=False, intermediate_size=96)).model
    trainer = make_trainer(accelerator, model, recipe.recipe, total_steps=1)
    layers = model.get_decoder().layers
    linears = {name: child for name, child in layers.named_modules() if isinstance(child, PackedLinear)}
    values = {}

    def read(layer: Any, inputs: Any) -> None:
        for projection in layer.luthier_program.projections:
            for view in projection.views:
                values[id(view.base)] = unpack(view, torch.float32).clone()

    hooks = [layer.register_forward_pre_hook(read) for layer in layers]
    batch_of = torch.tensor([[5, 6, 7]])
    with trainer.engine.inference():
        trainer.wrapper.root(lambda: model.get_decoder()(input_ids=batch_of))
    for hook in hooks:
        hook.remove()
    whole = {name: module for name, module in nf4_model(whole=True, intermediate_size=96).model.layers.named_modules()}
    import bitsandbytes.functional as bnb

    same = {}
    for name, linear in linears.items():
        plain = whole[name.replace(".base_layer", "")]
        same[name] = torch.equal(values[id(linear)], bnb.dequantize_4bit(plain.weight.data, plain.weight.quant_state))
    held = sum(linear.weight.to_local().numel() * 4 for linear in linears.values())
    return {
        "layer": type(layers[0]).__name__, "linear": type(layers[0].self_attn.q_proj.base_layer).__name__,
        "parameter": type(layers[0].self_attn.q_proj.base_layer.weight.data).__name__,
        "bases": sorted({type(p.base).__name__ for p in layers[0].luthier_program.projections}),
        "held": held, "all": sum(linear.weight.numel() * 4 for linear in linears.values()),
        "same_values": all(same.values()), "compared": len(same),
    }  # fmt: skip
