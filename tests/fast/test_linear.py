"""Contract: replaced layers compute what nn.Linear and PEFT's LoRA compute, and give way where they do not apply.

Planted and seen to fail: the LoRA scale squared in the gradient of B; dropout skipped (B18); DoRA taken for LoRA.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.fast import linear, products
from luthier.fast.engine import attach
from luthier.fast.linear import FastLinear, fast_lora_class, replace_layers, restore_layers
from tests.fast.families import build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, one_by_one, relative


@pytest.fixture(params=["onednn", "torch"])
def library(request, monkeypatch):
    """Both libraries on any machine."""
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    for module in (products, linear):
        monkeypatch.setattr(module, "product_library", lambda: (request.param, "test"))
    return request.param


def lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        tuned = get_peft_model(
            model,
            LoraConfig(
                **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
            ),
        )
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.05)  # B starts at 0, where its partner has no gradient
    return tuned


@pytest.mark.parametrize("shape", [(40, 24), (2, 17, 24), (3, 24), (24,)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_replaced_linear_has_the_same_output_and_gradients(library, shape, bias):
    stock = nn.Linear(24, 37, bias=bias)
    fast = copy.deepcopy(stock)
    fast.__class__ = FastLinear
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 37)
    want = torch.autograd.grad((stock(x) * upstream).sum(), [x, *stock.parameters()])
    got = torch.autograd.grad((fast(x) * upstream).sum(), [x, *fast.parameters()])
    assert relative(fast(x), stock(x)) < 1e-6
    for mine, theirs in zip(got, want, strict=True):
        assert relative(mine, theirs) < 1e-5


def test_products_are_exact_fp32_for_odd_and_tiny_shapes(library):
    for rows, inputs, outputs in [(1, 3, 5), (17, 1, 64), (64, 16, 1), (129, 33, 65)]:
        x, w, g = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        assert relative(products.product(x, w), x.double() @ w.double().t()) < 1e-6
        assert relative(products.grad_input(g, w), g.double() @ w.double()) < 1e-6
        assert relative(products.grad_weight(g, x), g.double().t() @ x.double()) < 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": [5, 7, 9]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "llama-tied-bias"])
def test_adapted_models_train_as_under_peft_alone(library, settings, name):
    model = lora(build(name), **settings)
    stock = copy.deepcopy(model)
    engine = attach(model)
    batch = make_batch((9, 3, 17, 6), vocab=601)
    sums = engine.loss(batch)
    want, correct = one_by_one(stock, batch)
    assert relative(sums.loss, want) < 1e-5
    assert int(sums.correct) == correct
    sums.loss.backward()
    want.backward()
    got = gradients(model)
    assert any("lora_A" in name for name in got)
    assert_same_gradients(got, gradients(stock), 2e-5)


def test_the_common_case_takes_the_fast_function_and_the_rest_does_not(library):
    def calls(model):
        tuned = attach(model).module.model
        x = torch.randn(20, 32)
        layer = tuned.get_base_model().model.layers[0].self_attn.q_proj
        return type(layer(x).grad_fn).__name__, layer

    name, layer = calls(lora(build("llama")))
    assert isinstance(layer, fast_lora_class())
    assert "LoraLinear" in name or "View" in name
    assert linear._simple_adapter(layer, torch.randn(4, 32)) == "default"
    assert linear._simple_adapter(layer, torch.randn(4, 32).bfloat16()) is None
    layer.enable_adapters(False)
    assert linear._simple_adapter(layer, torch.randn(4, 32)) is None
    for settings in ({"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}):
        other = lora(build("llama"), **settings).get_base_model().model.layers[0].self_attn.q_proj
        other.__class__ = fast_lora_class()
        other.train()
        assert linear._simple_adapter(other, torch.randn(4, 32)) is None, settings


def test_dropout_draws_the_same_numbers_as_peft(library):
    model = lora(build("llama"), lora_dropout=0.3)
    stock = copy.deepcopy(model)
    engine = attach(model)
    batch = make_batch((12,), vocab=601)
    torch.default_generator.manual_seed(5)
    mine = engine.loss(batch).loss
    torch.default_generator.manual_seed(5)
    theirs, _ = one_by_one(stock, batch)
    assert relative(mine, theirs) < 1e-5
    torch.default_generator.manual_seed(6)
    assert relative(engine.loss(batch).loss, theirs) > 1e-4  # dropout is really on


def test_save_load_and_merge_are_those_of_peft(library, tmp_path):
    from peft import PeftModel

    model = lora(build("llama"))
    engine = attach(model)
    names = set(model.state_dict())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), tmp_path)
    batch = make_batch((9, 4), vocab=601)
    fresh = attach(again.eval()).loss(batch).loss
    model.eval()
    assert relative(engine.loss(batch).loss, fresh) < 1e-6
    engine.detach()
    assert set(model.state_dict()) == names
    merged = model.merge_and_unload().eval()
    assert relative(attach(merged).loss(batch).loss, fresh) < 1e-4


def test_restoring_gives_every_instance_its_class_back(library):
    model = lora(build("llama"))
    before = [type(module) for module in model.modules()]
    undo, report = replace_layers(model)
    assert len(undo) > 0
    assert any("LoRA" in line[0] for line in report)
    restore_layers(undo)
    assert [type(module) for module in model.modules()] == before


def test_low_precision_and_autocast_keep_torchs_own_linear(library):
    model = build("llama").bfloat16()
    replace_layers(model)
    assert not any(type(module) is FastLinear for module in model.modules())
    layer = nn.Linear(8, 8)
    layer.__class__ = FastLinear
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(32, 8)).dtype == torch.bfloat16


def test_the_library_depends_on_the_processor_alone(monkeypatch):
    for vendor, flags, expected in [
        ("GenuineIntel", {"avx512f"}, "torch"),
        ("AuthenticAMD", {"avx512f"}, "onednn"),
        ("AuthenticAMD", {"avx2"}, "torch"),
        ("", {"avx512f"}, "torch"),
    ]:
        monkeypatch.setattr(products, "_cpu_vendor", lambda vendor=vendor: vendor)
        monkeypatch.setattr(products, "cpu_flags", lambda flags=flags: frozenset(flags))
        products.product_library.cache_clear()
        assert products.product_library()[0] == expected
    products.product_library.cache_clear()


class _Linears(nn.Module):
    def __init__(self, *, bias):
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=bias), nn.Linear(40, 16, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_zero3_the_graph_of_a_product_holds_no_view_of_its_weight(dropout, bias, dtype):
    """Of gathered weights that would be all of them until the backward pass; torch's own product keeps W^T."""
    from peft import LoraConfig, get_peft_model

    def held(model) -> int:
        storages = {p.untyped_storage().data_ptr() for p in model.parameters() if p.ndim == 2}
        found = 0

        def pack(tensor):
            nonlocal found
            found += tensor._is_view() and tensor.untyped_storage().data_ptr() in storages
            return tensor

        torch.manual_seed(5)
        x = torch.randn(2, 9, 24, dtype=dtype, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(x)
        results.append([out.detach(), *torch.autograd.grad(out.float().pow(2).sum(), [x, *trained(model)])])
        return found

    def trained(model):
        return [p for p in model.parameters() if p.requires_grad]

    results = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], use_dora=True, lora_dropout=dropout)
        model = get_peft_model(_Linears(bias=bias).to(dtype), config, autocast_adapter_dtype=False)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.05)
        assert held(model) > 0, "this torch keeps none"
        for parameter in model.parameters():
            parameter.ds_id = 0
        undo, report = replace_layers(model)
        assert held(model) == 0
    restore_layers(undo)
    assert ("linear layers", "one function each (6 layers)") in [line[:2] for line in report]
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert relative(mine.float(), theirs.float()) < (1e-5 if dtype == torch.float32 else 2e-2)
