"""Find out, by running it, how a model's attention and head may be computed.

Class names and config keys alone have fooled every stack that trusted them, so the decision is a
measurement on a dozen made-up tokens, made once when the engine is attached:

    layout   two documents end to end: the second must not change when the first is replaced, must equal
             the model's own attention on that document alone, and every sliding window that the model
             asks of its masks must reach the attention function. Otherwise: padded, with the reason.
    head     the model runs with its head's output replaced by a known ramp: the logits must be that ramp
             (or its known scale and soft-cap), and the head's input must be the trunk's last hidden state.
             Otherwise the loss goes through the model's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch, collate
from luthier.data.types import Example, RowRef
from luthier.fast.attention import NAME, Observed, UnsupportedAttention, observe
from luthier.fast.head import LogitTransform
from luthier.fast.hidden import Layout, model_inputs
from luthier.runtime.errors import RunFailed

__all__ = ["HeadFinding", "LayoutFinding", "probe_head", "probe_layout", "quiet"]

# Relative Frobenius error above which two ways of computing hidden states count as different functions.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
# In 16-bit types rounding alone gives 6e-2 over 32 layers of random weights (measured, through 4-bit products); another
# mask, window or rotation gives 3e-1 and more. Leaks are held to less: without one, both runs are equal to the bit.
_LOW_PRECISION_TOLERANCE, _LEAK_TOLERANCE = 1.5e-1, 1e-2
# 8-bit products: 3 bits of mantissa on both sides, over tens of layers. What they cost is measured elsewhere.
_INEXACT_TOLERANCE = 0.5

_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class LayoutFinding:
    """The layout, and why."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class HeadFinding:
    """How logits come about, and why it is known.

    `head`: trunk, then the head module, then `transform`. `model`: only the model's own forward knows. `reward`: the
    model's `score`, a head of one output, on the last hidden state of a document.
    """

    kind: Literal["head", "model", "reward"]
    transform: LogitTransform
    reason: str


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def probe_layout(model: Any, trunk: Any, switch: Any, *, inexact: bool = False) -> LayoutFinding:
    """Decide the layout. `switch(name)` sets the attention implementation (None: the model's own).

    `inexact`: layers were replaced by a named inexact mode; values may differ from the model's own by more.
    """
    obstacle = _static_obstacle(trunk)
    if obstacle is None:
        with quiet(model):
            obstacle = _measured_obstacle(model, trunk, switch, inexact=inexact)
    if obstacle is None:
        return LayoutFinding(
            "flat", "probed: documents do not see each other, values are those of the model's own attention"
        )
    return LayoutFinding("padded", obstacle)


def _static_obstacle(trunk: Any) -> str | None:
    if not getattr(trunk, "_supports_attention_backend", False):
        return f"{type(trunk).__name__} does not take attention functions from outside"
    config = trunk.config
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if unknown:
        return f"{type(trunk).__name__} has layers of type {', '.join(unknown)}"
    if getattr(config, "alibi", False):
        return "position biases (ALiBi) are not part of packed attention"
    return None


def _measured_obstacle(model: Any, trunk: Any, switch: Any, *, inexact: bool) -> str | None:
    first, other, second = _document(trunk, 6, 1), _document(trunk, 6, 2), _document(trunk, 7, 3)
    device = next(model.parameters()).device
    pair, changed, alone = (collate(docs).to(device) for docs in ([first, second], [other, second], [second]))
    switch(NAME)
    try:
        with observe() as observed:
            together = _hidden(trunk, pair, "flat")
        swapped = _hidden(trunk, changed, "flat")
    except UnsupportedAttention as refusal:
        return str(refusal)
    except TypeError as refusal:
        return f"{type(trunk).__name__} does not pass keyword arguments down to its attention ({refusal})"
    finally:
        switch(None)
    window_problem = _window_obstacle(trunk, observed)
    if window_problem:
        return window_problem
    own = _hidden(trunk, alone, "padded")
    limit = _INEXACT_TOLERANCE if inexact else _TOLERANCE.get(own.dtype, _LOW_PRECISION_TOLERANCE)
    rows = slice(len(first), None)
    if (leak := _distance(swapped[rows], together[rows])) > min(limit, _LEAK_TOLERANCE):
        return f"{type(trunk).__name__} lets documents of one sequence see each other (measured influence {leak:.1e})"
    if (error := _distance(together[rows], own)) > limit:
        return f"{type(trunk).__name__} computes something else with packed attention (relative difference {error:.1e})"
    return None


def _window_obstacle(trunk: Any, observed: Observed) -> str | None:
    name = type(trunk).__name__
    if observed.custom_masks:
        return f"{name} builds attention masks with patterns of its own"
    received = {window for window in observed.windows if window is not None}
    if received != observed.mask_windows:
        return f"{name} masks local windows {sorted(observed.mask_windows)} but tells its attention {sorted(received)}"
    kinds = getattr(trunk.config, "layer_types", None)
    if kinds and len(kinds) == len(observed.windows):
        expected = sum(kind == "sliding_attention" for kind in kinds)
        if expected != sum(window is not None for window in observed.windows):
            return f"{name} declares {expected} sliding layers, its attention saw another number"
    if not observed.windows:
        return f"{name} never called the attention function"
    return None


def probe_head(model: Any, trunk: Any, head: nn.Module | None, layout: Layout) -> HeadFinding:
    """Decide how logits are computed; the attention implementation of `layout` must be on."""
    if head is None and getattr(getattr(model, "score", None), "out_features", None) == 1:
        return _probe_score(model, trunk, layout)
    if head is None:
        return HeadFinding("model", LogitTransform(), f"{type(model).__name__} names no output head")
    device = next(model.parameters()).device
    batch = collate([_document(trunk, 6, 1)]).to(device)
    seen: list[Tensor] = []

    def ramp_instead(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        seen.append(inputs[0])
        ramp = torch.linspace(-60.0, 60.0, output.shape[-1], device=output.device).to(output.dtype)
        seen.append(ramp.expand_as(output))
        return seen[-1].clone()

    with quiet(model):
        hidden = _hidden(trunk, batch, layout)
        handle = head.register_forward_hook(ramp_instead)
        try:
            logits = model(**model_inputs(batch, layout).kwargs).logits
        finally:
            handle.remove()
    if len(seen) != 2:
        return HeadFinding("model", LogitTransform(), f"{type(model).__name__} called its head {len(seen) // 2} times")
    head_input, raw = seen
    if not torch.equal(head_input.reshape(hidden.shape), hidden):
        return HeadFinding("model", LogitTransform(), "the head's input is not the trunk's last hidden state")
    transform = _declared_transform(model.config)
    expected = transform.apply(raw.float())
    limit = 1e-5 if raw.dtype == torch.float32 else 2e-2
    if _distance(logits.float(), expected) > limit:
        return HeadFinding("model", LogitTransform(), f"{type(model).__name__} changes its logits in a way of its own")
    if transform == LogitTransform():
        return HeadFinding("head", transform, "logits are the output of the head (probed)")
    return HeadFinding("head", transform, f"logits are the output of the head with {transform} (probed)")


def _probe_score(model: Any, trunk: Any, layout: Layout) -> HeadFinding:
    """A head of one output: the model must say of a document what `score` says of its last hidden state.

    Raises:
        RunFailed: it says something else.
    """
    pad = getattr(model.config, "pad_token_id", None)
    document = _document(trunk, 6, 1)
    # A model looks for the last token that is no padding.
    document = replace(document, ids=[token + 1 if token == pad else token for token in document.ids])
    batch = collate([document]).to(next(model.parameters()).device)
    with quiet(model):
        own = model(**model_inputs(batch, layout).kwargs).logits.flatten()
        ours = model.score(_hidden(trunk, batch, layout)[-1:]).flatten()
    if own.shape != ours.shape or _distance(ours, own) > _TOLERANCE.get(own.dtype, _LOW_PRECISION_TOLERANCE):
        raise RunFailed(code="T451", message=f"{type(model).__name__} makes its reward in a way of its own")
    return HeadFinding("reward", LogitTransform(), "one output, on the last token of each answer")


def _declared_transform(config: Any) -> LogitTransform:
    text = config.get_text_config(decoder=True)
    scale = 1.0
    for key, inverse in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
        factor = getattr(text, key, None)
        if isinstance(factor, (int, float)):
            scale *= 1.0 / factor if inverse else factor
    return LogitTransform(scale=scale, softcap=getattr(text, "final_logit_softcapping", None))


def _document(trunk: Any, length: int, seed: int) -> Example:
    vocab = trunk.get_input_embeddings().weight.shape[0]
    ids = [(37 * seed + 101 * seed * position + 11) % vocab for position in range(length)]
    return Example(ids=ids, weights=[0.0] + [1.0] * (length - 1), ref=RowRef("probe", seed))


def _hidden(trunk: Any, batch: Batch, layout: Layout) -> Tensor:
    """(T, D) last hidden states."""
    inputs = model_inputs(batch, layout)
    hidden: Tensor = trunk(**inputs.kwargs)[0].flatten(0, 1)
    return hidden[inputs.rows(torch.arange(batch.tokens, device=hidden.device))]


def _distance(value: Tensor, reference: Tensor) -> float:
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))
