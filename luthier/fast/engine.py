"""The execution engine: how a batch becomes a loss, fast where the model allows it and right everywhere.

    engine = attach(model)              # a probe decides layout and head; `engine.report` says what and why
    sums = engine.loss(batch)           # SUM over targets of weight x loss; the caller divides by the global weight
    with engine.inference(): ...        # the model's own attention, for generate() and plain forwards

`attach` changes two things in the model, and `engine.detach()` takes both back: the name of its attention
implementation, and the classes of linear layers named in the report (parameters and names stay). It works
on transformers models and on PEFT models; under DDP the wrapper goes around `engine.module`
(`engine.distribute`), so that the loss runs inside the wrapper's forward and its gradient hooks fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.fast.attention import NAME, has_varlen_kernel, register
from luthier.fast.head import linear_cross_entropy, logits_cross_entropy, module_cross_entropy, plain_linear
from luthier.fast.hidden import Layout, model_inputs
from luthier.fast.linear import Undo, replace_layers, restore_layers
from luthier.fast.probe import HeadFinding, probe_head, probe_layout
from luthier.runtime.errors import Problem, RunFailed
from luthier.runtime.malloc import keep_freed_memory

__all__ = ["Engine", "LossModule", "LossSums", "Part", "attach"]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the report: what a part of the model runs on, and why."""

    name: str
    runs: str
    reason: str


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the targets of one batch; divide by the weight of the whole update."""

    loss: Tensor
    """fp32 scalar with gradient: sum of weight x loss."""
    weight_sum: float
    correct: Tensor
    """int64 scalar: targets that are the arg max, unweighted."""


class LossModule(nn.Module):  # type: ignore[misc]
    """Model and loss as one module: `forward(batch)` -> (loss sum, correct count). This is what DDP wraps."""

    def __init__(self, model: nn.Module, *, layout: Layout, finding: HeadFinding, neftune_noise_alpha: float) -> None:
        super().__init__()
        self.model = model
        self.layout: Layout = layout
        self.finding = finding
        self.neftune_noise_alpha = neftune_noise_alpha

    def forward(self, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss sum and correct count of one batch."""
        base = inner_model(self.model)
        inputs = model_inputs(batch, self.layout)
        if self.training and self.neftune_noise_alpha > 0.0:
            inputs.embed(base.get_input_embeddings(), noise_alpha=self.neftune_noise_alpha)
        rows = inputs.rows(batch.source_index)
        if self.finding.kind == "model":
            logits = base(**inputs.kwargs).logits.flatten(0, 1)[rows]
            return logits_cross_entropy(logits, batch.target_ids, batch.target_weights, label_smoothing=label_smoothing)
        hidden = base.get_decoder()(**inputs.kwargs)[0].flatten(0, 1)[rows]
        settings: dict[str, Any] = {
            "target_ids_s": batch.target_ids, "target_weights_s": batch.target_weights,
            "label_smoothing": label_smoothing, "transform": self.finding.transform,
        }  # fmt: skip
        head = base.get_output_embeddings()
        linear = plain_linear(head)
        if linear is None:
            vocab_size = base.get_input_embeddings().weight.shape[0]
            return module_cross_entropy(hidden, head, vocab_size=vocab_size, **settings)
        return linear_cross_entropy(hidden, linear.weight, bias_v=linear.bias, **settings)


class Engine:
    """A model with its way of computing the loss. Made by `attach`."""

    def __init__(self, module: LossModule, report: tuple[Part, ...], undo: Undo) -> None:
        self.module = module
        self.report = report
        self._undo = undo
        self._callable: nn.Module = module
        self._own_attention = _attention_names(module.model)
        self._switch(NAME if self.layout == "flat" else None)

    @property
    def layout(self) -> Layout:
        """`flat` or `padded`."""
        return self.module.layout

    def loss(self, batch: Batch, *, label_smoothing: float = 0.0) -> LossSums:
        """Sums over the batch's targets; see `LossSums`. Noise and dropout follow the model's training mode."""
        self.module.training = self.module.model.training
        loss, correct = self._callable(batch, label_smoothing)
        return LossSums(loss=loss, weight_sum=batch.weight_sum, correct=correct)

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Run the loss through `wrap(engine.module)` from now on, for instance DDP; returns the wrapper."""
        self._callable = wrap(self.module)
        return self._callable

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The attention the model came with, for `generate` and plain forwards."""
        self._switch(None)
        try:
            yield
        finally:
            self._switch(NAME if self.layout == "flat" else None)

    def detach(self) -> None:
        """Give the model back as it came: its attention, its layer classes. The engine must not be used afterwards."""
        self._switch(None)
        restore_layers(self._undo)

    def _switch(self, name: str | None) -> None:
        _set_attention(self._own_attention, name)


def attach(model: nn.Module, *, neftune_noise_alpha: float = 0.0) -> Engine:
    """Probe `model` (on its device, in its dtype, adapters in place) and make its engine.

    Raises:
        RunFailed: the model is no causal decoder, or not even the padded layout gives its own hidden states.
    """
    base = inner_model(model)
    if getattr(base.config, "is_encoder_decoder", False):
        raise RunFailed(problems=[Problem(
            code="T450", message=f"{type(base).__name__} is an encoder-decoder model; only causal decoders are trained",
            hint="choose a decoder-only model",
        )])  # fmt: skip
    register()
    own = _attention_names(model)
    if any(name == NAME for _, name in own):
        raise RuntimeError("an engine is already attached to this model; call its `detach()` first")
    undo, replaced = replace_layers(model)
    trunk = base.get_decoder()
    layout = probe_layout(model, trunk, lambda name: _set_attention(own, name))
    _set_attention(own, NAME if layout.layout == "flat" else None)
    try:
        finding = probe_head(base, trunk, base.get_output_embeddings(), layout.layout)
    finally:
        _set_attention(own, None)
    module = LossModule(model, layout=layout.layout, finding=finding, neftune_noise_alpha=neftune_noise_alpha)
    report = (*_report(base, layout.layout, layout.reason, finding), *(Part(*line) for line in replaced))
    if next(model.parameters()).device.type == "cpu":
        kept, why = keep_freed_memory()
        report += (Part("memory", "freed blocks stay with the process" if kept else "as the C library does it", why),)
    return Engine(module, report, undo)


def inner_model(model: Any) -> Any:
    """The transformers model under PEFT, or the model itself. Adapters live in its layers, so calling it uses them."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _report(base: Any, layout: Layout, reason: str, finding: HeadFinding) -> tuple[Part, ...]:
    weight = next(p for p in base.parameters() if p.is_floating_point())
    on_cuda, half = weight.is_cuda, weight.dtype in (torch.bfloat16, torch.float16)
    if layout == "padded":
        attention = Part("attention", "the model's own, documents padded to a rectangle", reason)
    elif on_cuda and half and has_varlen_kernel():
        attention = Part("attention", "torch varlen kernel over packed documents, no padding", reason)
    else:
        why = "CPU" if not on_cuda else "the varlen kernel takes 16-bit types" if not half else "no varlen kernel here"
        attention = Part("attention", f"scaled-dot-product per packed document, no padding ({why})", reason)
    if finding.kind == "model":
        return attention, Part("head", "the model's own forward, all logits", finding.reason)
    if plain_linear(base.get_output_embeddings()) is None:
        head = type(base.get_output_embeddings()).__name__
        return attention, Part("head", f"supervised rows only, in chunks through {head}", finding.reason)
    return attention, Part("head", "supervised rows only, chunked linear cross-entropy", finding.reason)


def _attention_names(model: nn.Module) -> list[tuple[Any, str]]:
    """Every config in the model with the attention implementation it has now."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    found = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    return [(config, name) for config, name in found if isinstance(name, str)]


def _set_attention(own: list[tuple[Any, str]], name: str | None) -> None:
    for config, original in own:
        config._attn_implementation = name or original
