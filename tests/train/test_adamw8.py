"""Contract: state in bytes but for small tensors, resumed bitwise; masters and parameters move together."""

from __future__ import annotations

import pytest
import torch

from luthier.fast.kernels import maps8
from luthier.train.adamw8 import SMALLEST, AdamW8, as_codes, decoded
from luthier.train.optim_state import optimizer_state, restore_optimizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(seed=0):
    shapes = {"matrix": (80, 64), "window": (61, 83), "bias": (64,), "edge": (SMALLEST,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator(seed))) for name, shape in shapes.items()}


def optimizer_over(tensors):
    groups = [{"params": [tensors["matrix"], tensors["window"]], "weight_decay": 0.1}]
    groups.append({"params": [tensors["bias"], tensors["edge"]], "weight_decay": 0.0})
    return AdamW8(groups, lr=1e-2, betas=(0.9, 0.95))


def run(tensors, optimizer, steps):
    for step in steps:
        for index, tensor in enumerate(tensors.values()):
            tensor.grad = torch.randn(tensor.shape, generator=generator(1000 * index + step))
        optimizer.step()


def test_small_tensors_keep_fp32_moments_and_the_rest_bytes():
    tensors = parameters()
    optimizer = optimizer_over(tensors)
    run(tensors, optimizer, range(1))
    assert set(optimizer.state[tensors["bias"]]) == {"step", "exp_avg", "exp_avg_sq"}
    for name in ("matrix", "window", "edge"):
        state, size = optimizer.state[tensors[name]], tensors[name].numel()
        assert sum(value.nbytes for key, value in state.items() if key != "step") == 2 * size + 8 * -(-size // 256)


@pytest.mark.parametrize("by", ["load_state_dict", "optim_state"])
def test_resumption_is_bitwise(by):
    whole, first = parameters(), parameters()
    run(whole, optimizer_over(whole), range(6))
    before = optimizer_over(first)
    run(first, before, range(3))
    second = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in first.items()}
    after = optimizer_over(second)
    if by == "load_state_dict":
        after.load_state_dict(before.state_dict())
    else:
        held, numbers = optimizer_state(before, first)
        restore_optimizer(after, second, held={key: value.clone() for key, value in held.items()}, numbers=numbers)
    for name, tensor in second.items():
        for key, value in before.state[first[name]].items():
            again = after.state[tensor][key]
            assert torch.equal(again, value) and again.dtype == value.dtype
    run(second, after, range(3, 6))
    assert all(torch.equal(second[name], whole[name]) for name in whole)


def test_step_with_writes_live_parameters_from_their_16_bit_gradients():
    tensors = parameters()
    live = {name: torch.nn.Parameter(tensor.detach().bfloat16()) for name, tensor in tensors.items()}
    plain = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in tensors.items()}
    one, other = optimizer_over(tensors), optimizer_over(plain)
    for step in range(3):
        grads = {name: torch.randn(t.shape, generator=generator(step)).bfloat16() for name, t in tensors.items()}
        one.step_with([(tensors[name], grads[name]) for name in tensors], {tensors[n]: live[n] for n in tensors}, 0.5)
        for name, tensor in plain.items():
            tensor.grad = grads[name].float() * 0.5
        other.step()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, plain[name]) and torch.equal(live[name], tensor.detach().bfloat16())


def test_tensors_without_gradients_keep_their_own_count():
    tensors = parameters()
    optimizer = optimizer_over(tensors)
    run(tensors, optimizer, range(2))
    tensors["matrix"].grad, start = None, tensors["matrix"].detach().clone()
    optimizer.step()
    assert torch.equal(tensors["matrix"], start)
    assert {int(optimizer.state[tensor]["step"]) for tensor in tensors.values()} == {2, 3}


def test_state_of_bitsandbytes_is_taken_over():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tensors = parameters()
    old = bitsandbytes.optim.AdamW8bit(list(tensors.values()), lr=1e-2)
    run(tensors, old, range(4))
    held, numbers = optimizer_state(old, tensors)
    new = AdamW8(list(tensors.values()), lr=1e-2)
    restore_optimizer(new, tensors, held=held, numbers=numbers)
    for name, tensor in tensors.items():
        mean = torch.zeros_like(tensor)
        for step in range(4):
            index = list(tensors).index(name)
            mean.lerp_(torch.randn(tensor.shape, generator=generator(1000 * index + step)), 0.1)
        state = new.state[tensor]
        assert int(state["step"]) == 4
        got = state["exp_avg"] if "exp_avg" in state else maps8.decode_signed(state["state1"], state["absmax1"])
        assert torch.nn.functional.cosine_similarity(got.flatten(), mean.flatten(), dim=0) > 0.995
        assert not bool((state.get("state2", torch.ones(1)) == 0).all())
    run(tensors, new, range(4, 5))
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_shards_of_whole_blocks_take_the_steps_of_the_whole():
    """What FSDP2 makes of a matrix: its rows over two processes, here of 40 x 64 = 10 blocks."""
    whole = torch.nn.Parameter(torch.randn(80, 64, generator=generator()))
    halves = [torch.nn.Parameter(part.clone()) for part in whole.detach().split(40)]
    optimizers = [
        AdamW8([{"params": tensors}], in_8_bits=tensors, lr=1e-2, betas=(0.9, 0.95)) for tensors in ([whole], halves)
    ]
    for step in range(5):
        gradient = torch.randn(whole.shape, generator=generator(step))
        whole.grad, (halves[0].grad, halves[1].grad) = gradient, gradient.split(40)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.cat([half.detach() for half in halves]), whole)
    assert halves[0].numel() < SMALLEST, "by its own size a half would have fp32 moments"
    for key in ("state1", "absmax1", "state2", "absmax2"):
        both = torch.cat([optimizers[1].state[half][key] for half in halves])
        assert torch.equal(both, optimizers[0].state[whole][key])


def test_moments_go_to_fp32_and_back_without_a_change():
    tensors = {"window": parameters()["window"]}
    optimizer = AdamW8([{"params": list(tensors.values())}], lr=1e-2)
    run(tensors, optimizer, range(3))
    state = {key: value for key, value in optimizer.state[tensors["window"]].items() if key != "step"}
    again = as_codes(decoded(state))
    assert set(again) == set(state) and all(torch.equal(again[key], state[key]) for key in state)


def test_state_is_taken_over_by_an_optimizer_that_keeps_it_otherwise():
    """Shards that are no whole blocks have fp32 moments, whatever the tensor has elsewhere."""
    tensor = parameters()["matrix"]
    coded = AdamW8([{"params": [tensor]}], lr=1e-2)
    run({"matrix": tensor}, coded, range(2))
    plain = AdamW8([{"params": [tensor]}], in_8_bits=[], lr=1e-2)
    plain.load_state_dict(coded.state_dict())
    assert set(plain.state[tensor]) == {"step", "exp_avg", "exp_avg_sq"}
    back = AdamW8([{"params": [tensor]}], lr=1e-2)
    back.load_state_dict(plain.state_dict())
    assert all(torch.equal(value, coded.state[tensor][key]) for key, value in back.state[tensor].items())


def test_an_empty_shard_is_no_obstacle():
    tensors = [torch.nn.Parameter(torch.zeros(0, 256)), torch.nn.Parameter(torch.ones(4, 256))]
    optimizer = AdamW8([{"params": tensors}], in_8_bits=tensors, lr=1e-2)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    assert float(tensors[1].detach().max()) < 1.0
