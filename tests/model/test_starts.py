"""Contract: however adapters start, the model at step 0 is the base, and what is saved is the trained model on the
untouched base, for plain PEFT."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from luthier.export.merge import merge
from luthier.model import save as save_module
from luthier.model import starts
from luthier.model.save import save_trained
from luthier.model.starts import keep_start, start_of
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError
from tests.model.support import CPU, base_folder, load, logits, prepare, section, some_ids, train

FROM_BASE = ["pissa", "pissa_niter_4", "olora"]
STARTS = [*FROM_BASE, "gaussian", "orthogonal"]
LORA = {"name": "lora", "r": 4, "lora_alpha": 6.0}
KINDS = {
    "lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "dropout": {"lora_dropout": 0.2},
    "tables": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "adapter on embeddings": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
}  # fmt: skip


def peft_logits(where, folder, dtype=torch.float32) -> torch.Tensor:
    """The saved adapter on the untouched base, by PEFT and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(where.name_or_path, dtype=dtype)
    return logits(PeftModel.from_pretrained(base, str(folder)), some_ids())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("start", STARTS)
def test_at_step_0_the_model_is_the_base(tmp_path, start, stored):
    where = section(base_folder(tmp_path / "base", dtype=stored))
    dtype = str(stored).removeprefix("torch.")
    base = logits(load(where, dtype=dtype), some_ids())
    tuned, _ = prepare(where, dtype=dtype, **LORA, init_lora_weights=start)
    bound = {torch.float32: 2e-5, torch.bfloat16: 0.06}[stored] * float(base.abs().max())
    assert float((logits(tuned.model, some_ids()) - base).abs().max()) <= bound
    weights = dict(tuned.model.named_parameters())
    assert all(bool(p.any()) for name, p in weights.items() if "lora_A" in name)
    zero = [not bool(p.any()) for name, p in weights.items() if "lora_B" in name]
    assert all(zero) is (start == "gaussian")
    assert any(zero) is (start == "gaussian")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_what_is_saved_is_the_trained_model_on_the_untouched_base(tmp_path, start, kind):
    where = section(base_folder(tmp_path / "base"))
    tuned, tokenizer = prepare(where, **{**LORA, **KINDS[kind]}, init_lora_weights=start)
    train(tuned)
    trained = logits(tuned.model, some_ids())
    untouched = logits(load(where), some_ids())
    assert float((trained - untouched).abs().max()) > 0.05, "training did something"
    save_trained(tuned.model, tokenizer, tmp_path / "final")
    assert float((peft_logits(where, tmp_path / "final") - trained).abs().max()) <= 2e-5 * float(trained.abs().max())
    rank = {shape.shape[0] for name, shape in load_file(tmp_path / "final/adapter_model.safetensors").items()
            if "lora_A" in name}  # fmt: skip
    assert rank == {8 if start in FROM_BASE else 4}


@pytest.mark.parametrize("start", FROM_BASE)
def test_in_bfloat16_only_the_rounding_of_the_residual_is_between_them(tmp_path, start):
    """Weight by weight: what training saw and what the adapter means differ by half a unit of W_res at most."""
    where = section(base_folder(tmp_path / "base", dtype=torch.bfloat16))
    whole = dict(load(where, dtype="bfloat16").named_parameters())
    tuned, _ = prepare(where, dtype="bfloat16", **LORA, init_lora_weights=start)
    scale = 6.0 / 4
    for name, layer in starts._linear_layers(tuned.model, "default"):
        a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
        residual = layer.get_base_layer().weight
        exact = whole[name.removeprefix("base_model.model.") + ".weight"].float() - scale * (b @ a)
        assert residual.dtype == torch.bfloat16
        assert bool(((residual.float() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-12).all())
        assert float((b @ a).norm()) > 0.1 * float(exact.norm()), "the main part is in the adapter"


def test_the_saved_adapter_is_the_one_peft_converts(tmp_path):
    """Against `save_pretrained(path_initial_model_for_weight_conversion=...)` after the same training."""
    from peft import LoraConfig, get_peft_model

    where = section(base_folder(tmp_path / "base"))
    tuned, tokenizer = prepare(where, **LORA, init_lora_weights="pissa")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=sorted(tuned.model.peft_config["default"].target_modules),
        init_lora_weights="pissa", task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = get_peft_model(load(where), config)
    ours = dict(tuned.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(parameter, ours[name], atol=1e-6), name
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "initial")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    save_before = {name: p.detach().clone() for name, p in tuned.model.named_parameters() if p.requires_grad}
    train(tuned)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in save_before:
                parameter.copy_(ours[name])
    theirs.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    save_trained(tuned.model, tokenizer, tmp_path / "ours")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-5), name


@pytest.mark.parametrize("start", FROM_BASE)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_merging_into_the_untouched_base_holds_the_parity_check(tmp_path, start, stored):
    where = section(base_folder(tmp_path / "base", dtype=stored))
    tuned, tokenizer = prepare(where, dtype=str(stored).removeprefix("torch."), **LORA, init_lora_weights=start)
    train(tuned)
    trained = logits(tuned.model, some_ids())
    save_trained(tuned.model, tokenizer, tmp_path / "final")
    report = merge(where, tmp_path / "final", tmp_path / "merged", device=CPU)
    assert report.passed
    if stored == torch.float32:
        from transformers import AutoModelForCausalLM

        merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32), some_ids())
        assert float((merged - trained).abs().max()) <= 2e-5 * float(trained.abs().max())


def test_planted_adapter_saved_unconverted_is_caught(tmp_path, monkeypatch):
    """The bug: A and B as they are, which fit the changed base only."""
    where = section(base_folder(tmp_path / "base"))
    tuned, tokenizer = prepare(where, **LORA, init_lora_weights="pissa")
    train(tuned)
    trained = logits(tuned.model, some_ids())
    monkeypatch.setattr(save_module, "start_of", lambda model: None)
    save_trained(tuned.model, tokenizer, tmp_path / "final")
    assert float((peft_logits(where, tmp_path / "final") - trained).abs().max()) > 1e-2 * float(trained.abs().max())


def test_training_goes_on_from_the_saved_adapter(tmp_path):
    where = section(base_folder(tmp_path / "base"))
    tuned, tokenizer = prepare(where, **LORA, init_lora_weights="olora")
    train(tuned)
    trained = logits(tuned.model, some_ids())
    save_trained(tuned.model, tokenizer, tmp_path / "final")
    again, _ = prepare(where, name="lora", init_from=str(tmp_path / "final"))
    assert float((logits(again.model, some_ids()) - trained).abs().max()) <= 2e-5 * float(trained.abs().max())
    assert start_of(again.model) is None


# -- what is kept for a resumed run


@pytest.mark.parametrize("start", FROM_BASE)
def test_the_start_is_read_back_bit_for_bit_and_nothing_is_made_anew(tmp_path, monkeypatch, start):
    from luthier.model.adapters import apply_method

    where = section(base_folder(tmp_path / "base"))
    method = MethodSection(**LORA, init_lora_weights=start)
    first = apply_method(load(where), method, seed=1)
    keep_start(start_of(first.model), tmp_path / "start")
    from peft.tuners.lora import LoraLayer

    monkeypatch.setattr(LoraLayer, "pissa_init", lambda *_: pytest.fail("made anew"))
    monkeypatch.setattr(LoraLayer, "olora_init", lambda *_: pytest.fail("made anew"))
    second = apply_method(load(where), method, seed=1, start_folder=tmp_path / "start")
    weights = dict(second.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in first.model.named_parameters())
    assert start_of(first.model).fingerprint() == start_of(second.model).fingerprint()


@pytest.mark.parametrize("change", ["seed", "rank", "base", "damage"])
def test_a_start_of_something_else_is_not_used(tmp_path, change):
    from luthier.model.adapters import apply_method

    where = section(base_folder(tmp_path / "base"))
    method = MethodSection(**LORA, init_lora_weights="pissa_niter_1")
    keep_start(start_of(apply_method(load(where), method, seed=1).model), tmp_path / "start")
    seed = 2 if change == "seed" else 1
    if change == "rank":
        method = MethodSection(**{**LORA, "r": 2}, init_lora_weights="pissa_niter_1")
    if change == "base":
        where = section(base_folder(tmp_path / "other", attention_bias=True))
    if change == "damage":
        file = tmp_path / "start/start.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    found = apply_method(load(where), method, seed=seed, start_folder=tmp_path / "start")
    fresh = apply_method(load(where), method, seed=seed)
    assert start_of(found.model).fingerprint() == start_of(fresh.model).fingerprint()
    base = logits(load(where), some_ids())
    assert float((logits(found.model, some_ids()) - base).abs().max()) <= 2e-5 * float(base.abs().max())


def test_the_random_svd_neither_reads_nor_moves_the_global_state(tmp_path):
    where = section(base_folder(tmp_path / "base"))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tuned, _ = prepare(where, **LORA, init_lora_weights="pissa_niter_1")
        assert torch.equal(torch.get_rng_state(), before)
        found.append(start_of(tuned.model).fingerprint())
    assert found[0] == found[1]


def test_a_rank_beyond_the_matrix_is_refused_with_all_of_it(tmp_path):
    where = section(base_folder(tmp_path / "base"))
    with pytest.raises(RecipeError) as caught:
        prepare(where, name="lora", r=200, init_lora_weights="pissa")
    assert caught.value.problems[0].code == "M329"
    assert "at most" in str(caught.value)


def test_a_4_bit_base_is_refused(tmp_path):
    where = section(base_folder(tmp_path / "base"))
    with pytest.raises(RecipeError) as caught:
        prepare(where, name="qlora", init_lora_weights="pissa")
    assert caught.value.problems[0].code == "M329"


def test_the_report_says_what_will_be_saved(tmp_path):
    tuned, _ = prepare(section(base_folder(tmp_path / "base")), **LORA, init_lora_weights="pissa")
    assert "starts as pissa; saved as a plain adapter of rank 8 for the untouched base" in tuned.report.lines()
