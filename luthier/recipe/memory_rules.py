"""Rules of the keys that trade memory for time: storage of the base, recompute."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.positions import Locate
from luthier.recipe.schema import MethodSection, ModelSection, TrainSection
from luthier.runtime.errors import Problem

__all__ = ["base_rules", "recompute_rules"]


def base_rules(model: ModelSection, method: MethodSection, locate: Locate) -> Iterator[Problem]:
    """Storage of the base against the method: packed weights cannot be trained."""
    if method.name == "qlora" and model.quantization in ("none", "fp8"):
        message = f"method qlora trains on a 4-bit base, but `model.quantization` is {model.quantization}"
        yield locate("model.quantization").problem("C110", message, hint="write nf4, or method: {name: lora}")
    if method.name in {"full", "freeze", "spectrum"} and model.quantization in ("nf4", "fp8"):
        bits = {"nf4": "4-bit", "fp8": "8-bit"}[model.quantization]
        message = f"method {method.name} trains the weights themselves, and {bits} weights cannot be trained"
        adapters = {"nf4": "qlora", "fp8": "lora"}[model.quantization]
        hint = f"write none, or method: {{name: {adapters}}}"
        yield locate("model.quantization").problem("C110", message, hint=hint)
    if model.quantization == "fp8" and model.dtype in ("float32", "float16"):
        message = f"the products of an fp8 base come out in bfloat16, but `model.dtype` is {model.dtype}"
        yield locate("model.dtype").problem("C110", message, hint="write bfloat16 or auto")
    if model.quantization == "fp8" and method.name == "lora" and method.use_dora:
        message = "`model.quantization: fp8` would have no effect: layers with DoRA run as PEFT wrote them, in 16 bits"
        yield locate("model.quantization").problem("C111", message, hint="remove it, or `method.use_dora`")
    packed = model.quantization == "nf4" or (model.quantization == "auto" and method.name == "qlora")
    if model.dequantize_base is True and not packed:
        message = "`model.dequantize_base` would have no effect: the base is not nf4"
        yield locate("model.dequantize_base", on="key").problem("C111", message, hint="remove it")


def recompute_rules(train: TrainSection, locate: Locate) -> Iterator[Problem]:
    """Which layers are recomputed, and whether their attention is, without recompute."""
    some = isinstance(train.gradient_checkpointing_layers, int)
    if train.keeps_attention and (
        train.gradient_checkpointing is False or (train.gradient_checkpointing == "selective" and not some)
    ):
        key, said = "train.gradient_checkpointing_attention", str(train.gradient_checkpointing).lower()
        message = f"`{key}` would have no effect: with gradient_checkpointing {said} no layer runs again as a whole"
        yield locate(key, on="key").problem("C111", message, hint="remove it, or write gradient_checkpointing: true")
    attending, layers = train.gradient_checkpointing_attention, train.gradient_checkpointing_layers
    if train.keeps_attention and isinstance(attending, int) and isinstance(layers, int) and attending >= layers:
        key = "train.gradient_checkpointing_attention"
        message = f"`{key}` is {attending} and would have no effect: only {layers} layers run again as a whole"
        yield locate(key, on="key").problem("C111", message, hint="a smaller number, or true")
    if isinstance(train.gradient_checkpointing_layers, int) and train.gradient_checkpointing is False:
        key = "train.gradient_checkpointing_layers"
        message = f"`{key}` would have no effect: `train.gradient_checkpointing` is false"
        yield locate(key, on="key").problem("C111", message, hint="remove it, or write gradient_checkpointing: true")
