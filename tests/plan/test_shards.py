"""Contract: bytes of a device under each way to spread a model, by hand; more devices never need more on each."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.plan.activations import activation_bytes, transient_bytes
from luthier.plan.devices import DEVICES
from luthier.plan.efficiency import EFFICIENCY
from luthier.plan.gathered import gathered_bytes, layer_bytes
from luthier.plan.host import HOST_BANDWIDTH, HOST_TRAFFIC, PROCESS_BYTES, SHARD_FILE, WHOLE_FILE, estimate_host
from luthier.plan.known import known_model
from luthier.plan.memory import estimate_memory
from luthier.plan.setting import Setting, Way
from luthier.plan.sizes import sizes_of
from luthier.plan.states import held_weights
from luthier.plan.time import estimate_step
from luthier.plan.work import assumed_documents
from luthier.recipe.schema import MethodSection
from luthier.train.checkpoint import SHARD_BYTES
from luthier.train.distributed.shards import FILE_BYTES
from tests.support.often import often

P = 8_030_261_248
D, Q, KV, F, V, L = 4096, 4096, 1024, 14336, 128_256, 32
LAYER = 218_103_808
"""Linear weights of a layer of Llama-3.1-8B: qkv 6,144, o 4,096, gate and up 28,672 by 4,096, down 4,096 by 14,336."""
ENDS = 2 * D * V
NORM_ELEMENTS = P - L * LAYER - ENDS


def _sizes(**method):
    return sizes_of(known_model("Llama-3.1-8B"), MethodSection(**(method or {"name": "full"})))


def _setting(strategy, *, world=8, offload="none", shared=1, **more):
    way = Way(strategy=strategy, offload=offload, sequence_parallel=shared)
    return Setting(**{"micro_tokens": 2048, "world": world, "way": way, "extended": False, "replay": False, **more})


def _memory(sizes, setting, optim="adamw_torch_fused"):
    return estimate_memory(sizes, setting, optim=optim, supervised=0.6)


@pytest.mark.parametrize(
    ("strategy", "offload", "weights", "masters", "optimizer"),
    [
        ("ddp", "none", 2 * P, 4 * P, 8 * P),
        ("zero2", "none", 2 * P, P // 2, P), ("zero1", "none", 2 * P, P // 2, P),
        ("fsdp2", "none", P // 4, P // 2, P), ("zero3", "none", P // 4, P // 2, P),
        ("fsdp2", "optimizer", P // 4, 0, 0), ("zero2", "optimizer", 2 * P, 0, 0),
        ("fsdp2", "all", 0, 0, 0), ("zero3", "all", 0, 0, 0),
    ],
)  # fmt: skip
def test_what_each_of_eight_devices_holds_of_a_full_fine_tune(strategy, offload, weights, masters, optimizer):
    memory = _memory(_sizes(), _setting(strategy, offload=offload))
    assert (memory.weights, memory.masters, memory.optimizer) == (weights, masters, optimizer)


def test_gradients_of_each_way():
    """At the end of a step of one, or of several micro-batches; 8B, eight devices, all layers recomputed."""

    def gradients(strategy, accumulate, **more):
        setting = _setting(strategy, micro_tokens=1, recompute="layer", accumulate=accumulate, **more)
        return _memory(_sizes(), setting).gradients

    assert gradients("ddp", 1) == gradients("ddp", 2) == 4 * P
    assert gradients("zero1", 1) == gradients("zero1", 2) == 4 * P  # whole
    assert gradients("zero2", 1) == gradients("zero3", 1) == 4 * P // 8  # their partition, in fp32
    assert (gradients("fsdp2", 1), gradients("fsdp2", 2)) == (2 * P // 8, 4 * P // 8)
    assert gradients("fsdp2", 2, offload="all") == 0
    assert gradients("fsdp2", 2, offload="optimizer") == 4 * P // 8


def test_adapters_stay_whole_under_fsdp2_and_are_divided_by_deepspeed():
    sizes = _sizes(name="lora")
    p = sizes.trainable
    fsdp2, zero3 = _memory(sizes, _setting("fsdp2")), _memory(sizes, _setting("zero3"))
    assert (fsdp2.masters, fsdp2.optimizer) == (4 * p, 8 * p)
    assert (zero3.masters, zero3.optimizer) == (4 * p // 8, 8 * p // 8)
    moved = _memory(sizes, _setting("fsdp2", offload="all"))  # the state of adapters is small and stays
    assert (moved.masters, moved.optimizer, moved.weights) == (4 * p, 8 * p, 0)


def test_modules_to_save_are_whole_beside_a_sharded_base():
    sizes = _sizes(name="lora", modules_to_save=["lm_head"])
    held = held_weights(sizes, _setting("fsdp2"))
    assert held == {"shards": 2 * P // 8, "whole": 2 * D * V}
    assert held_weights(sizes, _setting("zero3")) == {"shards": (2 * P + 2 * D * V) // 8, "whole": 0}
    memory = _memory(sizes, _setting("fsdp2"))
    assert memory.masters == 4 * (D * V + sizes.adapter_parameters)


def test_packed_bases_in_shards_by_hand():
    lora, body, outside = _sizes(name="qlora"), L * LAYER, P - L * LAYER
    # 4 bits and an 8-bit scale per 64 values in shards; an fp32 scale per 256 of those scales on each device
    nf4 = held_weights(lora, _setting("fsdp2", base="nf4"))
    assert nf4["shards"] == pytest.approx((body * (0.5 + 1 / 64) + 2 * outside) / 8, rel=1e-9, abs=2)
    assert nf4["whole"] == round(body * 4 / 256 / 64)
    # both 8-bit copies with an fp32 scale a row each, no 16-bit matrix
    scales = 4 * L * (6144 + 4096 + 4096 + 4096 + 28672 + 4096 + 4096 + 14336)
    fp8 = held_weights(_sizes(name="lora"), _setting("fsdp2", base="fp8"))
    assert fp8 == {"shards": -(-(2 * body + scales + 2 * outside) // 8), "whole": 0}
    assert layer_bytes(lora, _setting("fsdp2", base="nf4")) == round(LAYER * (0.5 + 1 / 64))
    assert layer_bytes(lora, _setting("fsdp2", base="fp8")) == 2 * LAYER + scales // L


def test_what_fsdp2_gathers_by_moment():
    """Embeddings and head whole; one layer, two in the backward pass, all with `reshard_after_forward: false`; of
    trained layers a 16-bit gradient and an fp32 buffer; at last embeddings' and head's gradient with its buffer."""
    full, lora = _sizes(), _sizes(name="lora")
    root, layer = 2 * ENDS, 2 * LAYER
    assert gathered_bytes(lora, _setting("fsdp2")) == {
        "loss": root + layer, "backward": root + 2 * layer, "end": root + layer, "root": 0
    }  # fmt: skip
    more = 6 * LAYER + root
    assert gathered_bytes(full, _setting("fsdp2")) == {
        "loss": root + layer, "backward": root + 2 * layer + more, "end": root + layer + more, "root": 6 * ENDS
    }  # fmt: skip
    kept = gathered_bytes(full, _setting("fsdp2", reshard=False))
    assert (kept["loss"], kept["end"]) == (root + 32 * layer, root + layer + more)
    assert set(gathered_bytes(full, _setting("ddp")).values()) == {0}
    one = replace(_setting("fsdp2"), world=1)
    assert set(gathered_bytes(full, one).values()) == {0}


def test_devices_that_share_a_sequence_keep_its_parts():
    """1/8 of the tokens, and attention's output once more (before and after the exchange)."""
    sizes = _sizes(name="lora")
    alone = activation_bytes(sizes, _setting("fsdp2", micro_tokens=131_072))
    part = activation_bytes(sizes, _setting("fsdp2", micro_tokens=16_384, shared=8))
    assert part == alone // 8 + L * 16_384 * 2 * Q


# -- host memory


def test_files_are_those_of_the_writers():
    from luthier.train import checkpoint
    from luthier.train.distributed import shards

    assert (WHOLE_FILE, SHARD_FILE) == (checkpoint.SHARD_BYTES, shards.FILE_BYTES)


def test_host_memory_by_hand():
    full = _sizes()
    plain = estimate_host(full, _setting("fsdp2", world=16), optim="adamw_torch_fused")
    assert (plain.devices, plain.processes, plain.states, plain.weights) == (8, 8 * PROCESS_BYTES, 0, 0)
    assert plain.loading == 8 * 2 * D * V  # the largest tensor, embeddings
    assert plain.checkpoint == 8 * 2 * SHARD_FILE  # of masters and moments of eight of sixteen devices a file, twice
    assert plain.result == 5_000_000_000
    states = estimate_host(full, _setting("fsdp2", world=16, offload="optimizer"), optim="adamw_torch_fused")
    assert (states.states, states.weights) == (8 * (4 * P // 16 + 8 * P // 16), 0)
    everything = estimate_host(full, _setting("fsdp2", world=16, offload="all"), optim="adamw_torch_fused")
    assert everything.states == states.states
    assert everything.weights == 8 * 2 * (2 * P // 16)  # shards, and their gradients
    assert everything.total == sum((plain.processes, states.states, everything.weights, plain.checkpoint))
    copied = estimate_host(full, _setting("ddp"), optim="adamw_torch_fused")
    assert copied.checkpoint == 2 * WHOLE_FILE < 12 * P  # process 0 writes it, file by file
    adapters = _sizes(name="lora")
    small = estimate_host(adapters, _setting("ddp"), optim="adamw_torch_fused")
    assert small.checkpoint == 2 * 12 * adapters.trainable < 2 * WHOLE_FILE
    zero = estimate_host(full, _setting("zero3", world=16), optim="adamw_torch_fused")
    assert zero.checkpoint == plain.checkpoint  # the same shards, file by file
    beside = estimate_host(adapters, _setting("zero3", world=16), optim="adamw_torch_fused")
    assert beside.checkpoint == 3 * 12 * adapters.trainable  # process 0 has them whole, and their files twice
    assert (WHOLE_FILE, SHARD_FILE) == (SHARD_BYTES, FILE_BYTES)
    fp32 = _setting("ddp", world=1, offload="optimizer", dtype_bytes=4)
    assert estimate_host(full, fp32, optim="adamw_torch_fused").states == 12 * P  # the copy, too
    qlora = _sizes(name="qlora")
    packed = estimate_host(qlora, _setting("fsdp2", base="nf4"), optim="adamw_torch_fused", values_first=True)
    assert packed.loading == 8 * 2 * P  # each process has the base in 16 bits until it is packed


@pytest.mark.parametrize(("optim", "each"), [("adamw_torch_fused", 12), ("adamw_8bit", 6), ("sgd", 0)])
def test_pieces_that_travel_are_on_the_device(optim, each):
    """Four pieces of 32 Mi weights with their masters and moments; other optimizers update in host memory."""
    few = _setting("ddp", world=1, offload="optimizer", micro_tokens=64, recompute="layer")
    memory = _memory(_sizes(), few, optim=optim)
    layer = transient_bytes(_sizes(), few, 64, whole=True)
    assert memory.transient == max(layer, 3 * 32 * 2**20 * each) and (memory.moment == "end" or not each)
    small = sizes_of(known_model("SmolLM2-135M"), MethodSection(name="full"))
    assert _memory(small, few, optim=optim).transient <= 12 * small.trainable  # no more than there is


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("strategy", "world"), [("ddp", 1), ("fsdp2", 2)])
def test_a_cpu_has_one_memory(strategy, world, size):
    """What is offloaded stays in it: no byte less, and copies of fp32 weights are more; the host's are not twice."""
    full = _sizes()

    def both(offload):
        setting = _setting(strategy, world=world, offload=offload, dtype_bytes=size)
        memory = estimate_memory(full, setting, optim="adamw_torch_fused", supervised=0.6, device_type="cpu")
        host = estimate_host(full, setting, optim="adamw_torch_fused", cuda=False)
        return memory, (host.states, host.weights)

    plain, moved = both("none")[0], both("optimizer")[0]
    assert moved.masters == 4 * P // world and moved.optimizer == plain.optimizer == 8 * P // world
    assert moved.total - plain.total == (4 * P // world if size == 4 else 0)
    assert both("all")[0].total == plain.total
    assert both("optimizer")[1] == both("all")[1] == (0, 0)


DOCUMENTS = assumed_documents(max_length=2048, packing=True, mean_tokens=2048, rows=64)


def offload_step(offload, accumulate=1, *, optim="adamw_torch", world=4, strategy="fsdp2", device=DEVICES["H200"]):
    setting = _setting(strategy, world=world, offload=offload, accumulate=accumulate)
    return estimate_step(_sizes(), setting, DOCUMENTS, device, step_tokens=2048 * accumulate, optim=optim)


def test_time_of_an_update_on_the_cpu_by_hand():
    """A quarter of 8B on each of four H200s: gradients of 2 bytes down, weights of 2 up, 48 GB/s; 28 bytes a weight
    read and written by the host's memory, for all four at once."""
    device, step = DEVICES["H200"], offload_step
    there = P / 4 * (2 + 2) / 48e9
    update = P * (2 + 8 + 16 + 2) / HOST_BANDWIDTH
    assert step("optimizer").offload == pytest.approx(there + update)
    assert step("all").offload == pytest.approx(update)  # gradients and weights are there
    assert step("optimizer", 4).offload == pytest.approx(P / 4 * (4 + 2) / 48e9 + P * 30 / HOST_BANDWIDTH)  # fp32 sums
    norm = P / 4 * 2 / (device.bandwidth * EFFICIENCY.optimizer)
    assert step("optimizer").optimizer == pytest.approx(norm)
    assert step("none").offload == 0.0
    # All shards come through the host's link: 2 bytes of a quarter of what is gathered, and gradients go back.
    moved = (2 * (2 * L * LAYER + ENDS) + 2 * P) / 4
    slow = step("all").exchange - step("none").exchange
    assert slow > 0 and moved / 48e9 > step("none").exchange


def test_time_of_an_update_that_travels_by_hand():
    """Masters and moments of 12 bytes a weight up and down at once: 48 GB/s of a device, 139 GB/s of a host."""
    alone = offload_step("optimizer", optim="adamw_torch_fused", world=1, strategy="ddp")
    assert alone.offload == pytest.approx(12 * P / 48e9)
    assert 12 * P / 48e9 > 2 * 12 * P / HOST_TRAFFIC
    four = offload_step("optimizer", optim="adamw_torch_fused")
    assert four.offload == pytest.approx(4 * 2 * 12 * (P / 4) / HOST_TRAFFIC)
    small = offload_step("optimizer", optim="adamw_8bit")
    assert small.offload == pytest.approx(four.offload * (4 + 2 * (1 + 4 / 256)) / 12, rel=1e-3)
    # With everything there gradients go up twice more, and weights come back.
    everything = offload_step("all", optim="adamw_torch_fused")
    assert everything.offload == pytest.approx(4 * (24 + 2 * 2 + 2) * (P / 4) / HOST_TRAFFIC)
    sums = offload_step("all", 4, optim="adamw_torch_fused")
    assert sums.offload == pytest.approx(4 * (24 + 2 * 4 + 2) * (P / 4) / HOST_TRAFFIC)
    zero3 = offload_step("optimizer", optim="adamw_torch_fused", strategy="zero3")  # DeepSpeed's own, on the CPU
    assert zero3.offload > 2 * four.offload


# -- properties


WAYS = [
    ("ddp", "none"), ("zero2", "none"), ("zero2", "optimizer"), ("fsdp2", "none"), ("fsdp2", "optimizer"),
    ("fsdp2", "all"), ("zero3", "none"), ("zero3", "optimizer"), ("zero3", "all"),
]  # fmt: skip
METHODS = [
    {"name": "full"}, {"name": "lora"}, {"name": "lora", "modules_to_save": ["lm_head"]},
    {"name": "freeze", "last_n_layers": 2},
]  # fmt: skip
NAMES = ["SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5-7B", "Llama-3.1-8B", "gemma-2-2b", "Llama-3.1-70B"]


@settings(max_examples=often(60), deadline=None)
@given(
    name=st.sampled_from(NAMES), method=st.sampled_from(METHODS), way=st.sampled_from(WAYS),
    tokens=st.integers(64, 16_384), accumulate=st.integers(1, 3), base=st.sampled_from(["plain", "nf4", "fp8"]),
    size=st.sampled_from([2, 4]), reshard=st.booleans(),
)  # fmt: skip
def test_more_devices_never_need_more_bytes_each(name, method, way, tokens, accumulate, base, size, reshard):
    sizes = sizes_of(known_model(name), MethodSection(**method))

    def memory(world):
        setting = _setting(
            way[0], world=world, offload=way[1], micro_tokens=tokens, accumulate=accumulate, base=base,
            dtype_bytes=size, reshard=reshard,
        )  # fmt: skip
        return _memory(sizes, setting)

    found = [memory(world) for world in (2, 3, 8, 64, 512)]
    for fewer, more in pairwise(found):
        assert more.total <= fewer.total + 8  # each part is rounded up
    assert all(size >= 0 for one in found for size in one.parts().values())


@settings(max_examples=often(40), deadline=None)
@given(
    name=st.sampled_from(NAMES), method=st.sampled_from(METHODS), length=st.integers(4096, 1 << 20),
    recompute=st.sampled_from(["none", "selective", "layer"]), strategy=st.sampled_from(["ddp", "fsdp2"]),
)  # fmt: skip
def test_more_devices_a_sequence_never_keep_more(name, method, length, recompute, strategy):
    sizes = sizes_of(known_model(name), MethodSection(**method))

    def kept(shared):
        tokens = -(-length // shared)
        setting = _setting(strategy, micro_tokens=tokens, shared=shared, recompute=recompute)
        whole = recompute == "layer"
        return activation_bytes(sizes, setting, 0.6), transient_bytes(sizes, setting, tokens, whole=whole), setting

    found = [kept(shared) for shared in (1, 2, 4, 8)]
    for fewer, more in pairwise(found):
        assert more[0] <= fewer[0] and more[1] <= fewer[1]
    # Long enough that activations decide: each doubling of the devices of a sequence frees memory.
    if length > 1 << 19 and sizes.backward_layers > 8:
        totals = [_memory(sizes, setting).total for _, _, setting in found]
        assert totals == sorted(totals, reverse=True)


@settings(max_examples=often(40), deadline=None)
@given(
    name=st.sampled_from(NAMES), method=st.sampled_from(METHODS), tokens=st.integers(64, 16_384),
    world=st.sampled_from([2, 8, 64]), strategy=st.sampled_from(["fsdp2", "zero3"]),
)  # fmt: skip
def test_offload_frees_devices_fills_hosts_and_takes_time(name, method, tokens, world, strategy):
    sizes = sizes_of(known_model(name), MethodSection(**method))
    documents = assumed_documents(max_length=1024, packing=True, mean_tokens=300, rows=1000)
    device, hosts, steps = [], [], []
    for offload in ("none", "optimizer", "all"):
        setting = _setting(strategy, world=world, offload=offload, micro_tokens=tokens)
        device.append(_memory(sizes, setting).total)
        hosts.append(estimate_host(sizes, setting, optim="adamw_torch_fused").total)
        steps.append(
            estimate_step(
                sizes, setting, documents, DEVICES["L4"], step_tokens=float(tokens), optim="adamw_torch_fused"
            ).total
        )
    assert device == sorted(device, reverse=True) and hosts == sorted(hosts)
    if not sizes.adapters:  # an update of adapters takes no time either way
        assert steps[1] > steps[0] and steps[2] > steps[0]
