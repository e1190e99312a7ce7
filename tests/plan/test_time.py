"""Contract: operations are those of the published formulas, and the constants reproduce what was measured."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.fast.kernels.attention_schedule import supports
from luthier.plan.devices import DEVICES
from luthier.plan.efficiency import CPU_EFFICIENCY, EFFICIENCY
from luthier.plan.flops import model_flops_per_token
from luthier.plan.known import known_model, known_names
from luthier.plan.launches import ATTENTION_WIDTHS
from luthier.plan.machine import CPU_CORE_BANDWIDTH, CPU_CORE_BF16, CPU_CORE_FP32, cpu_accelerator
from luthier.plan.setting import Setting, Way
from luthier.plan.sharding import ZERO3_LAYER, ZERO3_TENSOR, ZERO_SHOWN, exchange_seconds
from luthier.plan.sizes import sizes_of
from luthier.plan.time import estimate_step
from luthier.plan.work import Documents, assumed_documents
from luthier.recipe.schema import MethodSection
from tests.support.often import often

H200 = DEVICES["H200"]


def _sizes(model: str, **method):
    return sizes_of(known_model(model), MethodSection(**(method or {"name": "lora"})))


def _rows_of(tokens: int) -> Documents:
    """Full rows of one length, all trained."""
    return Documents(
        rows=64, tokens=64 * tokens, squares=64.0 * tokens * tokens, supervised=1.0, sequences=64,
        longest_sequence=tokens, how="test",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "length", "full", "lora"),
    [
        # GFLOP a token, shared/research/perf.md §2.1: they count 3.5 A, MFU counts 3 A.
        ("Llama-3.1-8B", 1024, 46.0, 31.2), ("Llama-3.1-8B", 4096, 48.8, 34.0), ("Llama-3.2-1B", 1024, 7.65, 5.25),
        ("Qwen2.5-0.5B", 4096, 3.58, 2.65), ("SmolLM2-135M", 1024, 0.93, 0.69),
    ],
)  # fmt: skip
def test_operations_a_token_are_those_of_the_report(model, length, full, lora):
    for method, gflop in (("full", full), ("lora", lora)):
        sizes = _sizes(model, name=method)
        attention = 2 * length * sizes.shape.query * sizes.shape.layers
        counted = model_flops_per_token(sizes, _rows_of(length)) + 0.5 * attention
        assert counted == pytest.approx(gflop * 1e9, rel=0.01)


def test_freezing_drops_the_backward_pass_below():
    documents = _rows_of(1024)
    body = 32 * 218_103_808
    sizes = _sizes("Llama-3.1-8B", name="freeze", last_n_layers=8)
    attention = 2.0 * 1024 * 4096 * 32
    # forward of all layers, backward of 8: two passes forward, two input gradient and two weight gradient on a quarter
    expected = body * (2 + 2 * 0.25 + 2 * 0.25) + 4 * 4096 * 128_256 + attention * (1 + 2 * 0.25)
    assert model_flops_per_token(sizes, documents) == pytest.approx(expected, rel=1e-6)


def test_the_constants_reproduce_two_cores():
    """benchmarks/results/cpu_vs_trl.md: rows of about 230 tokens, 60% trained."""
    cpu = replace(
        cpu_accelerator(), fp32=2 * CPU_CORE_FP32, bf16=2 * CPU_CORE_BF16, bf16_datasheet=2 * CPU_CORE_BF16,
        bandwidth=2 * CPU_CORE_BANDWIDTH,
    )  # fmt: skip
    documents = assumed_documents(max_length=1024, packing=True, mean_tokens=230, rows=1000)
    for method, size, measured in (("lora", 4, 395), ("lora", 2, 624), ("full", 4, 302), ("full", 2, 477)):
        setting = Setting(micro_tokens=1024, accumulate=2, dtype_bytes=size)
        step = estimate_step(
            _sizes("SmolLM2-135M", name=method), setting, documents, cpu, step_tokens=2048, optim="adamw_torch_fused",
            table=CPU_EFFICIENCY,
        )  # fmt: skip
        assert 2048 / step.total == pytest.approx(measured, rel=0.15), (method, size)


def _attention_ms(sizes, length):
    setting = Setting(micro_tokens=16_384)
    return 1e3 * estimate_step(sizes, setting, _rows_of(length), H200, step_tokens=16_384, optim="sgd").attention


@pytest.mark.parametrize(
    ("model", "length", "milliseconds"),
    [
        # 16,384 tokens a layer, forward and backward, benchmarks/gpu/attention.py on an H200. Documents of one length
        # that cost what the measured ones did: sum n^2 / sum n from the operations of FlashAttention-2 beside them.
        ("Llama-3.1-8B", 1342, 0.512 + 0.711 + 0.982), ("Llama-3.1-8B", 16_384, 4.217 + 6.514 + 10.044),
        ("Llama-3.2-1B", 322, 0.107 + 0.145 + 0.187),
    ],
)  # fmt: skip
def test_attention_reproduces_measured_kernels(model, length, milliseconds):
    """Alone they run faster than inside a step, where the card is warm: the constants are those of steps."""
    sizes = _sizes(model)
    assert 0.9 * milliseconds <= _attention_ms(sizes, length) / sizes.shape.layers <= 1.3 * milliseconds


def test_heads_of_other_widths_take_the_attention_of_torch():
    """FlashAttention-2, 32/8 heads of 128: 1.82 ms over 54 documents, 4.09 over 8 rows of 2,048 (shared/gpu)."""
    sizes = _sizes("Llama-3.1-8B")
    assert {width for width in range(8, 520, 8) if supports(width, torch.bfloat16)} == set(ATTENTION_WIDTHS)
    other = replace(sizes, shape=replace(sizes.shape, head_dim=80, heads=32 * 128 // 80))  # 4,080 wide
    foreign = replace(sizes, shape=replace(sizes.shape, family="gemma2"))
    for length, milliseconds in ((303, 1.82), (2048, 4.09)):
        for changed in (other, foreign):
            assert _attention_ms(changed, length) / 32 == pytest.approx(milliseconds, rel=0.05)
        assert _attention_ms(sizes, length) < 0.8 * _attention_ms(other, length)


def test_unpacking_an_8b_base_takes_what_the_report_says():
    sizes = _sizes("Llama-3.1-8B", name="qlora")
    setting = Setting(micro_tokens=2048, base="nf4")
    perfect = replace(EFFICIENCY, elementwise=1.0)
    step = estimate_step(sizes, setting, _rows_of(1024), H200, step_tokens=2048, optim="sgd", table=perfect)
    assert step.unpack / 2 == pytest.approx(4.1e-3, rel=0.02)  # a pass: 3.6 GB read, 14 GB written at 4.3 TB/s


def test_a_step_takes_what_is_slower_device_or_launches():
    documents = _rows_of(300)

    def step(tokens, **changes):
        setting = Setting(micro_tokens=tokens, **{"accumulate": 1, "replay": False, **changes})
        tokens *= setting.accumulate
        return estimate_step(_sizes("SmolLM2-135M"), setting, documents, H200, step_tokens=tokens, optim="sgd")

    table = EFFICIENCY
    launches = 30 * (table.launches_per_layer + table.adapter_launches)
    batch = (launches + table.launches_batch) * table.launch_seconds
    fixed = table.launches_step * table.launch_seconds + table.step_seconds
    small, smaller, large = step(8_192), step(4_096), step(262_144)
    assert small.total == pytest.approx(batch + fixed)
    assert smaller.total == pytest.approx(small.total)  # however little the device has to do
    assert large.waiting == 0.0
    several = step(4_096, accumulate=4)  # every micro-batch is launched, the update once
    assert several.total == pytest.approx(4 * batch + fixed)
    again = step(4_096, recompute="layer")
    assert again.total == pytest.approx(batch + table.launches_forward * launches * table.launch_seconds + fixed)


@pytest.mark.parametrize(
    ("optim", "accumulate", "expected"),
    [
        # gradient twice, master read and written, moments read and written, weight written
        ("adamw_torch_fused", 1, 2 + 2 + 8 + 16 + 2), ("adamw_8bit", 1, 2 + 2 + 8 + 4 + 16 / 256 + 2),
        ("adamw_torch_fused", 4, 4 + 4 + 8 + 16 + 2), ("sgd", 1, 2 + 2 + 8 + 2),
    ],
)  # fmt: skip
def test_bytes_of_an_update(optim, accumulate, expected):
    sizes = _sizes("Llama-3.1-8B", name="full")
    setting = Setting(micro_tokens=2048, accumulate=accumulate)
    step = estimate_step(sizes, setting, _rows_of(1024), H200, step_tokens=2048 * accumulate, optim=optim)
    bytes_a_weight = step.optimizer * H200.bandwidth * EFFICIENCY.optimizer / sizes.trainable
    assert bytes_a_weight == pytest.approx(expected)


def _exchange(sizes, setting, *, compute, again=0, device=H200):
    return exchange_seconds(
        sizes, setting, device, compute=compute, tokens=setting.micro_tokens, again=again, table=EFFICIENCY
    )


def test_communication_by_hand():
    sizes = _sizes("Llama-3.1-8B", name="full")
    link = H200.link * EFFICIENCY.link
    copied = Setting(micro_tokens=2048, accumulate=4, world=8)
    # once a step, 2 x 7/8 of 4 bytes a gradient
    assert _exchange(sizes, copied, compute=1.0) == pytest.approx(2 * 7 / 8 * 4 * sizes.parameters / link)
    assert _exchange(sizes, replace(copied, world=1), compute=1.0) == 0.0
    sharded = replace(copied, way=Way(strategy="fsdp2"))
    # in each of four micro-batches the layers twice and the ends once in 2 bytes, the gradients once in 4: 7/8 of them
    ends = 2 * 4096 * 128_256
    gathered = 2 * (2 * sizes.linear + ends)
    wire = 4 * 7 / 8 * (gathered + 4 * sizes.parameters) / link
    # through the device's own memory: a gathered byte 3 + 2/8 times, a gradient 10 + 10/8 bytes
    copies = 4 * (gathered * 3.25 + 11.25 * sizes.parameters) / H200.bandwidth
    hidden = EFFICIENCY.exposed_communication * wire + copies
    assert _exchange(sizes, sharded, compute=100.0) == pytest.approx(hidden)
    assert _exchange(sizes, sharded, compute=0.01) == pytest.approx(wire - 0.01 + copies)
    once = _exchange(sizes, sharded, compute=100.0) - _exchange(sizes, replace(sharded, reshard=False), compute=100.0)
    saved = 4 * 2 * sizes.linear * (EFFICIENCY.exposed_communication * 7 / 8 / link + 3.25 / H200.bandwidth)
    assert once == pytest.approx(saved)


def test_deepspeeds_communication_by_hand():
    sizes = _sizes("Llama-3.1-8B", name="full")
    link, p = H200.link * EFFICIENCY.link, sizes.parameters
    zero2 = Setting(micro_tokens=2048, accumulate=4, world=8, way=Way(strategy="zero2"))
    # four all-reduces of 4 bytes that nothing hides, and what was updated once, in 2
    assert _exchange(sizes, zero2, compute=100.0) == pytest.approx(ZERO_SHOWN * 7 / 8 * (4 * 2 * 4 + 2) * p / link)
    zero1 = replace(zero2, way=Way(strategy="zero1"))  # one all-reduce a step
    assert _exchange(sizes, zero1, compute=100.0) == pytest.approx(ZERO_SHOWN * 7 / 8 * (2 * 4 + 2) * p / link)
    zero3 = replace(zero2, way=Way(strategy="zero3"))
    gathered = 2 * 2 * (sizes.linear + 2 * 4096 * 128_256)
    wire = 4 * 7 / 8 * (gathered + 4 * p) / link
    copies = 4 * (gathered * 3.25 + 11.25 * p) / H200.bandwidth
    # four times 32 layers of seven matrices and two norms by DeepSpeed's hooks, or the bytes, whichever takes longer
    hooks = 4 * 32 * (ZERO3_LAYER + 9 * ZERO3_TENSOR)
    assert _exchange(sizes, zero3, compute=100.0) == pytest.approx(max(wire, hooks) + copies)
    slow = replace(H200, link=20e9)
    assert wire < hooks < wire * H200.link / slow.link
    assert _exchange(sizes, zero3, compute=100.0, device=slow) == pytest.approx(wire * H200.link / slow.link + copies)
    lora = _sizes("Llama-3.1-8B")
    adapters = 32 * (ZERO3_LAYER + (9 + 14) * ZERO3_TENSOR)
    found = _exchange(lora, replace(zero3, accumulate=1), compute=100.0)
    copied = (gathered * 3.25 + 11.25 * lora.trainable) / H200.bandwidth
    assert found == pytest.approx(adapters + copied, rel=1e-3)
    once = replace(zero3, accumulate=1)
    reference = exchange_seconds(  # a pass without gradients gathers once more, and has half of the hooks
        lora, once, H200, compute=100.0, tokens=2048, again=0, table=EFFICIENCY, forward_passes=1.0
    )
    assert reference == pytest.approx(1.5 * adapters + copied + gathered / 2 * 3.25 / H200.bandwidth, rel=1e-3)


def test_exchanged_heads_by_hand():
    """Llama-3.1-8B over 8 devices: q and output 4,096 wide, k and v 1,024; forward and backward, 2 bytes each."""
    sizes = _sizes("Llama-3.1-8B")
    link = H200.link * EFFICIENCY.link
    plain = Setting(micro_tokens=16_384, world=8)
    shared = replace(plain, way=Way(sequence_parallel=8))
    more = _exchange(sizes, shared, compute=1.0) - _exchange(sizes, plain, compute=1.0)
    one = 7 / 8 * 16_384 * (4096 + 1024 + 1024 + 4096) * 2
    assert more == pytest.approx(32 * 2 * one / link)
    again = _exchange(sizes, shared, compute=1.0, again=32) - _exchange(sizes, plain, compute=1.0)
    assert again == pytest.approx(32 * 3 * one / link)
    # 2 key heads of Qwen2.5-0.5B on 7 devices: each gets one whole head of 64
    few = _sizes("Qwen2.5-0.5B")
    seven = Setting(micro_tokens=1024, world=7, way=Way(sequence_parallel=7))
    alone = _exchange(few, seven, compute=1.0) - _exchange(few, replace(seven, way=Way()), compute=1.0)
    assert alone == pytest.approx(24 * 2 * 6 / 7 * 1024 * (2 * 14 * 64 + 2 * 7 * 64) * 2 / link)


def test_rings_of_whole_hosts_use_all_adapters():
    """Eight adapters of 50 GB/s a host: less than NVLink's 450 GB/s; groups across hosts have one each."""
    sizes = _sizes("Llama-3.1-8B")
    p = sizes.trainable
    for world, rate in ((8, 450e9), (64, 400e9)):
        expected = 2 * (world - 1) / world * 4 * p / (rate * EFFICIENCY.link)
        assert _exchange(sizes, Setting(micro_tokens=2048, world=world), compute=1.0) == pytest.approx(expected)


@settings(max_examples=often(40), deadline=None)
@given(
    name=st.sampled_from(known_names()),
    method=st.sampled_from(["full", "lora", "qlora"]),
    accumulate=st.integers(1, 8),
    tokens=st.integers(512, 32_768),
    world=st.sampled_from([1, 2, 8]),
    strategy=st.sampled_from(["ddp", "fsdp2", "zero2", "zero3"]),
)
def test_parts_add_up_and_recompute_takes_time(name, method, accumulate, tokens, world, strategy):
    sizes, documents = _sizes(name, name=method), _rows_of(1024)

    def seconds(**changes):
        setting = replace(
            Setting(micro_tokens=tokens, accumulate=accumulate, world=world, way=Way(strategy=strategy)), **changes
        )
        step = estimate_step(
            sizes, setting, documents, H200, step_tokens=tokens * accumulate, optim="adamw_torch_fused"
        )
        assert all(part >= 0 for part in step.parts().values())
        assert sum(step.parts().values()) == pytest.approx(step.total)
        return round(step.total - step.exchange, 12)

    none, layer = seconds(), seconds(recompute="layer")
    assert none <= seconds(recompute="selective") <= layer
    half = seconds(recompute="layer", recompute_layers=sizes.shape.layers // 2)
    assert none <= half <= layer
    if method != "full":
        assert none <= seconds(base="nf4")
