"""`layer.py` as one autograd function, and the module classes that call it.

`replace_decoder_layers` gives decoder layers of known families a subclass (instances, not the class of the
library) whose forward takes the function whenever it is called on packed documents, and the library's own
forward otherwise (generation, padded batches, merged or disabled adapters).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from luthier.fast.attention import Documents, note_window
from luthier.fast.decoder.final_norm import packed_norm_class
from luthier.fast.decoder.layer import Inputs, Kept, backward_layer, forward_layer
from luthier.fast.decoder.linears import NotPlain
from luthier.fast.decoder.program import LayerProgram
from luthier.fast.decoder.spec import read_norm, take_apart
from luthier.fast.settings import EngineSettings

__all__ = ["Replaced", "replace_decoder_layers"]

_FIELDS = tuple(field.name for field in fields(Kept))


class _Layer(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, program: LayerProgram, inputs: Inputs, *trained: Tensor) -> Tensor:
        y, kept = forward_layer(program, x, inputs, selective=program.policy == "selective")
        ctx.program = program
        ctx.rest = (inputs.cos, inputs.sin, inputs.documents, inputs.rows, inputs.masks)
        if not any(ctx.needs_input_grad):
            return y
        if program.policy == "layer":
            ctx.save_for_backward(x, *(kept.attended if program.keeps_attention else ()))
            return y
        extra = kept.attention
        single = [getattr(kept, name) for name in _FIELDS if name != "attention"]
        ctx.save_for_backward(*single, *extra)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        program: LayerProgram = ctx.program
        inputs = Inputs(*ctx.rest)
        saved = ctx.saved_tensors
        with torch.no_grad():
            if program.policy == "layer":
                attended = saved[1:] if program.keeps_attention else None
                kept = forward_layer(
                    program, saved[0].detach(), inputs, selective=False, again=True, attended=attended
                )[1]
            else:
                names = [name for name in _FIELDS if name != "attention"]
                single = dict(zip(names, saved, strict=False))
                kept = Kept(**single, attention=tuple(saved[len(names) :]))
            del saved
            dx, grads = backward_layer(program, dy.contiguous(), inputs, kept, input_needed=ctx.needs_input_grad[0])
        return (dx, None, None, *grads)


class Replaced:
    """Decoder layers that run on the layer function, and the way back."""

    def __init__(self) -> None:
        self.programs: list[LayerProgram] = []
        self.reasons: dict[str, int] = {}
        """Why layers were left alone, and how many."""
        self.last: LayerProgram | None = None
        """The last decoder layer, if it is replaced."""
        self.checkpointed: list[Any] = []
        """Other layers, for which transformers' own checkpointing was turned on."""
        self._modules: list[tuple[Any, type]] = []

    def add(self, module: Any, program: LayerProgram) -> None:
        """Make `module` run `program`."""
        self._modules.append((module, type(module)))
        self.programs.append(program)
        module.__class__ = _packed_class(type(module))
        module.luthier_program = program

    def add_final_norm(self, module: Any) -> None:
        """Run the norm after the last layer on the engine's kernels, if it is the family's norm."""
        try:
            norm = read_norm(self.programs[-1].parts.family, module)
        except NotPlain:
            return
        self._modules.append((module, type(module)))
        module.__class__ = packed_norm_class(type(module))
        module.luthier_norm = norm

    def restore(self) -> None:
        """Give every layer its class and every parameter a tensor of its own again."""
        for module, original in self._modules:
            module.__class__ = original
            for name in ("luthier_program", "luthier_norm"):
                module.__dict__.pop(name, None)
        for program in self.programs:
            program.restore()
        for layer in self.checkpointed:
            layer.gradient_checkpointing = False
        self.checkpointed = []
        self._modules, self.programs, self.last = [], [], None


def replace_decoder_layers(trunk: Any, settings: EngineSettings) -> Replaced:
    """Replace what can be replaced among the decoder layers of `trunk`."""
    replaced = Replaced()
    layers = list(getattr(trunk, "layers", ()))
    for index, layer in enumerate(layers):
        try:
            parts = take_apart(layer)
            dtype = parts.input_norm.weight.dtype
            program = LayerProgram(parts, settings, index=index, dtype=dtype)
        except NotPlain as reason:
            replaced.reasons[str(reason)] = replaced.reasons.get(str(reason), 0) + 1
            continue
        replaced.add(layer, program)
        if index == len(layers) - 1:
            replaced.last = program
    if replaced.programs and hasattr(trunk, "norm"):
        replaced.add_final_norm(trunk.norm)
    return replaced


_classes: dict[type, type] = {}


def _packed_class(original: type) -> type:
    """Subclass of a decoder layer that takes the layer function on packed documents."""
    if original not in _classes:
        _classes[original] = type(f"Packed{original.__name__}", (_PackedLayer, original), {})
    return _classes[original]


class _PackedLayer(nn.Module):  # type: ignore[misc]
    """Mixed in before the library's class."""

    luthier_program: LayerProgram

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Skip transformers' own checkpointing: the program recomputes as its policy says."""
        if self._takes_function(args, kwargs):
            return nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """(1, T, d) -> (1, T or S, d)."""
        if not self._takes_function(args, kwargs):
            return super().forward(*args, **kwargs)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        documents: Documents = kwargs["luthier_documents"]
        program = self.luthier_program
        note_window(program.parts.window)
        cos, sin = kwargs["position_embeddings"]
        masks = program.masks(self.training)
        # With dropout every row draws its numbers, needed or not: the same masks as PEFT's.
        all_rows = program.index != documents.last_layer or any(mask is not None for mask in masks)
        inputs = Inputs(cos[0], sin[0], documents, None if all_rows else documents.rows, masks)
        # `squeeze`, not `[0]`: the gradient of an index is a zero-filled copy.
        return _Layer.apply(hidden.squeeze(0), program, inputs, *program.leaves)[None]

    def _takes_function(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        hidden = args[0] if args else kwargs.get("hidden_states")
        return (
            hidden is not None
            and kwargs.get("luthier_documents") is not None
            and kwargs.get("attention_mask") is None
            and kwargs.get("past_key_values") is None
            and kwargs.get("position_embeddings") is not None
            and hidden.dim() == 3
            and hidden.shape[0] == 1
            and hidden.dtype == self.luthier_program.parts.input_norm.weight.dtype
            and not (self.training and self.self_attn.attention_dropout)
            and not torch.is_autocast_enabled(hidden.device.type)
            and self.luthier_program.unchanged()
        )
