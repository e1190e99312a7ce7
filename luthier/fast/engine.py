"""The execution engine: how a batch becomes a loss, fast where the model allows it and right everywhere.

    engine = attach(model)              # a probe decides layout and head; `engine.report` says what and why
    sums = engine.loss(batch)           # SUM over targets of weight x loss; the caller divides by the global weight
    with engine.inference(): ...        # the model's own attention, for generate() and plain forwards

`attach` changes two things in the model, and `engine.detach()` takes both back: the name of its attention
implementation, and the classes of the layers named in the report (parameters and names stay). It works
on transformers models and on PEFT models; under DDP the wrapper goes around `engine.module`
(`engine.distribute`), so that the loss runs inside the wrapper's forward and its gradient hooks fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.fast.attention import NAME, register
from luthier.fast.decoder.function import Replaced, replace_decoder_layers
from luthier.fast.graph import Graphs, graphs_for
from luthier.fast.head import linear_cross_entropy, logits_cross_entropy, module_cross_entropy, plain_linear
from luthier.fast.hidden import Layout, ModelInputs, Wanted, model_inputs, take_rows
from luthier.fast.linear import Undo, replace_layers, restore_layers
from luthier.fast.probe import HeadFinding, LayoutFinding, probe_head, probe_layout
from luthier.fast.recompute import recompute_other_layers
from luthier.fast.report import Part, report_attention, report_decoder, report_head
from luthier.fast.settings import EngineSettings
from luthier.runtime.errors import Problem, RunFailed
from luthier.runtime.malloc import keep_freed_memory

__all__ = ["Engine", "LossModule", "LossSums", "Part", "attach"]


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

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Layout,
        finding: HeadFinding,
        settings: EngineSettings,
        last_layer: int | None,
        graphs: Graphs | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.layout: Layout = layout
        self.finding = finding
        self.neftune_noise_alpha = settings.neftune_noise_alpha
        self.last_layer = last_layer
        """The decoder layer that can compute trained rows alone, if there is one."""
        self.graphs = graphs
        """Recordings of the trunk, where they may be used."""

    def forward(self, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss sum and correct count of one batch."""
        base = inner_model(self.model)
        inputs = model_inputs(batch, self.layout)
        if self.training and self.neftune_noise_alpha > 0.0:
            inputs.embed(base.get_input_embeddings(), noise_alpha=self.neftune_noise_alpha)
        if self.finding.kind == "model":
            logits = base(**inputs.kwargs).logits.flatten(0, 1)[inputs.rows(batch.source_index)]
            return logits_cross_entropy(logits, batch.target_ids, batch.target_weights, label_smoothing=label_smoothing)
        hidden = self._hidden(base, batch, inputs, Wanted.targets(batch))
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

    def _hidden(self, base: Any, batch: Batch, inputs: ModelInputs, wanted: Wanted) -> Tensor:
        """(S, D) last hidden states of the wanted rows."""
        rows = inputs.rows(wanted.rows)
        if self.training and self.graphs is not None and batch.tokens <= self.graphs.most_tokens:
            embeds = inputs.embedded(base.get_input_embeddings())
            replayed = self.graphs.hidden(
                embeds.squeeze(0), batch.position_ids, batch.doc_lengths, prefixes=batch.prefixes
            )
            if replayed is not None:
                return wanted.arrange(take_rows(replayed, rows))
        if self.last_layer is not None:
            inputs.only(rows, last_layer=self.last_layer)
        hidden: Tensor = base.get_decoder()(**inputs.kwargs)[0].flatten(0, 1)
        # A last layer that was called on all rows after all (its adapter is off, say) gives all of them.
        only = self.last_layer is not None and hidden.shape[0] == rows.shape[0]
        return wanted.arrange(hidden if only else take_rows(hidden, rows))


class Engine:
    """A model with its way of computing the loss. Made by `attach`."""

    def __init__(self, module: LossModule, report: tuple[Part, ...], undo: Undo, decoder: Replaced) -> None:
        self.module = module
        self.report = report
        self._undo = undo
        self._decoder = decoder
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
        if self.module.graphs is not None:
            self.module.graphs.forget()
        self._decoder.restore()
        restore_layers(self._undo)

    def _switch(self, name: str | None) -> None:
        _set_attention(self._own_attention, name)


def attach(
    model: nn.Module, settings: EngineSettings | None = None, *, neftune_noise_alpha: float | None = None
) -> Engine:
    """Probe `model` (on its device, in its dtype, adapters in place) and make its engine.

    Args:
        model: transformers or PEFT model.
        settings: how layers run; the defaults keep every activation and change no number beyond rounding.
        neftune_noise_alpha: short for the setting of that name.

    Raises:
        RunFailed: the model is no causal decoder, or not even the padded layout gives its own hidden states.
    """
    settings = settings or EngineSettings()
    if neftune_noise_alpha is not None:
        settings = replace(settings, neftune_noise_alpha=neftune_noise_alpha)
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
    try:
        layout, decoder, refused = _choose_layout(model, trunk, settings, lambda name: _set_attention(own, name))
    except BaseException:
        restore_layers(undo)
        raise
    _set_attention(own, NAME if layout.layout == "flat" else None)
    try:
        finding = probe_head(base, trunk, base.get_output_embeddings(), layout.layout)
    except BaseException:
        decoder.restore()
        restore_layers(undo)
        raise
    finally:
        _set_attention(own, None)
    recomputed = recompute_other_layers(trunk, decoder, settings)
    last = decoder.last.index if decoder.last is not None and finding.kind == "head" else None
    graphs, recorded = graphs_for(trunk, decoder, settings) if finding.kind == "head" else (None, ())
    module = LossModule(model, layout=layout.layout, finding=finding, settings=settings, last_layer=last, graphs=graphs)
    report = (
        report_attention(base, layout, decoder), report_head(base, finding),
        *report_decoder(decoder, settings, refused=refused, recomputed=recomputed, device=model.device),
        *(Part(*line) for line in (*recorded, *replaced)),
    )  # fmt: skip
    if next(model.parameters()).device.type == "cpu":
        kept, why = keep_freed_memory()
        report += (Part("memory", "freed blocks stay with the process" if kept else "as the C library does it", why),)
    return Engine(module, report, undo, decoder)


def _choose_layout(
    model: Any, trunk: Any, settings: EngineSettings, switch: Callable[[str | None], None]
) -> tuple[LayoutFinding, Replaced, str | None]:
    """Layout, replaced decoder layers, and why they were given up if they were."""
    decoder, refused = Replaced(), None
    if settings.replace_layers:
        decoder = replace_decoder_layers(trunk, settings)
    inexact = settings.frozen_base == "fp8" and bool(decoder.programs)
    try:
        layout = probe_layout(model, trunk, switch, inexact=inexact)
    except BaseException:
        decoder.restore()
        raise
    if layout.layout == "padded" and decoder.programs:
        decoder.restore()
        layout, refused = probe_layout(model, trunk, switch), layout.reason
    return layout, decoder, refused


def inner_model(model: Any) -> Any:
    """The transformers model under PEFT, or the model itself. Adapters live in its layers, so calling it uses them."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _attention_names(model: nn.Module) -> list[tuple[Any, str]]:
    """Every config in the model with the attention implementation it has now."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    found = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    return [(config, name) for config, name in found if isinstance(name, str)]


def _set_attention(own: list[tuple[Any, str]], name: str | None) -> None:
    for config, original in own:
        config._attn_implementation = name or original
