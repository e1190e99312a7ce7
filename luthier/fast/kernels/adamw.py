"""AdamW over lists of tensors: fp32 masters, live parameters in any dtype that receive the rounded master.

torch's AdamW (decoupled decay), with g = grad_scale * grad in fp32 and t = step counted from 1:

    p = p (1 - lr weight_decay)
    m = m + (1 - beta1) (g - m)              v = beta2 v + (1 - beta2) g^2
    p = p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.fast.kernels.choice import uses_triton

__all__ = ["adamw_", "adamw_reference_"]


def adamw_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | Tensor = 1.0,
) -> None:
    """One step, in place on masters, params, exp_avg and exp_avg_sq; gradients are only read.

    Tensor i of every list has one shape. `params[i]` may be `masters[i]` itself. `grad_scale` may be a scalar
    tensor on the device, which is never waited for; if it is NaN, nothing changes. `step` is the number of this
    step, from 1.
    """
    lists = (masters, params, grads, exp_avg, exp_avg_sq)
    assert len({len(tensors) for tensors in lists}) == 1, "one gradient and one state for each master"
    if masters and uses_triton(masters[0]):
        from luthier.fast.kernels import adamw_triton

        adamw_triton.adamw_(*lists, lr, betas, eps, weight_decay, step, grad_scale)
        return
    adamw_reference_(*lists, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, step=step, grad_scale=grad_scale)


@torch.no_grad()  # type: ignore[untyped-decorator]
def adamw_reference_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float | Tensor = 1.0,
) -> None:
    """Definition of `adamw_`."""
    if isinstance(grad_scale, Tensor) and bool(grad_scale.isnan()):
        return
    beta1, beta2 = betas
    correction1, correction2 = 1.0 - beta1**step, (1.0 - beta2**step) ** 0.5
    for master, param, raw_grad, mean, square in zip(masters, params, grads, exp_avg, exp_avg_sq, strict=True):
        grad = raw_grad.to(master.dtype) * grad_scale
        master.mul_(1.0 - lr * weight_decay)
        mean.lerp_(grad, 1.0 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        master.addcdiv_(mean, square.sqrt().div_(correction2).add_(eps), value=-lr / correction1)
        if param is not master:
            param.copy_(master)
