"""Updates of tensors in host memory on the GPU: bit for bit those of tensors that are there, as fast as the link.

pytest -m gpu tests/gpu/test_round_trip_gpu.py -s
"""

from __future__ import annotations

import time

import pytest
import torch

from luthier.train.adamw8 import AdamW8
from luthier.train.host_weights import HostWeights
from luthier.train.master_adamw import MasterAdamW
from luthier.train.round_trip import AtOnce, RoundTrip, _clear_error

pytestmark = pytest.mark.gpu
SIZES = [(1000, 4096), (7,), (256,), (33, 100), (4096, 4096), (1,)]


def updated(kind, place, run, *, live_place, grad_place, steps=3):
    """Masters, live parameters and states after some steps, all in host memory."""
    generator = torch.Generator().manual_seed(3)
    masters = [torch.nn.Parameter(torch.randn(size, generator=generator).to(place)) for size in SIZES]
    live = {one: torch.nn.Parameter(one.detach().to(live_place, torch.bfloat16)) for one in masters}
    optimizer = kind([{"params": masters[::2], "weight_decay": 0.1}, {"params": masters[1::2]}], lr=1e-2)
    for _ in range(steps):
        noise = [torch.randn(one.shape, generator=generator).bfloat16() for one in masters]
        pairs = [(one, other.to(grad_place)) for one, other in zip(masters, noise, strict=True)]
        optimizer.step_with(pairs, live, 0.5, run=run)
    states = [value.cpu() for one in masters for value in optimizer.state[one].values()]
    return [*(one.detach().cpu() for one in masters), *(live[one].detach().cpu() for one in masters), *states]


@pytest.mark.parametrize("kind", [MasterAdamW, AdamW8])
@pytest.mark.parametrize("live_place", ["cuda", "cpu"])
@pytest.mark.parametrize("piece", [1 << 16, 1 << 25])
def test_the_bits_of_tensors_on_the_device(kind, live_place, piece):
    there = updated(kind, "cuda", AtOnce(), live_place="cuda", grad_place="cuda")
    run = RoundTrip(torch.device("cuda"), piece=piece)
    came_back = updated(kind, "cpu", run, live_place=live_place, grad_place=live_place)
    assert all(torch.equal(one, other) for one, other in zip(there, came_back, strict=True))


def test_norm_of_gradients_in_host_memory():
    gradients = [torch.randn(1_000_000).bfloat16().pin_memory() for _ in range(5)]
    expected = torch.cat(gradients).double().norm()
    found = RoundTrip(torch.device("cuda"), piece=1 << 18).norm(gradients)
    assert found.is_cuda
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=0)


def test_pages_are_given_back():
    tensor = torch.nn.Parameter(torch.zeros(1 << 20))
    run = RoundTrip(torch.device("cuda"))
    optimizer = MasterAdamW([tensor], lr=1e-2)
    optimizer.step_with([(tensor, torch.ones(1 << 20, device="cuda"))], {tensor: tensor}, 1.0, run=run)
    assert tensor.is_pinned() and optimizer.state[tensor]["exp_avg"].is_pinned()
    del run
    assert not tensor.is_pinned() and not optimizer.state[tensor]["exp_avg"].is_pinned()


def test_pages_are_given_back_between_two_optimizers():
    """As `lr-find` does between its walks."""
    tensor, run = torch.nn.Parameter(torch.zeros(1 << 20)), RoundTrip(torch.device("cuda"))
    for _ in range(2):
        optimizer = MasterAdamW([tensor], lr=1e-2)
        optimizer.step_with([(tensor, torch.ones(1 << 20, device="cuda"))], {tensor: tensor}, 1.0, run=run)
        assert tensor.is_pinned() and optimizer.state[tensor]["exp_avg"].is_pinned()
        run.release()
        assert not tensor.is_pinned() and not optimizer.state[tensor]["exp_avg"].is_pinned()


def test_a_refusal_leaves_no_error_to_the_next_kernel():
    tensor, cudart = torch.zeros(1 << 20), torch.cuda.cudart()
    assert int(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0
    try:
        assert int(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) != 0, "it is registered already"
        _clear_error(torch.device("cuda"))
        assert float(torch.ones(2, device="cuda").add_(1.0).sum()) == 4.0
    finally:
        cudart.cudaHostUnregister(tensor.data_ptr())


@pytest.mark.parametrize("kind", [MasterAdamW, AdamW8])
def test_a_scale_that_is_no_number_changes_nothing(kind):
    """Weights in host memory too, of which the kernel would only write."""
    masters = [torch.nn.Parameter(torch.randn(size)) for size in SIZES]
    live = {one: torch.nn.Parameter(one.detach().bfloat16()) for one in masters}
    before = [one.detach().clone() for one in [*masters, *live.values()]]
    pairs = [(one, torch.ones(one.shape).bfloat16()) for one in masters]
    run = RoundTrip(torch.device("cuda"), piece=1 << 16)
    kind(masters, lr=0.1).step_with(pairs, live, torch.tensor(torch.nan, device="cuda"), run=run)
    assert all(torch.equal(one, other) for one, other in zip(before, [*masters, *live.values()], strict=True))


class Whole(torch.nn.Module):
    """Weights of 16 bits on the GPU."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.randn(4096, 4096, device="cuda").bfloat16()) for _ in range(count)]
        )


def test_seconds_for_a_billion_weights():
    """Printed, with the link's own rate; a step may not take three times what its bytes do."""
    model = Whole(60)
    weights = HostWeights(model)
    weights.run = RoundTrip(torch.device("cuda"))
    optimizer = MasterAdamW(list(weights.tensors.values()), lr=1e-4)
    pinned, there = torch.empty(1 << 30, dtype=torch.uint8).pin_memory(), torch.empty(1 << 30, dtype=torch.uint8).cuda()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(4):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    link = 4 * (1 << 30) / (time.perf_counter() - began)
    count = sum(p.numel() for p in model.parameters())
    seconds = []
    for _ in range(4):
        weights.begin(passes=1, processes=1)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        weights.collect()
        torch.cuda.synchronize()
        began = time.perf_counter()
        weights.apply(optimizer, scale=1.0)
        seconds.append(time.perf_counter() - began)
    each = min(seconds) / count * 1e9
    rate = 12 * count / min(seconds) / 1e9
    print(f"\nlink {link / 1e9:.1f} GB/s; {count / 1e9:.2f}e9 weights: {[round(one, 3) for one in seconds]} s")
    print(f"{each:.3f} s a billion; {rate:.1f} GB/s each way")
    assert min(seconds) < 3 * 12 * count / link
