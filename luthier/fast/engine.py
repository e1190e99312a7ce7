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

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.fast.attention import NAME, register
from luthier.fast.decoder.fp8_base import Fp8
from luthier.fast.decoder.fp8_shards import refuse_idle
from luthier.fast.decoder.function import Replaced, replace_decoder_layers
from luthier.fast.exchange import SequenceGroup
from luthier.fast.graph import graphs_for
from luthier.fast.hidden import Layout, model_inputs
from luthier.fast.linear import Undo, replace_layers, restore_layers
from luthier.fast.loss import LossModule, LossSums, inner_model
from luthier.fast.probe import LayoutFinding, probe_head, probe_layout
from luthier.fast.recompute import recompute_other_layers
from luthier.fast.report import Part, report_attention, report_decoder, report_head
from luthier.fast.settings import EngineSettings
from luthier.fast.sharing import require_shareable
from luthier.objective.base import Objective
from luthier.runtime.errors import Problem, RunFailed
from luthier.runtime.malloc import keep_freed_memory

__all__ = ["Engine", "LossModule", "LossSums", "Part", "attach"]


class Engine:
    """A model with its way of computing the loss. Made by `attach`."""

    def __init__(self, module: LossModule, report: tuple[Part, ...], undo: Undo, decoder: Replaced) -> None:
        self.module = module
        self.report = report
        self._undo = undo
        self._decoder = decoder
        self._callable: nn.Module = module
        self.alone: nn.Module = module
        """What a pass without gradients runs through. With `passes_together` it is what all passes run through."""
        self.passes_together = False
        """Every pass is one of all processes: each must make as many as the others."""
        self._run: Callable[..., Any] = _at_once
        self.whole: Callable[[Callable[[], Any]], Any] = lambda run: run()
        """Runs the model's modules where their weights are whole."""
        self._own_attention = _attention_names(module.model)
        self._switch(NAME if self.layout == "flat" else None)

    @property
    def layout(self) -> Layout:
        """`flat` or `padded`."""
        return self.module.layout

    def loss(self, batch: Batch, *, label_smoothing: float = 0.0, kl: float = 0.0) -> LossSums:
        """Sums over the batch's targets, or rows; see `LossSums`. Noise and dropout follow the model's training mode.

        `kl` is the reference point of an objective that has one, the same for all batches of a step.
        """
        self.module.training = self.module.model.training
        loss, sums = self._callable(batch, label_smoothing, kl)
        return LossSums(loss=loss, weight_sum=batch.weight_sum, sums=sums)

    def answer_values(self, batch: Batch) -> Tensor:
        """`LossModule.answer_values`, for passes without gradients: through what they run through."""
        values: Tensor = self._run(self.module.answer_values, batch)
        return values

    def distribute(
        self, wrap: Callable[[nn.Module], nn.Module], *, all_passes: bool = False,
        whole: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> nn.Module:  # fmt: skip
        """Run the loss through `wrap(engine.module)` from now on, for instance DDP; returns the wrapper.

        `all_passes`: those without gradients, too, because weights are whole inside of it only (FSDP2); what `wrap`
        makes then has `run(function, *args)`. `whole` runs other passes there.
        """
        self.whole = whole or self.whole
        self._callable = wrap(self.module)
        if all_passes:
            self.alone, self.passes_together = self._callable, True
            self._run = getattr(self._callable, "run", _at_once)
        return self._callable

    def share_sequences(self, group: SequenceGroup) -> None:
        """Take parts of sequences from now on (`data/sequence_parts.py`), together with the processes of `group`.

        Raises:
            RecipeError: this model's heads or layers cannot be shared so.
        """
        require_shareable(self.module, self._decoder, size=group.size)
        self.module.shared, self.passes_together = group, True
        self.report += (Part(
            "sequences", f"each shared by {group.size} processes", "heads are exchanged for positions in each layer",
        ),)  # fmt: skip

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The attention the model came with, for `generate` and plain forwards."""
        self._switch(None)
        try:
            yield
        finally:
            self._switch(NAME if self.layout == "flat" else None)

    def fit_frozen_base(self, make_batch: Callable[[], Batch]) -> Part | None:
        """Round an fp8 base so that its products are as right as they can be on some documents, layer after layer on
        what the layers before it give; None (and no batch is made) without such a base. Adapters take part as they are.
        """
        bases = [
            projection.base for program in self._decoder.programs for projection in program.projections
            if isinstance(projection.base, Fp8)
        ]  # fmt: skip
        if not bases:
            return None
        batch = make_batch()
        base, training, began = inner_model(self.module.model), self.module.model.training, time.perf_counter()
        self.module.model.eval()
        try:
            for each in bases:
                each.fitting = True
            inputs = model_inputs(batch, self.layout).kwargs
            with torch.no_grad():
                self.whole(lambda: base.get_decoder()(**inputs))
        finally:
            for each in bases:
                each.fitting = False
            self.module.model.train(training)
        for each in bases:
            each.release()
        errors = [float(each.kept_error) for each in bases if each.kept_error is not None]
        seconds = time.perf_counter() - began
        if not errors:
            return Part("fp8 base", "rounded to nearest", "no inputs that a rounding could be fitted to")
        part = Part(
            "fp8 base", f"rounding fitted to {batch.tokens:,} tokens in {seconds:.1f} s",
            f"leaves {sum(errors) / len(errors):.0%} of the error of rounding to nearest in the products of "
            f"{len(errors)} of {len(bases)} groups of matrices",
        )  # fmt: skip
        self.report += (part,)
        return part

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
    model: nn.Module,
    settings: EngineSettings | None = None,
    *,
    objective: Objective | None = None,
    neftune_noise_alpha: float | None = None,
) -> Engine:
    """Probe `model` (on its device, in its dtype, adapters in place) and make its engine.

    Args:
        model: transformers or PEFT model.
        settings: how layers run; the defaults keep every activation and change no number beyond rounding.
        objective: what turns log-probabilities of answers (or rewards, for a model with a head of one output) into a
            loss; for batches of preferences.
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
        refuse_idle(model, decoder.programs, why=refused or "; ".join(decoder.reasons))
        finding = probe_head(base, trunk, base.get_output_embeddings(), layout.layout)
    except BaseException:
        decoder.restore()
        restore_layers(undo)
        raise
    finally:
        _set_attention(own, None)
    recomputed = recompute_other_layers(trunk, decoder, settings)
    # A head of one's own (`model`) is computed by the model's whole forward: no layer is left out, nothing recorded.
    last = decoder.last.index if decoder.last is not None and finding.kind != "model" else None
    graphs, recorded = graphs_for(trunk, decoder, settings) if finding.kind != "model" else (None, ())
    module = LossModule(
        model, layout=layout.layout, finding=finding, settings=settings, last_layer=last, graphs=graphs,
        objective=objective,
    )  # fmt: skip
    report = (
        report_attention(base, layout, decoder), report_head(base, finding),
        *report_decoder(decoder, settings, refused=refused, recomputed=recomputed, device=model.device),
        *(Part(*line) for line in (*recorded, *replaced)),
    )  # fmt: skip
    if next(model.parameters()).device.type == "cpu":
        kept, why = keep_freed_memory()
        report += (Part("memory", "freed blocks stay with the process" if kept else "as the C library does it", why),)
    return Engine(module, report, undo, decoder)


def _at_once(action: Callable[..., Any], *args: Any) -> Any:
    return action(*args)


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


def _attention_names(model: nn.Module) -> list[tuple[Any, str]]:
    """Every config in the model with the attention implementation it has now."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    found = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    return [(config, name) for config, name in found if isinstance(name, str)]


def _set_attention(own: list[tuple[Any, str]], name: str | None) -> None:
    for config, original in own:
        config._attn_implementation = name or original
