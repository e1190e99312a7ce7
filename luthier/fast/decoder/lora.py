"""The adapters of linear layers that share their input, as two stacked thin matrices.

For n layers y_i = x W_i^T + s_i (drop_i(x) A_i^T) B_i^T, stacked along their outputs:

    a_pk   rows of all A_i, one after the other (P >= sum of the ranks, padded with zero rows)
    b_np   block diagonal: rows of layer i hold B_i in the columns of A_i

    u  = (x a^T) s        y  += u b^T          v = (g b) s        dx += v a
    da = v^T x            db = g^T u           (block by block)

so x and g are each read once for all layers. The parameters of PEFT's modules become views of a and b:
names, shapes, saving and loading stay PEFT's. With dropout each adapter drops its input for itself
(`dropout.py`).

Legend: M rows, K inputs, N outputs, P columns of all adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.fast.decoder.dropout import Masks
from luthier.fast.decoder.linears import LinearView
from luthier.fast.products import grad_input, grad_weight, product

__all__ = ["PAD", "StackedLora"]

PAD = 64
"""Columns the adapters are padded to: rows of an extended matrix stay aligned to 128 bytes in 16-bit types."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    rows: slice
    """Outputs of the layer among the N."""
    columns: slice
    """Its rank among the P."""
    a: nn.Parameter
    b: nn.Parameter
    dropout: float


class StackedLora:
    """See the head of this file."""

    def __init__(self, views: Sequence[LinearView], a_pk: Tensor, b_np: Tensor, *, loose: bool = False) -> None:
        """Copy the adapters into `a_pk` and `b_np` (both zero) and make PEFT's parameters views of them.

        `loose`: leave the parameters where they are; `read` copies what they hold before each forward pass.
        """
        self.a_pk, self.b_np, self.loose = a_pk, b_np, loose
        self.blocks: list[_Block] = []
        scales = torch.zeros(a_pk.shape[0])
        out = column = 0
        for view in views:
            rows = slice(out, out := out + view.out_features)
            if view.adapter is None:
                continue
            rank = view.rank
            columns = slice(column, column := column + rank)
            if not loose:
                a_pk[columns].copy_(view.a.data)
                b_np[rows, columns].copy_(view.b.data)
                view.a.data, view.b.data = a_pk[columns], b_np[rows, columns]
            scales[columns] = view.scale
            self.blocks.append(_Block(rows, columns, view.a, view.b, view.dropout))
        self.ranks = column
        used = set(scales[:column].tolist())
        self.scale = used.pop() if len(used) == 1 else None
        """The one scale of all adapters, or None: then `scales_p` holds them by column."""
        self.scales_p = scales.to(a_pk)

    def read(self) -> None:
        """Copy what loose parameters hold now; inside their layer's pass they are whole."""
        if self.loose:
            for block in self.blocks:
                self.a_pk[block.columns].copy_(block.a.detach())
                self.b_np[block.rows, block.columns].copy_(block.b.detach())

    @staticmethod
    def columns(views: Sequence[LinearView], *, pad: int = 1) -> int:
        """P for these layers."""
        ranks: int = sum(view.rank for view in views if view.adapter is not None)
        return -(-ranks // pad) * pad

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of each adapter, in the order of `gradients`."""
        return [parameter for block in self.blocks for parameter in (block.a, block.b)]

    def masks(self, training: bool) -> Masks | None:
        """Fresh dropout masks for one forward pass; None without dropout."""
        if not training or not any(block.dropout for block in self.blocks):
            return None
        return Masks(tuple(block.dropout for block in self.blocks))

    def down(self, x_mk: Tensor, masks: Masks | None, out_mp: Tensor | None = None) -> Tensor:
        """u = s drop(x) a^T, (M, P); into `out_mp` if given."""
        if masks is None:
            return self._scaled_product(x_mk, self.a_pk.t(), out_mp)
        u_mp = torch.zeros_like(out_mp) if out_mp is not None else x_mk.new_zeros(x_mk.shape[0], self.a_pk.shape[0])
        for index, block in enumerate(self.blocks):
            dropped = x_mk * masks.mask(index, x_mk)
            u_mp[:, block.columns] = product(dropped, self.a_pk[block.columns])
        u_mp *= self.scales_p
        return u_mp if out_mp is None else out_mp.copy_(u_mp)

    def up(self, g_mn: Tensor, out_mp: Tensor | None = None) -> Tensor:
        """v = s g b, (M, P); into `out_mp` if given."""
        return self._scaled_product(g_mn, self.b_np, out_mp)

    def add_output_(self, y_mn: Tensor, u_mp: Tensor) -> None:
        """y += u b^T."""
        y_mn.addmm_(u_mp, self.b_np.t())

    def add_input_gradient_(self, dx_mk: Tensor, v_mp: Tensor, masks: Masks | None) -> None:
        """dx += v a, through the masks of the dropout."""
        if masks is None:
            dx_mk.addmm_(v_mp, self.a_pk)
            return
        for index, block in enumerate(self.blocks):
            part = grad_input(v_mp[:, block.columns], self.a_pk[block.columns])
            dx_mk += part * masks.mask(index, dx_mk)

    def gradients(self, g_mn: Tensor, x_mk: Tensor, u_mp: Tensor, v_mp: Tensor, masks: Masks | None) -> list[Tensor]:
        """Gradients of A and B of each adapter."""
        da_pk = grad_weight(v_mp, x_mk) if masks is None else None
        found = []
        for index, block in enumerate(self.blocks):
            if da_pk is not None:
                da = da_pk[block.columns]
            else:
                assert masks is not None
                da = grad_weight(v_mp[:, block.columns], x_mk * masks.mask(index, x_mk))
            # One product a layer: its rows of g are read once, and the gradient is dense as its parameter is not.
            found += [da, grad_weight(g_mn[:, block.rows], u_mp[:, block.columns])]
        return found

    def _scaled_product(self, left: Tensor, right: Tensor, out: Tensor | None) -> Tensor:
        if out is None and not left.is_cuda:
            result = product(left, right.t())
        elif self.scale is not None:
            shape = (left.shape[0], right.shape[1])
            result = torch.empty(shape, dtype=left.dtype, device=left.device) if out is None else out
            return torch.addmm(result, left, right, beta=0, alpha=self.scale, out=result)
        else:
            result = torch.mm(left, right, out=out)
        return result.mul_(self.scale) if self.scale is not None else result.mul_(self.scales_p)
