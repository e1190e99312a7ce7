"""AdamW over lists of tensors with both moments in 8 bits: `adamw.py`'s formula, moments stored as `maps8.py` says.

The update of a step uses its moments in fp32; they are rounded afterwards, for the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.fast.kernels import maps8
from luthier.fast.kernels.choice import uses_triton

__all__ = ["adamw8_", "adamw8_reference_", "moments8"]


def moments8(like: Tensor) -> dict[str, Tensor]:
    """Moments of a tensor before its first step: `state1`, `absmax1` (first), `state2`, `absmax2` (second)."""
    count = maps8.blocks(like.numel())
    return {
        "state1": torch.full(like.shape, 128, dtype=torch.uint8, device=like.device),
        "absmax1": torch.zeros(count, dtype=torch.float32, device=like.device),
        "state2": torch.zeros(like.shape, dtype=torch.uint8, device=like.device),
        "absmax2": torch.zeros(count, dtype=torch.float32, device=like.device),
    }


def adamw8_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state1: Sequence[Tensor],
    absmax1: Sequence[Tensor],
    state2: Sequence[Tensor],
    absmax2: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | Tensor = 1.0,
) -> None:
    """One step, in place on masters, params and moments; gradients are only read.

    Args:
        masters: Dense fp32 tensors.
        params: For each master itself, or a tensor of its shape in fp32, bf16 or fp16 that gets the rounded master:
            dense, or a 2-D window on a wider matrix (last dimension dense).
        grads: Of the shapes of the masters, in fp32, bf16 or fp16; windows as `params`.
        state1: Dense uint8 codes of the shapes of the masters; `moments8` makes the four lists' first values.
        absmax1: fp32 (ceil(elements / 256),) each.
        state2: As `state1`.
        absmax2: As `absmax1`.
        lr: Rate of this step.
        betas: Decay rates of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay; times lr.
        step: The number of this step, from 1.
        grad_scale: What gradients are multiplied by. A scalar tensor on the device is never waited for; if it is
            NaN, nothing changes.
    """
    lists = (masters, params, grads, state1, absmax1, state2, absmax2)
    assert len({len(tensors) for tensors in lists}) == 1, "one gradient and one state for each master"
    if masters and uses_triton(masters[0]):
        from luthier.fast.kernels import adamw8_triton

        adamw8_triton.adamw8_(*lists, lr, betas, eps, weight_decay, step, grad_scale)
        return
    adamw8_reference_(*lists, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step, grad_scale=grad_scale)


@torch.no_grad()  # type: ignore[untyped-decorator]
def adamw8_reference_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state1: Sequence[Tensor],
    absmax1: Sequence[Tensor],
    state2: Sequence[Tensor],
    absmax2: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | Tensor = 1.0,
) -> None:
    """Definition of `adamw8_`. Its fp32 copies are of one tensor at a time.

    Triton's kernel fuses products with sums and takes roots to 2 ulp: masters differ by rounding of the update, and a
    code by one where a value lies close to the middle between two (under 1 in 1,000; a first moment that cancels to
    under 1e-6 of its block's largest: by up to eight).
    """
    if isinstance(grad_scale, Tensor) and bool(grad_scale.isnan()):
        return
    beta1, beta2 = betas
    correction1, correction2 = 1.0 - beta1**step, (1.0 - beta2**step) ** 0.5
    entries = zip(masters, params, grads, state1, absmax1, state2, absmax2, strict=True)
    for master, param, raw_grad, codes1, largest1, codes2, largest2 in entries:
        grad = raw_grad.to(torch.float32) * grad_scale
        mean = maps8.decode_signed(codes1, largest1)
        mean.add_(grad.sub(mean), alpha=1.0 - beta1)
        square = maps8.decode_unsigned(codes2, largest2).mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        for encode, value, codes, largest in (
            (maps8.encode_signed, mean, codes1, largest1),
            (maps8.encode_unsigned, square, codes2, largest2),
        ):
            for kept, new in zip((codes, largest), encode(value), strict=True):
                kept.copy_(new)
        master.mul_(1.0 - lr * weight_decay)
        master.addcdiv_(mean, square.sqrt_().div_(correction2).add_(eps), value=-lr / correction1)
        if param is not master:
            param.copy_(master)
