"""Contract: one call is one step of torch's AdamW on the masters, and live parameters are the rounded masters."""

from __future__ import annotations

import pytest
import torch

from luthier.fast.kernels.adamw import adamw_

SHAPES = [(1,), (7, 5), (33,)]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.25, torch.tensor(0.25)])
def test_three_steps_equal_torchs_adamw(grad_dtype, scale):
    g = torch.Generator().manual_seed(0)
    masters = [torch.randn(shape, generator=g) for shape in SHAPES]
    params = [master.bfloat16() for master in masters]
    theirs = [master.clone().requires_grad_() for master in masters]
    optimizer = torch.optim.AdamW(theirs, **OPTIONS, foreach=False)
    means, squares = ([torch.zeros_like(master) for master in masters] for _ in range(2))
    for step in (1, 2, 3):
        grads = [torch.randn(shape, generator=g).to(grad_dtype) for shape in SHAPES]
        kept = [grad.clone() for grad in grads]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.float() * scale
        optimizer.step()
        adamw_(masters, params, grads, means, squares, **OPTIONS, step=step, grad_scale=scale)
        assert all(torch.equal(grad, copy) for grad, copy in zip(grads, kept, strict=True))
    for master, param, parameter in zip(masters, params, theirs, strict=True):
        torch.testing.assert_close(master, parameter.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(param, master.bfloat16())


def test_a_parameter_may_be_its_own_master():
    master = torch.ones(4)
    adamw_([master], [master], [torch.ones(4)], [torch.zeros(4)], [torch.zeros(4)], **OPTIONS, step=1, grad_scale=1.0)
    torch.testing.assert_close(master, torch.full((4,), 1.0 - 1e-3 - 1e-2 / (1.0 + 1e-3)))
