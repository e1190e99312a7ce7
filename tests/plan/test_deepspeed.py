"""Contract: what DeepSpeed holds beside its states, by hand, and what was measured of it."""

import json
from dataclasses import replace

import pytest

from luthier.plan.activations import kept_bytes_per_token
from luthier.plan.devices import find_device
from luthier.plan.dora import dora_bytes, dora_traffic
from luthier.plan.gathered import gathered_bytes, root_bytes
from luthier.plan.host import estimate_host
from luthier.plan.known import known_model
from luthier.plan.memory import estimate_memory
from luthier.plan.request import make_request
from luthier.plan.search import make_plan
from luthier.plan.setting import Setting, Way
from luthier.plan.sizes import sizes_of
from luthier.plan.work import assumed_documents
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import MethodSection
from tests.plan.test_shards import ENDS, LAYER, D, F, L, P, V, _setting, _sizes


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


SCALES = 4 * (6144 + 4096 + 4096 + 4096 + 28672 + 4096 + 4096 + 14336)
"""Of one layer: fp32, a row of each of the two copies of qkv, o, gate and up, down."""


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_an_fp8_base_is_whole_on_each_device_below_zero3(strategy):
    """The 16-bit matrices stay beside the two 8-bit copies, as on one device; only masters and moments are divided."""
    sizes = _sizes(name="lora")
    memory = estimate_memory(sizes, _setting(strategy, base="fp8"), optim="adamw_torch_fused", supervised=0.6)
    assert memory.weights == 2 * P + L * (2 * LAYER + SCALES)
    assert (memory.masters, memory.optimizer) == (-(-4 * sizes.trainable // 8), sizes.trainable)
    alone = estimate_memory(
        sizes, _setting("ddp", world=1, base="fp8"), optim="adamw_torch_fused", supervised=0.6
    )  # fmt: skip
    assert memory.weights == alone.weights


def test_an_fp8_base_under_zero3_by_hand():
    """An eighth of both copies with their scales and of the rest; nothing in 16 bits but embeddings, head and norms."""
    sizes, setting = _sizes(name="lora"), _setting("zero3", base="fp8")
    memory = estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6)
    assert memory.weights == -(-(2 * (P - L * LAYER) + L * (2 * LAYER + SCALES)) // 8)
    layer, root = 2 * LAYER + SCALES + 2 * (sizes.adapter_parameters // L), 2 * ENDS
    # 1e9 elements, integers of four bytes where values are packed: ten layers stay
    kept = -(-(10**9) // ((2 * LAYER + SCALES) // 4 + sizes.adapter_parameters // L))
    assert kept == 10
    found = gathered_bytes(sizes, setting)
    always = 4 * D * D + root
    assert found == {
        "loss": always + 10 * layer + 4 * D * D, "backward": always + 12 * layer, "root": 4 * D * D + root,
        "end": always + 2 * layer + 4 * D * D,
    }  # fmt: skip
    # each process holds the base in 16 bits, and its copies until all partitions are made
    host = estimate_host(sizes, setting, optim="adamw_torch_fused", values_first=True)
    assert host.loading == 8 * (2 * P + L * (2 * LAYER + SCALES))
    assert estimate_host(sizes, _setting("zero3"), optim="adamw_torch_fused", values_first=True).loading == 16 * P


def test_adapters_of_deepspeeds_lie_in_no_extended_matrix():
    sizes = _sizes(name="lora")
    for strategy in ("zero1", "zero2", "zero3"):
        setting = _setting(strategy, extended=True)
        memory = estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6)
        assert memory.adapters == 2 * sizes.adapter_parameters


def test_dora_under_zero3_by_hand():
    """Magnitudes beside the factors; the norm's operands are those of down_proj: f^2 of an identity, three matrices."""
    plain, dora = _sizes(name="lora"), _sizes(name="lora", use_dora=True)
    rows = 4096 + 1024 + 1024 + 4096 + 2 * F + 4096
    assert dora.trainable - plain.trainable == L * rows == dora.trained_vectors
    setting = _setting("zero3", recompute="layer")
    assert dora_bytes(dora, setting) == 2 * (F * F + 3 * D * F) and dora_bytes(plain, setting) == 0
    assert dora_traffic(dora) == (2.0 * (6 * D * D + F * F) + 7.0 * LAYER, 12.0 * rows)
    assert dora_traffic(plain) == (0.0, 0.0)
    forward = estimate_memory(dora, replace(setting, micro_tokens=64), optim="adamw_torch_fused", supervised=0.6)
    assert forward.transient >= dora_bytes(dora, setting)
    other = replace(plain, shape=replace(plain.shape, family="other"))  # no layer of the engine's own
    kept = [kept_bytes_per_token(each, "none", 2, wide=False) for each in (dora, other)]
    assert kept[0] - kept[1] == 2 * 2 * rows
    assert gathered_bytes(dora, setting)["loss"] > gathered_bytes(plain, setting)["loss"]


def _recipe(tmp_path, *, stage: int, **sections):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}}))
    return recipe_from_dict(
        {
            "model": {"name_or_path": "meta-llama/Llama-3.1-8B", **sections.pop("model", {})},
            "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}], "max_length": 4096},
            "output_dir": str(tmp_path / "run"), "distributed": {"deepspeed_config": str(tmp_path / "ds.json")},
            **sections,
        },
        origin="test",
    )  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "model", "base"),
    [
        ({"name": "lora"}, {"quantization": "fp8"}, "fp8"), ({"name": "lora", "use_dora": True}, {}, "plain"),
        ({"name": "lora", "init_lora_weights": "pissa"}, {}, "plain"),
        ({"name": "lora", "init_lora_weights": "olora"}, {}, "plain"),
    ],
)  # fmt: skip
def test_a_users_configuration_beside_such_a_base_is_planned(tmp_path, stage, method, model, base):
    """`strategy` is left open: the file's stage is what is planned, alone."""
    recipe = _recipe(tmp_path, stage=stage, method=method, model=model)
    assert recipe.distributed.strategy == f"zero{stage}"
    documents = assumed_documents(max_length=4096, packing=True, mean_tokens=1000, rows=10_000)
    request = make_request(recipe, known_model("Llama-3.1-8B"), documents, find_device("H100"), num_gpus=8)
    chosen = make_plan(request).chosen
    assert (chosen.setting.way.strategy, chosen.setting.base) == (f"zero{stage}", base)
    assert chosen.fits
    whole = 2 * P + (L * (2 * LAYER + SCALES) if base == "fp8" else 0)
    if stage < 3:
        assert chosen.memory.weights == whole
    else:
        assert chosen.memory.weights == -(-(whole - (2 * L * LAYER if base == "fp8" else 0)) // 8)
