"""Contract: counts are exact, bytes are counts times the bytes stated, parts add up, less recompute needs more."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.plan.activations import activation_bytes, head_bytes, kept_bytes_per_token, transient_bytes
from luthier.plan.efficiency import EFFICIENCY
from luthier.plan.known import known_model, known_names
from luthier.plan.memory import PARTS, estimate_memory
from luthier.plan.setting import Setting, Way
from luthier.plan.shape import read_shape
from luthier.plan.sizes import sizes_of
from luthier.plan.states import gradient_bytes, master_bytes, optimizer_bytes, weight_bytes
from luthier.plan.trained import trainable_parameters
from luthier.recipe.optimizers import OPTIMIZERS
from luthier.recipe.schema import MethodSection
from tests.support.often import often
from tests.support.tiny import save_tiny, tiny_model

GIB = 2**30
SHARDS = Way(strategy="fsdp2")
METHODS = [
    {"name": "full"}, {"name": "lora"}, {"name": "qlora"}, {"name": "freeze", "last_n_layers": 2},
    {"name": "lora", "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tied"), tied=True)


def _sizes(model: str, **method):
    return sizes_of(known_model(model), MethodSection(**(method or {"name": "lora"})))


# -- counts, against PEFT and transformers


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(q|k)_proj"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapter_parameters_equal_those_peft_makes(folder, targets, dora):
    import peft

    method = MethodSection(name="lora", r=4, target_modules=targets, use_dora=dora)
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", use_dora=dora)
    model = peft.get_peft_model(tiny_model(), config)
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = sizes_of(read_shape(folder), method)
    assert trainable_parameters(read_shape(folder), method) == sizes.trainable == sum(each.numel() for each in found)
    assert sizes.trained_vectors == sum(each.numel() for each in found if each.ndim == 1)
    assert sizes.small_trained == sum(each.numel() for each in found if each.numel() < 4096)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_trained_parameters_equal_those_of_the_model_that_is_trained(folder, tied, method, is_tied):
    from luthier.model.adapters import apply_method

    wanted = MethodSection(**{**method, "name": "lora" if method["name"] == "qlora" else method["name"]})
    model = apply_method(tiny_model(tied=is_tied), wanted, seed=0).model
    expected = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable_parameters(read_shape(tied if is_tied else folder), MethodSection(**method)) == expected


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens", r"layers\.1\.", "norm"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_patterns_of_freeze_select_the_same_weights(folder, tied, pattern, is_tied):
    from luthier.model.adapters import apply_method

    method = MethodSection(name="freeze", trainable=[pattern])
    model = apply_method(tiny_model(tied=is_tied), method, seed=0).model
    expected = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable_parameters(read_shape(tied if is_tied else folder), method) == expected


# -- bytes by hand


def test_full_training_takes_16_or_18_bytes_a_parameter_without_activations():
    sizes = _sizes("Llama-3.1-8B", name="full")
    one, several = Setting(micro_tokens=256), Setting(micro_tokens=256, accumulate=2)

    def bytes_a_parameter(setting):
        memory = estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.5)
        assert memory.moment == "end" or setting.accumulate > 1
        return (memory.weights + memory.gradients + memory.masters + memory.optimizer) / sizes.parameters

    assert bytes_a_parameter(one) == 2 + 2 + 4 + 8  # weights, gradients as they come, masters, Adam
    assert bytes_a_parameter(several) == 2 + 4 + 4 + 8  # sums in fp32
    assert bytes_a_parameter(replace(one, dtype_bytes=4)) == 4 + 4 + 0 + 8


def test_gradients_of_several_passes_stand_beside_the_sums_while_small():
    small, large = _sizes("Llama-3.1-8B"), _sizes("Llama-3.1-8B", name="full")
    several = Setting(micro_tokens=256, accumulate=2)
    assert gradient_bytes(small, several) == (4 * small.trainable, 6 * small.trainable)
    assert gradient_bytes(large, several) == (4 * large.trainable, 4 * large.trainable)
    assert gradient_bytes(small, replace(several, accumulate=1)) == (0, 2 * small.trainable)
    assert gradient_bytes(small, replace(several, accumulate=1, world=2)) == (0, 6 * small.trainable)


def _weights(sizes, base, table=EFFICIENCY):
    return weight_bytes(sizes, Setting(micro_tokens=1, base=base), table)


def test_weights_of_an_8b_base_in_every_storage():
    # perf.md §2.3: 15.0 GiB bf16; 5.3 NF4 body with bf16 embeddings and head; 8.5 fp8 body, here in two orientations
    sizes = _sizes("Llama-3.1-8B")
    assert _weights(sizes, "plain")["base"] / GIB == pytest.approx(14.96, abs=0.01)
    nf4 = _weights(sizes, "nf4")
    assert nf4["base"] / GIB == pytest.approx(5.31, abs=0.02)
    # 4.127 bits a weight (QLoRA, section 3)
    assert nf4["base"] == pytest.approx(4.127 / 8 * sizes.linear + 2 * (sizes.parameters - sizes.linear), rel=1e-4)
    kept = _weights(sizes, "nf4_dequantized")
    assert kept["unpacked"] == 2 * sizes.linear and kept["base"] == nf4["base"]
    alone = _weights(sizes, "fp8", replace(EFFICIENCY, fp8_keeps_base=False))["base"]
    assert alone / GIB == pytest.approx(1.96 + 13.0, abs=0.05)
    assert _weights(sizes, "fp8")["base"] == alone + 2 * sizes.linear


def test_extended_matrices_by_hand():
    # Llama-3.1-8B, r = 16: P is 64 in every group; N x K of qkv, o, gate-up, down.
    sizes = _sizes("Llama-3.1-8B")
    matrices = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    padding = sum((n + 64) * (k + 64) - n * k for n, k in matrices)
    assert _weights(sizes, "plain")["adapters"] == 2 * 32 * padding
    assert _weights(sizes, "nf4")["adapters"] == 2 * sizes.adapter_parameters
    # r = 32: three adapters of qkv need 96 columns, padded to 128
    pads = {group.name: group.pad for group in _sizes("Llama-3.1-8B", name="lora", r=32).groups}
    assert pads == {"qkv": 128, "o": 64, "gate_up": 64, "down": 64}


def test_optimizer_states_equal_those_of_the_libraries():
    import torch
    from transformers.optimization import Adafactor

    model = tiny_model()
    sizes = _sizes_of_tiny()
    for optim, made in (
        ("adamw_torch", torch.optim.AdamW(model.parameters(), lr=1e-3)),
        ("sgd", torch.optim.SGD(model.parameters(), lr=1e-3)),
        ("adafactor", Adafactor(model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)),
        ("rmsprop", torch.optim.RMSprop(model.parameters(), lr=1e-3)),
        ("adagrad", torch.optim.Adagrad(model.parameters(), lr=1e-3)),
    ):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.step()
        states = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
        theirs = sum(value.nbytes for value in states if value.numel() > 1)
        assert optimizer_bytes(sizes, optim) == theirs, optim


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "r": 4, "modules_to_save": ["lm_head"]}],
                         ids=["full", "lora"])  # fmt: skip
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("optim", sorted(OPTIMIZERS))
def test_states_of_every_optimizer_are_those_the_run_expects(optim, tied, method):
    """The plan's formula from shapes against the run's from tensors (which `test_named.py` holds against states)."""
    from luthier.model.adapters import apply_method
    from luthier.plan.shape import shape_from_config
    from luthier.train.optim import expected_state_bytes
    from luthier.train.rates import table_tensors

    section = MethodSection(**method)
    shape = shape_from_config(tiny_model(tied=tied).config.to_dict(), where="tiny", source="tiny")
    model = apply_method(tiny_model(tied=tied), section, seed=0).model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = frozenset().union(*table_tensors(model, trained))
    expected = expected_state_bytes(trained, optim, tables=tables)
    assert optimizer_bytes(sizes_of(shape, section), optim) == pytest.approx(expected, rel=2e-3)


def test_momentum_is_counted_and_muon_halves_the_states_of_hidden_matrices():
    sizes = _sizes("Llama-3.2-1B", name="full")
    assert optimizer_bytes(sizes, "sgd", {"momentum": 0.9}) == 4 * sizes.trainable
    assert optimizer_bytes(sizes, "rmsprop", {"momentum": 0.9, "centered": True}) == 12 * sizes.trainable
    embeddings, norms = 128_256 * 2048, 33 * 2048
    assert sizes.hidden_matrices == sizes.trainable - embeddings - norms
    assert optimizer_bytes(sizes, "muon") == 4 * sizes.hidden_matrices + 8 * (embeddings + norms)
    memory = estimate_memory(
        sizes, Setting(micro_tokens=1024), optim="sgd", optim_args={"momentum": 0.9}, supervised=0.5
    )  # fmt: skip
    assert memory.optimizer == 4 * sizes.trainable


def _sizes_of_tiny():
    from luthier.plan.shape import shape_from_config

    shape = shape_from_config(tiny_model().config.to_dict(), where="tiny", source="tiny")
    return sizes_of(shape, MethodSection(name="full"))


def test_8_bit_states_by_hand():
    sizes = _sizes("Llama-3.2-1B", name="full")
    # 33 norms of 2,048 elements stay in fp32 (fewer than 4,096); the rest: 2 bytes and two fp32 scales per 256
    small = 33 * 2048
    assert sizes.small_trained == small
    assert optimizer_bytes(sizes, "adamw_8bit") == round((sizes.parameters - small) * (2 + 8 / 256)) + 8 * small


def test_no_masters_for_fp32_parameters():
    sizes = _sizes("SmolLM2-135M")
    assert (master_bytes(sizes, 4), master_bytes(sizes, 2)) == (0, 4 * sizes.trainable)


def test_kept_activations_by_hand():
    # d = q = 4096, kv = 1024, f = 14336; 32 heads: 128 bytes of log-sum-exp, 8 of two 1/rms; u: 64 in each of 4 groups
    sizes = _sizes("Llama-3.1-8B")
    none = 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336 + 4 * 64) + 4 * 32 + 2 * 4
    assert kept_bytes_per_token(sizes, "none", 2) == none
    assert kept_bytes_per_token(sizes, "selective", 2) == none - 2 * (2 * 4096 + 14336)
    assert kept_bytes_per_token(sizes, "layer", 2) == 2 * 4096
    # perf.md §2.3: 136, 92 and 8 KB a token and layer on 8B
    kept = [kept_bytes_per_token(_sizes("Llama-3.1-8B", name="full"), policy, 2) for policy in ("none", "selective")]
    assert [round(size / 1000) for size in kept] == [139, 94]


def test_measured_peaks_of_the_design():
    """8B LoRA on one H200 (shared/design.md §5): 87 GiB at 16k tokens, 52 at 8k, 23 at 16k with recompute.

    Of a study's code, whose layer backward held less than ours: hence 12% in the last case.
    """
    sizes = _sizes("Llama-3.1-8B")
    for tokens, policy, gib in ((16_384, "none", 87), (8_192, "none", 52), (16_384, "layer", 23)):
        setting = Setting(micro_tokens=tokens, recompute=policy)
        memory = estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6)
        assert memory.peak / GIB == pytest.approx(gib, rel=0.12 if policy == "layer" else 0.05), (tokens, policy)


def test_nothing_is_kept_below_the_lowest_trained_layer():
    some, all_ = _sizes("Llama-3.1-8B", name="freeze", last_n_layers=4), _sizes("Llama-3.1-8B", name="full")
    assert (some.lowest_layer, some.backward_layers, all_.lowest_layer) == (28, 4, 0)
    kept = [activation_bytes(sizes, Setting(micro_tokens=4096)) for sizes in (some, all_)]
    assert kept[0] < 0.14 * kept[1]
    assert _sizes("Llama-3.1-8B", name="freeze", trainable=["lm_head"]).lowest_layer == 32
    assert _sizes("Llama-3.2-1B", name="freeze", trainable=["lm_head"]).lowest_layer == 0  # tied: the embeddings


def test_head_and_loss_by_hand():
    sizes, setting = _sizes("Llama-3.1-8B"), Setting(micro_tokens=65_536)
    hidden = 2 * 4096 * 2
    # 2 GiB of bf16 logits are 8,371 rows, but 8,192 are the most; 20,000 rows are three chunks of 6,667
    for rows, chunk in ((8_000, 8_000), (8_192, 8_192), (20_000, 6_667)):
        assert head_bytes(sizes, setting, rows, EFFICIENCY, cuda=True) == rows * hidden + chunk * 128_256 * 2
    full = _sizes("Llama-3.1-8B", name="full")
    one, three = (
        head_bytes(full, setting, rows, EFFICIENCY, cuda=True) - head_bytes(sizes, setting, rows, EFFICIENCY, cuda=True)
        for rows in (8_000, 20_000)
    )
    assert (one, three) == (2 * 4096 * 128_256, 4 * 4096 * 128_256)  # its gradient: 16 bits in one chunk, else fp32


def test_the_last_layer_keeps_supervised_rows_only():
    sizes, setting = _sizes("Llama-3.1-8B", name="full"), Setting(micro_tokens=1000)
    less = activation_bytes(sizes, setting, 1.0) - activation_bytes(sizes, setting, 0.6)
    # h, n2, gate, up and their product for 40% of the rows less, 0.6 rows of attention's output more than none;
    # and the input of the last norm for 40% of the rows
    last = 0.4 * (2 * 4096 + 3 * 14_336) - 0.6 * 4096 + 1.0 * 4096
    assert less == pytest.approx(1000 * 2 * (last + 0.4 * 4096), rel=1e-6)


def test_moments_of_a_mixed_setting_by_hand():
    """8 of 32 layers recomputed: the peak is with all kept, not when one is computed again and 24 have let go."""
    sizes = _sizes("Llama-3.1-8B")
    mixed = Setting(micro_tokens=4096, recompute="layer", recompute_layers=8)
    none = Setting(micro_tokens=4096)
    memory, plain = (
        estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6) for setting in (mixed, none)
    )
    saved = 8 * (kept_bytes_per_token(sizes, "none", 2) - kept_bytes_per_token(sizes, "layer", 2)) * 4096
    assert memory.moment == plain.moment
    assert plain.peak - memory.peak == saved
    # All recomputed: 32 inputs, and one layer back with its backward.
    everything = estimate_memory(sizes, replace(none, recompute="layer"), optim="adamw_torch_fused", supervised=0.6)
    assert everything.moment == "backward"
    inputs = 4096 * (32 * 4096 + 0.6 * 4096 + 2 * 128) * 2
    assert everything.activations == pytest.approx(inputs, rel=1e-6)
    assert everything.transient == transient_bytes(sizes, none, 4096, whole=True)


def test_the_transient_of_a_layer_by_hand():
    # MLP: 2 d + 3 f and 64 + 64 adapter columns; it is larger than the attention half of an 8B layer
    sizes, setting = _sizes("Llama-3.1-8B"), Setting(micro_tokens=1)
    mlp = 2 * (2 * 4096 + 3 * 14_336 + 2 * 64)
    assert transient_bytes(sizes, setting, 1000, whole=False) == 1000 * mlp
    again = replace(setting, recompute="selective")
    assert transient_bytes(sizes, again, 1000, whole=False) == 1000 * (mlp + 2 * 14_336)
    whole = kept_bytes_per_token(sizes, "none", 2)  # the product is in both, once
    assert transient_bytes(sizes, setting, 1000, whole=True) == 1000 * (mlp + whole)
    packed = replace(setting, base="nf4")
    thin = transient_bytes(sizes, packed, 1, whole=False) - 2 * (2 * 4096 + 3 * 14_336 + 32 + 16)
    assert thin == 2 * 2 * 28_672 * 4096  # gate and up unpacked, and once more while they are put together
    full = _sizes("Llama-3.1-8B", name="full")
    assert transient_bytes(full, setting, 1, whole=False) == 2 * (2 * 4096 + 3 * 14_336) + 2 * 28_672 * 4096


# -- properties


@settings(max_examples=often(60), deadline=None)
@given(
    name=st.sampled_from(known_names()),
    method=st.sampled_from(METHODS),
    tokens=st.integers(256, 65_536),
    more=st.integers(1, 20_000),
    accumulate=st.sampled_from([1, 4]),
    optim=st.sampled_from(["adamw_torch_fused", "adamw_8bit", "adafactor", "sgd"]),
    base=st.sampled_from(["plain", "nf4", "nf4_dequantized", "fp8"]),
)
def test_memory_grows_with_tokens_and_falls_with_recompute(name, method, tokens, more, accumulate, optim, base):
    sizes = _sizes(name, **method)
    base = base if sizes.adapters else "plain"

    def peak(**changes):
        setting = replace(Setting(micro_tokens=tokens, accumulate=accumulate, base=base), **changes)
        memory = estimate_memory(sizes, setting, optim=optim, supervised=0.6)
        assert sum(memory.parts().values()) == memory.total == memory.peak + memory.outside + memory.recordings
        assert all(size >= 0 for size in memory.parts().values())
        assert set(memory.parts()) == set(PARTS)
        return memory.peak

    none, selective = peak(), peak(recompute="selective")
    assert selective <= none
    assert none <= peak(micro_tokens=tokens + more)
    assert selective <= peak(recompute="selective", micro_tokens=tokens + more)
    layers = sizes.shape.layers
    some = sizes.lowest_layer + sizes.backward_layers // 2 + 1
    whole = [peak(recompute="layer", recompute_layers=count) for count in (some, layers)]
    assert whole[1] <= whole[0]
    assert peak(recompute="layer") == whole[1]
    # Recomputing keeps less than anything else, but for the one layer that is being recomputed.
    one_layer = kept_bytes_per_token(sizes, "none", 2) * tokens
    assert whole[1] <= selective + one_layer
    if sizes.backward_layers > 8:
        policies = ("layer", "selective", "none")
        kept = [activation_bytes(sizes, Setting(micro_tokens=tokens, recompute=policy)) for policy in policies]
        assert kept == sorted(kept)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(known_names()), method=st.sampled_from(METHODS), tokens=st.integers(256, 16_384))
def test_more_devices_need_no_more_memory_each(name, method, tokens):
    sizes = _sizes(name, **method)

    def total(world):
        setting = Setting(micro_tokens=tokens, world=world, way=SHARDS)
        return estimate_memory(sizes, setting, optim="adamw_torch_fused", supervised=0.6).total

    totals = [total(world) for world in (2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


def test_our_own_updates_need_no_copies_of_gradients():
    """16-bit gradients as they are (`train/master_adamw.py`, `train/adamw8.py`); other optimizers get fp32 copies."""
    sizes = _sizes("Llama-3.1-8B", name="full")
    setting = Setting(micro_tokens=1, recompute="layer", replay=False)
    found = {
        optim: estimate_memory(sizes, setting, optim=optim, supervised=0.6).transient
        for optim in ("adamw_torch_fused", "adamw_8bit", "adamw_torch", "sgd")
    }
    largest = 2 * 2 * 14336 * 4096  # the gradient of gate and up, made in one layer's backward
    assert found["adamw_torch_fused"] == found["adamw_8bit"] < 1.01 * largest
    assert found["adamw_torch"] == found["sgd"] == 512 << 20
