"""Contract: a 4-bit matrix as sharded bytes has bitsandbytes' values, bit for bit; one that is quantised later is
the one quantised at once.

Planted and seen to fail: scales of another matrix; bytes through bfloat16.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.model.hosted import HostLinear, PackedStore
from luthier.model.packed import ALIGN, STORAGE, PackedLinear, as_storage, bytes_of, pack_linears
from luthier.model.quantize import is_quantized, nf4_config, nf4_later
from luthier.recipe.schema import MethodSection, ModelSection
from tests.model.support import CPU as DEVICE
from tests.support.tiny import save_tiny, tiny_model

bnb = pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")


def four_bit(rows: int, columns: int, *, dtype=torch.float32, nested: bool = True, bias: bool = False, seed: int = 0):
    torch.manual_seed(seed)
    plain = nn.Linear(columns, rows, bias=bias).to(dtype)
    linear = bnb.nn.Linear4bit(
        columns, rows, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=nested
    )
    linear.weight = bnb.nn.Params4bit(
        plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=nested
    )
    linear.bias = plain.bias
    return linear.to("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (96, 64), (33, 7), (5, 1), (512, 320)])
def test_unpacked_values_are_those_of_bitsandbytes(rows, columns, nested, dtype):
    linear = four_bit(rows, columns, nested=nested, dtype=dtype)
    packed = PackedLinear(linear, CPU)
    assert packed.weight.dtype == STORAGE and not packed.weight.requires_grad and packed.state.absmax is None
    assert packed.weight.numel() * 4 <= rows * columns / 2 + (1 if nested else 4) * rows * columns / 64 + 2 * ALIGN + 5
    expected = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    assert torch.equal(packed.unpacked(), expected)


def test_the_scales_are_the_matrix_s_own():
    """The comparison above can fail: another matrix' quantisation state gives other values."""
    one, other = (PackedLinear(four_bit(64, 64, seed=seed), CPU) for seed in (1, 2))
    before = one.unpacked()
    one.state = other.state
    assert not torch.equal(one.unpacked(), before)


def test_products_and_gradients_are_those_of_bitsandbytes():
    linear = four_bit(96, 64, bias=True)
    packed = PackedLinear(linear, CPU)
    found = []
    for module in (linear, packed):
        module.train()
        x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_every_byte_comes_back():
    patterns = torch.arange(65536).to(torch.uint16).view(torch.uint8)
    scales = torch.tensor([float("nan"), -0.0, 3.0])
    stored = as_storage(patterns, scales)
    assert stored.dtype == torch.float32 and (stored.numel() * 4) % ALIGN == 0
    back, raw = bytes_of(stored, patterns.numel(), 12)
    assert torch.equal(back, patterns) and torch.equal(raw, scales.view(torch.uint8))
    assert not torch.equal(stored.to(torch.bfloat16).float().view(torch.uint8), stored.view(torch.uint8))


def test_a_model_that_is_quantised_later_is_the_one_quantised_at_once(tmp_path):
    from luthier.model.adapters import apply_method
    from luthier.model.load import load_base

    save_tiny(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), dtype="float32")
    models = [
        load_base(section, device=DEVICE, dtype="float32", quantization="nf4", later=later) for later in (False, True)
    ]
    tuned = [apply_method(model, MethodSection(name="qlora"), seed=3) for model in models]
    assert tuned[0].report.total == tuned[1].report.total and tuned[0].report.trainable == tuned[1].report.trainable
    now, later = (one.model.get_decoder().layers for one in tuned)
    waiting = later[0].mlp.up_proj.base_layer.weight
    assert is_quantized(waiting) and waiting.quant_state is None and waiting.dtype == torch.float32
    assert pack_linears(later[0], CPU) == 7
    for name, packed in later[0].named_modules():
        if isinstance(packed, PackedLinear):
            weight = now[0].get_submodule(name).weight
            assert torch.equal(packed.unpacked(), bnb.functional.dequantize_4bit(weight.data, weight.quant_state))
    for (name, mine), (_, theirs) in zip(
        *(sorted((n, p) for n, p in one.model.named_parameters() if "lora_" in n) for one in tuned), strict=True
    ):
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, name
    assert not any(isinstance(module, PackedLinear) for module in tuned[1].model.get_output_embeddings().modules())


def test_a_base_kept_unpacked_becomes_plain_matrices():
    model = tiny_model()
    nf4_later(model, nf4_config(torch.float32))
    layer = model.model.layers[0]
    whole = PackedLinear(layer.mlp.up_proj, CPU).unpacked()
    assert pack_linears(layer, CPU, keep_unpacked=True) == 7
    assert type(layer.mlp.up_proj) is nn.Linear and torch.equal(layer.mlp.up_proj.weight, whole)


def test_a_matrix_rearranged_for_inference_is_refused():
    linear = four_bit(64, 64)
    linear.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RuntimeError, match="rearranged"):
        PackedLinear(linear, CPU)


def test_a_host_matrix_is_no_parameter_and_can_be_freed():
    plain = nn.Linear(4, 3)
    host = HostLinear(plain, CPU)
    x = torch.randn(2, 4)
    assert [name for name, _ in host.named_parameters()] == ["bias"]
    assert torch.equal(host(x), plain(x))
    host.release()
    with pytest.raises(RuntimeError, match="was freed"):
        host(x)


def test_a_store_takes_other_tensors_of_the_same_shapes_only():
    store = PackedStore([torch.arange(6.0).view(2, 3), torch.tensor([[7]], dtype=torch.uint8)])
    store.replace([torch.ones(2, 3), torch.tensor([[9]], dtype=torch.uint8)])
    first, second = store.parts()
    assert torch.equal(first, torch.ones(2, 3)) and int(second) == 9
    with pytest.raises(AssertionError):
        store.replace([torch.ones(3, 2), torch.tensor([[9]], dtype=torch.uint8)])
