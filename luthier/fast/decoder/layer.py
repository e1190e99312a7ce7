"""One decoder layer as one function: forward, and its backward written out.

    n1 = norm(x)                    q, k, v = n1 Wqkv        q, k = rope(norm?(q), norm?(k))
    a = attention(q, k, v)          h = x + norm?(a Wo)
    n2 = norm(h)                    p = act(n2 Wgate) * (n2 Wup)
    y = h + norm?(p Wdown)

`forward_layer` computes y and a `Kept` with every intermediate the gradient needs; `backward_layer` turns the
gradient of y into those of x and of the trained parameters. What `Kept` holds depends on the policy:

    none        everything                                   4 d + 2 q + 2 kv + 3 f numbers a token
    selective   without n1, n2 and p (elementwise work)      2 d + 2 q + 2 kv + 2 f
    layer       nothing but x; `function.py` runs `forward_layer` again, without the last product     d
                with `keep_attention` attention's output too, and without attention                 d + q

With other processes that share the sequence, T is this one's tokens, heads are exchanged before attention and after it
(`shared_attention.py`), and `none` and `selective` keep the output of attention twice, in both arrangements.

Of the last layer only the rows that are trained are needed after attention: with `rows` the rest of the layer
runs on those alone.

Legend: T tokens, d hidden size, q = H K, kv = G K, f intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.fast.attention import Documents
from luthier.fast.decoder.dropout import Masks
from luthier.fast.decoder.heads import heads_backward, rotate_heads
from luthier.fast.decoder.program import LayerProgram
from luthier.fast.decoder.projection import Projection, Rows
from luthier.fast.decoder.shared_attention import attend_heads, attend_heads_backward
from luthier.fast.decoder.spec import Norm
from luthier.fast.kernels.fp8 import add_rms_norm_fp8, glu_fp8
from luthier.fast.kernels.glu import glu, glu_backward
from luthier.fast.kernels.norm import add_rms_norm, rms_norm_again, rms_norm_backward

__all__ = ["Inputs", "Kept", "backward_layer", "forward_layer"]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a layer is called with, besides x."""

    cos: Tensor
    """(T, rot); of this process' tokens, where others share the sequence."""
    sin: Tensor
    documents: Documents
    rows: Tensor | None
    """(S,) int64: rows that are needed of the output; None: all."""
    masks: tuple[Masks | None, ...]
    """Dropout masks of the four projections."""


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """Intermediates of a forward pass, in the order of the layer; None where they are not kept."""

    x: Tensor
    rstd1: Tensor
    n1: Tensor | None
    u_qkv: Tensor | None
    qkv: Tensor | None
    """Rotated in place where heads are not normalised; else as they came out of the product. None where heads are
    exchanged and not normalised."""
    query: Tensor | None = None
    """Rotated heads where they are not part of `qkv`."""
    key: Tensor | None = None
    query_rstd: Tensor | None = None
    key_rstd: Tensor | None = None
    exchanged: Tensor | None = None
    """Heads of all tokens, where they came from other processes."""
    a: Tensor
    attention: tuple[Tensor, ...]
    a_rows: Tensor
    """Rows of `a` that go on."""
    u_out: Tensor | None
    o: Tensor | None = None
    """Only where it is normalised."""
    o_rstd: Tensor | None = None
    h: Tensor
    rstd2: Tensor
    n2: Tensor | None
    u_up: Tensor | None
    gate_up: Tensor
    p: Tensor | None = None
    u_down: Tensor | None = None
    m: Tensor | None = None
    """Only where it is normalised."""
    m_rstd: Tensor | None = None
    rows: Tensor | None = None
    """Attention's output for all of this process' tokens, where it is kept for a layer that runs again."""

    @property
    def attended(self) -> tuple[Tensor, ...]:
        """For `forward_layer` to run again without attention."""
        assert self.rows is not None
        return (self.a, self.rows, *self.attention)


def forward_layer(
    program: LayerProgram, x: Tensor, inputs: Inputs, *, selective: bool, again: bool = False,
    attended: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, Kept]:  # fmt: skip
    """y (T or S, d) and what the backward pass needs. `again`: for the backward pass only, y is not computed;
    `attended`: `Kept.attended` of an earlier pass, whose attention is not computed again."""
    parts = program.parts
    mask_qkv, mask_out, mask_up, mask_down = inputs.masks
    n1, _, rstd1 = _normalised(program.qkv, x, parts.input_norm)
    qkv: Tensor | None
    qkv, u_qkv = program.qkv.forward(n1, mask_qkv)
    heads, query, key, query_rstd, key_rstd = rotate_heads(program, qkv, inputs.cos, inputs.sin)
    found = attend_heads(program, heads, inputs.documents, attended)
    del heads
    if found.exchanged is not None:  # what went to other processes is not needed here any more
        query = key = None
        qkv = None if query_rstd is None else qkv
    a_rows, x_rows = found.rows, x
    if inputs.rows is not None:
        a_rows, x_rows = a_rows.index_select(0, inputs.rows), x.index_select(0, inputs.rows)
    o, u_out = program.out.forward(Rows.of(a_rows), mask_out)
    added, o_rstd = o, None
    if parts.attention_post_norm is not None:
        post = parts.attention_post_norm
        added, _, o_rstd = add_rms_norm(o, post.weight, eps=post.eps, plus_one=post.plus_one)
    n2, h, rstd2 = _normalised(program.gate_up, added, parts.mlp_norm, x_rows)
    gate_up, u_up = program.gate_up.forward(n2, mask_up)
    kept = Kept(
        x=x, rstd1=rstd1, n1=n1.body, u_qkv=u_qkv, qkv=qkv, query=query, key=key, query_rstd=query_rstd,
        key_rstd=key_rstd, exchanged=found.exchanged, a=found.a, attention=found.attention, a_rows=a_rows,
        u_out=u_out, o=o if o_rstd is not None else None, o_rstd=o_rstd, h=h, rstd2=rstd2, n2=n2.body, u_up=u_up,
        gate_up=gate_up, rows=found.rows if program.keeps_attention else None,
    )  # fmt: skip
    if again and parts.mlp_post_norm is None:
        return None, kept
    if program.down.takes_fp8:
        product, *quantized = glu_fp8(gate_up, parts.activation)
        p = Rows(product, product, (quantized[0], quantized[1]))
    else:
        p = program.down.new_input(x_rows.shape[0], x)
        glu(gate_up, parts.activation, out_mf=p.body)
    m, kept.u_down = program.down.forward(p, mask_down)
    kept.p = p.body
    y = m
    if parts.mlp_post_norm is not None:
        post = parts.mlp_post_norm
        y, kept.m, kept.m_rstd = add_rms_norm(m, post.weight, eps=post.eps, plus_one=post.plus_one)
    y.add_(h)
    if selective:
        _drop_elementwise(kept)
    return y, kept


def _normalised(
    projection: Projection, x: Tensor, norm: Norm, residual: Tensor | None = None
) -> tuple[Rows, Tensor, Tensor]:
    """(input of `projection`, x + residual, rstd)."""
    if projection.takes_fp8:
        n, h, rstd, *quantized = add_rms_norm_fp8(
            x, norm.weight, eps=norm.eps, residual_md=residual, plus_one=norm.plus_one
        )
        return Rows(n, n, (quantized[0], quantized[1])), h, rstd
    n_rows = projection.new_input(x.shape[0], x)
    _, h, rstd = add_rms_norm(
        x, norm.weight, eps=norm.eps, residual_md=residual, plus_one=norm.plus_one, out_md=n_rows.body
    )
    return n_rows, h, rstd


def _drop_elementwise(kept: Kept) -> None:
    """Forget what elementwise kernels compute again; the adapters' thin products are copied out of their buffers."""
    kept.u_qkv, kept.u_up, kept.u_down = (
        None if u is None else u.clone() for u in (kept.u_qkv, kept.u_up, kept.u_down)
    )
    kept.n1 = kept.n2 = kept.p = None


def backward_layer(
    program: LayerProgram, dy: Tensor, inputs: Inputs, kept: Kept, *, input_needed: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of `program.trained`, in its order."""
    parts, rows = program.parts, dy.shape[0]
    mask_qkv, mask_out, mask_up, mask_down = inputs.masks
    # 1. MLP: y = h + norm?(p Wdown)
    dm, d_mlp_post = _post_norm_backward(parts.mlp_post_norm, dy, kept.m, kept.m_rstd)
    g_up = program.gate_up.new_output_gradient(rows, dy)
    p, g_down, v_down = _product_backward(program, dm, g_up.body, mask_down, kept)
    u_down = kept.u_down
    if u_down is None and p is not None:
        u_down = program.down.down_again(p, mask_down)
    d_down = program.down.parameter_gradients(g_down.body, p, u_down, v_down, mask_down)
    del p, g_down
    dn2, v_up = program.gate_up.input_gradient(g_up, mask_up, needed=True)
    assert dn2 is not None
    n2 = kept.n2
    if n2 is None and program.gate_up.trained:
        n2 = rms_norm_again(kept.h, parts.mlp_norm.weight, kept.rstd2, plus_one=parts.mlp_norm.plus_one)
    d_gate_up = program.gate_up.parameter_gradients(g_up.body, n2, kept.u_up, v_up, mask_up)
    del n2, g_up
    # 2. h = x + norm?(a Wo): dh also is the gradient of x on the residual path
    g_out = program.out.new_output_gradient(rows, dy)
    dh, d_mlp_norm = rms_norm_backward(
        dn2, kept.h, parts.mlp_norm.weight, kept.rstd2, plus_one=parts.mlp_norm.plus_one, dh_md=dy,
        out_md=g_out.body, need_weight=parts.mlp_norm.weight.requires_grad,
    )  # fmt: skip
    do, d_attention_post = _post_norm_backward(parts.attention_post_norm, dh, kept.o, kept.o_rstd)
    g_out = g_out if do is dh else Rows.of(do)
    attention_needed = input_needed or bool(program.qkv.trained) or program.trains_before_attention
    da, v_out = program.out.input_gradient(g_out, mask_out, needed=attention_needed)
    d_out = program.out.parameter_gradients(g_out.body, kept.a_rows, kept.u_out, v_out, mask_out)
    # 3. attention and its inputs
    dx: Tensor | None = None
    d_qkv: list[Tensor] = []
    d_heads: Sequence[Tensor | None] = (None, None)
    d_input_norm: Tensor | None = None
    if da is not None:
        da, dh = _all_rows(da, inputs.rows, kept.x), _all_rows(dh, inputs.rows, kept.x)
        g_qkv = program.qkv.new_output_gradient(kept.x.shape[0], dy)
        d_heads = _attention_backward(program, da, g_qkv.body, inputs, kept)
        del da
        below = input_needed or parts.input_norm.weight.requires_grad
        dn1, v_qkv = program.qkv.input_gradient(g_qkv, mask_qkv, needed=below)
        n1 = kept.n1
        if n1 is None and program.qkv.trained:
            n1 = rms_norm_again(kept.x, parts.input_norm.weight, kept.rstd1, plus_one=parts.input_norm.plus_one)
        d_qkv = program.qkv.parameter_gradients(g_qkv.body, n1, kept.u_qkv, v_qkv, mask_qkv)
        del n1, g_qkv
        if dn1 is not None:
            dx, d_input_norm = rms_norm_backward(
                dn1, kept.x, parts.input_norm.weight, kept.rstd1, plus_one=parts.input_norm.plus_one, dh_md=dh,
                out_md=dn1, need_weight=parts.input_norm.weight.requires_grad,
            )  # fmt: skip
    norms = (d_input_norm, d_mlp_norm, d_attention_post, d_mlp_post, *d_heads)
    return dx, program.in_order(d_qkv, d_out, d_gate_up, d_down, norms)


def _product_backward(
    program: LayerProgram, dm: Tensor, out: Tensor, mask: Masks | None, kept: Kept
) -> tuple[Tensor | None, Rows, Tensor | None]:
    """Write the gradient of gate|up into `out`; returns p where the gradients of Wdown need it, its g, and its v."""
    down, p = program.down, kept.p
    g_down = Rows.of(dm)
    if down.spare:
        g_down = down.new_output_gradient(dm.shape[0], dm)
        g_down.body.copy_(dm)
    dp, v_down = down.input_gradient(g_down, mask, needed=True)
    assert dp is not None
    again = torch.empty_like(dp) if p is None and down.trained else None
    glu_backward(dp, kept.gate_up, program.parts.activation, out_m2f=out, prod_out_mf=again)
    return (again if p is None else p), g_down, v_down


def _attention_backward(
    program: LayerProgram, da: Tensor, out: Tensor, inputs: Inputs, kept: Kept
) -> tuple[Tensor | None, Tensor | None]:
    """Write the gradient of the q, k, v products into `out`; returns the gradients of the two head norms."""
    if kept.exchanged is None:
        assert kept.qkv is not None
        heads: tuple[Tensor, Tensor, Tensor] | Tensor = program.heads_of(kept.qkv, kept.query, kept.key)
    else:
        heads = kept.exchanged
    attend_heads_backward(program, da, heads, kept.a, kept.attention, inputs.documents, inputs.cos, inputs.sin, out)
    return heads_backward(program, kept.qkv, (kept.query_rstd, kept.key_rstd), out)


def _post_norm_backward(
    norm: Norm | None, dy: Tensor, before: Tensor | None, rstd: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradient of what a norm on the residual path came from, and of its weight; `dy` itself without one."""
    if norm is None:
        return dy, None
    assert before is not None and rstd is not None
    return rms_norm_backward(
        dy, before, norm.weight, rstd, plus_one=norm.plus_one, need_weight=norm.weight.requires_grad
    )


def _all_rows(part: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """Gradient rows back at their places among all tokens; zero elsewhere."""
    if rows is None:
        return part
    return part.new_zeros(like.shape[0], part.shape[1]).index_copy_(0, rows, part)
