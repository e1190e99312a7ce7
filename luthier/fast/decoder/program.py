"""A decoder layer ready to run: its projections, its shape, its trained parameters in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from luthier.fast.attention import Documents
from luthier.fast.decoder.core_attention import path_for
from luthier.fast.decoder.dropout import Masks
from luthier.fast.decoder.projection import Projection
from luthier.fast.decoder.spec import LayerParts
from luthier.fast.settings import EngineSettings, Recompute

__all__ = ["LayerProgram"]

Triple = tuple[Tensor, Tensor, Tensor]


class LayerProgram:
    """Made once for each replaced layer."""

    def __init__(self, parts: LayerParts, settings: EngineSettings, *, index: int, dtype: torch.dtype) -> None:
        """Take over the layer's linear modules.

        Raises:
            NotPlain: some of them cannot be one projection; then none was changed.
        """
        self.parts, self.index = parts, index
        self.policy: Recompute = settings.policy(index)
        kept = settings.keep_attention and index >= settings.attending_layers
        self.keeps_attention = kept and self.policy == "layer"
        """Run again as a whole, but for attention."""
        device = settings.device or parts.input_norm.weight.device
        self.attention = settings.attention or path_for(device, dtype, parts.head_dim)
        """What computes attention."""
        self.projections: list[Projection] = []
        try:
            for views in (parts.qkv, (parts.out,), parts.gate_up, (parts.down,)):
                self.projections.append(Projection(views, dtype, settings))
        except BaseException:
            self.restore()
            raise
        self.qkv, self.out, self.gate_up, self.down = self.projections
        self.query_width = parts.heads * parts.head_dim
        self.key_width = parts.key_value_heads * parts.head_dim
        self.stand_ins: Mapping[int, Tensor] = {}
        """By id of a trained parameter: the tensor of the same memory that autograd is given instead (`graph.py`)."""

    @property
    def _norm_weights(self) -> tuple[nn.Parameter | None, ...]:
        parts = self.parts
        norms = (parts.input_norm, parts.mlp_norm, parts.attention_post_norm, parts.mlp_post_norm,
                 parts.query_norm, parts.key_norm)  # fmt: skip
        return tuple(None if norm is None else norm.weight for norm in norms)

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """Trained parameters in a fixed order, as the modules hold them now."""
        return (
            *(parameter for projection in self.projections for parameter in projection.trained),
            *(weight for weight in self._norm_weights if weight is not None and weight.requires_grad),
        )

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What autograd is given: the trained parameters or their stand-ins."""
        return tuple(self.stand_ins.get(id(parameter), parameter) for parameter in self.trained)

    @property
    def trains_before_attention(self) -> bool:
        """Whether a norm whose gradient comes through the attention is trained."""
        weights = (self._norm_weights[0], *self._norm_weights[4:])
        return any(weight is not None and weight.requires_grad for weight in weights)

    def in_order(
        self, d_qkv: Sequence[Tensor], d_out: Sequence[Tensor], d_gate_up: Sequence[Tensor], d_down: Sequence[Tensor],
        norms: Sequence[Tensor | None],
    ) -> list[Tensor | None]:  # fmt: skip
        """Gradients in the order of `trained`, each in the type of its parameter."""
        found: list[Tensor | None] = [*d_qkv, *d_out, *d_gate_up, *d_down]
        for weight, grad in zip(self._norm_weights, norms, strict=True):
            if weight is not None and weight.requires_grad:
                found.append(None if grad is None else grad.to(weight.dtype))
        return found

    def split(self, qkv: Tensor) -> Triple:
        """(T, H K), (T, G K), (T, G K): parts of a stacked q|k|v."""
        query, key, value = qkv.split((self.query_width, self.key_width, self.key_width), dim=1)
        return query, key, value

    def heads_of(self, qkv: Tensor, query: Tensor | None, key: Tensor | None) -> Triple:
        """(T, H, K), (T, G, K), (T, G, K); `query` and `key` replace those of the product."""
        in_query, in_key, value = self.split(qkv)
        size = (-1, self.parts.head_dim)
        return (
            (in_query if query is None else query).unflatten(1, size),
            (in_key if key is None else key).unflatten(1, size),
            value.unflatten(1, size),
        )

    def window(self, documents: Documents) -> int | None:
        """The sliding window, where some document is longer than it."""
        window = self.parts.window
        return None if window is None or window >= documents.longest else window

    def masks(self, training: bool) -> tuple[Masks | None, ...]:
        """Fresh dropout masks of the four projections."""
        return tuple(projection.masks(training) for projection in self.projections)

    def unchanged(self) -> bool:
        """Whether adapters are still as they were when the layer was replaced.

        Raises:
            RuntimeError: they are, but the modules' weights are no longer the ones this program computes with.
        """
        if not all(projection.unchanged() for projection in self.projections):
            return False
        if not all(projection.holds_weights() for projection in self.projections):
            raise RuntimeError(
                f"the weights of decoder layer {self.index} were moved, cast, copied or replaced while an engine is "
                "attached, which computes with where they were: detach it before, and attach the engine after that"
            )
        return True

    def restore(self) -> None:
        """Give the modules tensors of their own again."""
        for projection in self.projections:
            projection.restore()
