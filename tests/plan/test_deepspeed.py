"""Contract: what DeepSpeed holds beside its states, by hand, and what was measured of it."""

import pytest

from luthier.plan.gathered import gathered_bytes, root_bytes
from luthier.plan.known import known_model
from luthier.plan.memory import estimate_memory
from luthier.plan.setting import Setting, Way
from luthier.plan.sizes import sizes_of
from luthier.recipe.schema import MethodSection
from tests.plan.test_shards import ENDS, LAYER, D, F, L, V, _setting, _sizes


def test_deepspeeds_buffers_by_hand():
    """8B, eight devices: 218 million weights a layer, so five layers stay from the forward to the backward pass."""
    full, lora = _sizes(), _sizes(name="lora")
    bucket, ahead, root = 4 * D * D, 2 * D * D, 2 * ENDS  # `reduce_bucket_size` of d^2 in fp32; a matrix fetched ahead
    gradient = 2 * LAYER + 4 * D * F  # of a layer, and one matrix in fp32
    assert gathered_bytes(full, _setting("zero2")) == {
        "loss": bucket, "backward": bucket + gradient + 6 * D * V, "end": bucket + gradient,
        "root": bucket + 8 * D * V,  # the norm of the embeddings
    }  # fmt: skip
    always, adapted = bucket + ahead + root, LAYER + lora.adapter_parameters // L
    assert gathered_bytes(lora, _setting("zero3")) == {
        "loss": always + 2 * 5 * adapted, "backward": always + 2 * 5 * adapted, "end": always + 2 * 2 * adapted,
        "root": bucket + root,
    }  # fmt: skip
    assert gathered_bytes(full, _setting("zero3")) == {
        "loss": always + 2 * 5 * LAYER, "backward": always + 2 * 5 * LAYER + gradient + 6 * D * V,
        "end": always + 2 * 2 * LAYER + gradient, "root": bucket + root + 6 * D * V,
    }  # fmt: skip
    # on two devices the step's fp32 copy is of 1e9 of the 4e9 gradients of each
    assert gathered_bytes(full, _setting("zero3", world=2))["root"] == max(
        bucket + root + 6 * D * V, bucket + 4 * 10**9
    )
    tied = sizes_of(known_model("Llama-3.2-1B"), MethodSection(name="full"))
    found = gathered_bytes(tied, _setting("zero3"))
    assert found["root"] == 4 * 2048**2 + tied.head * (2 + 2 + 4)
    assert found["end"] - found["root"] == 2 * (2 * tied.linear_per_layer + 2048**2) + 2 * tied.linear_per_layer + (
        4 * 2048 * 8192 - 4 * tied.head
    )  # fmt: skip


def _as_call_e(name: str, method: str, tokens: int, recompute: str):
    sizes = sizes_of(known_model(name), MethodSection(name=method))
    setting = Setting(micro_tokens=tokens, recompute=recompute, world=2, extended=False, way=Way(strategy="zero3"))
    return sizes, setting, estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6)


@pytest.mark.parametrize(
    ("name", "method", "tokens", "recompute", "measured"),
    [("Llama-3.1-8B", "lora", 8192, "none", 71.07), ("Llama-3.2-3B", "full", 16_384, "selective", 65.97)],
)
def test_zero3_as_it_was_measured_gathered_the_whole_model_at_once(name, method, tokens, recompute, measured):
    """benchmarks/results/distributed_h200.jsonl, call E: the root owned all weights and gathered them at the start of
    its backward pass, in one buffer and then in place, embeddings and head in place alone. The logits were gone; a
    trained head's gradient was there in fp32."""
    sizes, setting, memory = _as_call_e(name, method, tokens, recompute)
    assert memory.moment == "loss"
    layers = 2 * (sizes.shape.layers * sizes.linear_per_layer + sizes.adapter_parameters)
    gathered = 4 * sizes.shape.hidden_size**2 + root_bytes(sizes, setting) + 2 * layers
    head = 4 * sizes.head if sizes.trained_head else 0
    then = memory.peak - memory.gathered - memory.logits + gathered + head
    assert then / 2**30 == pytest.approx(measured, rel=0.02)
    assert memory.peak < 0.9 * then  # what is planned now


def test_zero2_has_its_gradients_from_the_first_one_on():
    sizes = _sizes()
    setting = _setting("zero2", micro_tokens=16_384, recompute="layer")
    memory = estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6)
    assert (memory.moment, memory.gradients) == ("backward", 4 * sizes.trainable // 8)
