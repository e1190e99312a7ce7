"""Contract: what the report lists is what trains, and nothing else; each thing asked for is done or refused."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from luthier.model.adapters import apply_method
from luthier.model.attach import is_adapter_parameter
from luthier.model.save import save_trained
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError, RunFailed
from tests.model.support import base_folder, load, logits, prepare, section, some_ids, train, weights_of

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("tied") / "tied", tied=True)


METHODS = [
    {"name": "full"},
    {"name": "lora"},
    {"name": "lora", "use_dora": True},
    {"name": "lora", "use_rslora": True, "lora_dropout": 0.1},
    {"name": "lora", "target_modules": ["q_proj", "v_proj"]},
    {"name": "lora", "target_modules": r"model\.layers\.1\.mlp\..*_proj"},
    {"name": "lora", "target_modules": ["lm_head", "embed_tokens"]},
    {"name": "lora", "modules_to_save": ["norm", "embed_tokens"]},
    {"name": "qlora"},
    {"name": "freeze", "trainable": ["norm"], "last_n_layers": 1},
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_exactly_the_reported_tensors_change_and_the_counts_agree(base, method):
    tuned, _ = prepare(section(base), **method)
    before = weights_of(tuned.model)
    train(tuned, steps=3)
    after = dict(tuned.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(tuned.report.names)
    assert tuned.report.trainable == sum(before[name].numel() for name in changed)
    assert tuned.report.percent == 100 * tuned.report.trainable / tuned.report.total
    assert all(value.grad is None for name, value in after.items() if name not in changed)
    assert sum(row.trainable for row in tuned.report.table) == tuned.report.trainable
    assert sum(row.total for row in tuned.report.table) == tuned.report.total


def test_all_linear_is_every_linear_layer_but_the_head(base):
    tuned, _ = prepare(section(base), name="lora")
    adapted = [name for name, module in tuned.model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 2 * len(LINEAR)
    assert {name.rpartition(".")[2] for name in adapted} == LINEAR
    rows = {row.kind: row for row in tuned.report.table}
    assert set(rows) >= LINEAR | {"embed_tokens", "lm_head", "norm"}
    assert rows["q_proj"].modules == 2
    assert rows["q_proj"].trainable == 2 * 16 * (64 + 64)  # layers x rank x (in + out)


def test_four_bit_weights_are_counted_as_the_weights_they_stand_for(base):
    plain, packed = prepare(section(base), name="lora")[0].report, prepare(section(base), name="qlora")[0].report
    assert (packed.trainable, packed.total) == (plain.trainable, plain.total)
    assert packed.total_bytes < plain.total_bytes


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"target_modules": ["q_proj", "vproj"]}, r"'vproj', which matches no module[\s\S]*did you mean \"v_proj\""),
        ({"target_modules": ["proj"]}, "'proj', which matches no module"),
        ({"target_modules": []}, "empty list"),
        ({"target_modules": "q_proj"}, "must match a whole name"),
        ({"target_modules": "(q_proj"}, "no regular expression"),
        ({"target_modules": ["norm"]}, r"LoRA cannot adapt: model\.norm \(LlamaRMSNorm\)"),
        ({"target_modules": ["self_attn"]}, "LoRA cannot adapt"),
        ({"modules_to_save": ["head"]}, r"modules_to_save` has 'head', which matches no module"),
        ({"modules_to_save": ["lm_head", "embed"]}, r"'embed', which matches no module"),
    ],
)
def test_a_target_that_would_be_dropped_is_an_error(base, method, words):
    with pytest.raises(RecipeError, match=words) as caught:
        prepare(section(base), name="lora", **method)
    assert caught.value.exit_code == 2


def test_every_miss_is_reported_at_once(base):
    with pytest.raises(RecipeError) as caught:
        prepare(section(base), name="lora", target_modules=["aaa", "q_proj", "bbb"])
    assert [problem.code for problem in caught.value.problems] == ["M320", "M320"]


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_lora_on_a_weight_that_two_modules_share_is_refused_not_dropped(tied, name):
    with pytest.raises(RecipeError, match=r"share one weight[\s\S]*modules_to_save"):
        prepare(section(tied), name="lora", target_modules=["q_proj", name])


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_a_tied_weight_trained_in_full_stays_tied(tied, names):
    tuned, _ = prepare(section(tied), name="lora", modules_to_save=names)
    train(tuned)
    model = tuned.model
    ids = some_ids()
    full = [name for name in tuned.report.names if "modules_to_save" in name]
    assert full == ["base_model.model.model.embed_tokens.modules_to_save.default.weight"]
    weight = dict(model.named_parameters())[full[0]]
    hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, hidden @ weight.T)


def test_the_same_seed_gives_the_same_adapter_whatever_the_global_state(base):
    torch.manual_seed(1)
    first = weights_of(prepare(section(base), name="lora", seed=3)[0].model)
    torch.manual_seed(2)
    torch.rand(100)
    state = torch.get_rng_state()
    second = weights_of(prepare(section(base), name="lora", seed=3)[0].model)
    assert torch.equal(torch.get_rng_state(), state)
    other = weights_of(prepare(section(base), name="lora", seed=4)[0].model)
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in names)


@pytest.mark.parametrize(
    "method", [{}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"name": "qlora"}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_have_the_type_of_the_model(base, dtype, method):
    tuned, _ = prepare(section(base, new_tokens=["<x>"]), dtype=dtype, **{"name": "lora", **method})
    types = {value.dtype for name, value in tuned.model.named_parameters() if is_adapter_parameter(name)}
    assert types == {getattr(torch, dtype)}


def test_an_untrained_adapter_changes_nothing(base):
    plain = logits(load(section(base)))
    for method in ({}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}):
        torch.testing.assert_close(
            logits(prepare(section(base), name="lora", **method)[0].model), plain, atol=2e-6, rtol=0
        )


def test_rslora_divides_by_the_root_of_the_rank(base):
    for rslora, scale in ((False, 32.0 / 16), (True, 32.0 / 4)):
        model = prepare(section(base), name="lora", use_rslora=rslora)[0].model
        assert {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)} == {scale}


def test_continuing_an_adapter_trains_all_of_it_and_only_it(base, tmp_path):
    where = section(base, new_tokens=["<x>"])
    tuned, tokenizer = prepare(where, name="lora", r=4, target_modules=["q_proj", "o_proj"])
    new = tokenizer.get_vocab()["<x>"]
    train(tuned, extra=[new])
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    again, _ = prepare(where, name="lora", init_from=str(tmp_path / "adapter"))
    assert again.report.names == tuned.report.names
    assert again.report.trainable == tuned.report.trainable
    ids = some_ids([new])
    assert torch.equal(logits(again.model, ids), logits(tuned.model, ids))
    before = weights_of(again.model)
    train(again, extra=[new])
    after = weights_of(again.model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(again.report.names)


def test_continuing_with_settings_the_adapter_does_not_have_is_refused(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora", r=4)
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    with pytest.raises(RecipeError, match=r"`method.r` is 8, the adapter has 4"):
        prepare(section(base), name="lora", r=8, init_from=str(tmp_path / "adapter"))
    with pytest.raises(RecipeError, match="not an adapter folder"):
        prepare(section(base), name="lora", init_from=str(base))
    with pytest.raises(RecipeError, match="token rows"):
        prepare(section(base, new_tokens=["<x>"]), name="lora", init_from=str(tmp_path / "adapter"))
    with pytest.raises(RecipeError, match="continues an adapter"):
        prepare(section(base), name="full", init_from=str(tmp_path / "adapter"))


def test_continuing_on_another_base_is_refused(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    other = base_folder(tmp_path / "other", seed=5)
    with pytest.raises(RunFailed, match="other weights"):
        prepare(section(other), name="lora", init_from=str(tmp_path / "adapter"))


def test_methods_and_storage_that_cannot_work_together_are_refused(base):
    packed = load(section(base), quantization="nf4")
    with pytest.raises(RecipeError, match="cannot train weights stored in 4 bits"):
        apply_method(packed, MethodSection(name="full"), seed=0)
    with pytest.raises(RecipeError, match="stored in 4 bits"):
        apply_method(packed, MethodSection(name="qlora", modules_to_save=["down_proj"]), seed=0)
    with pytest.raises(RecipeError, match="needs a base in 4 bits"):
        apply_method(load(section(base)), MethodSection(name="qlora"), seed=0)


def test_dropout_is_there_in_training_and_gone_in_evaluation(base):
    tuned, _ = prepare(section(base), name="lora", lora_dropout=0.5)
    train(tuned)
    assert torch.equal(logits(tuned.model), logits(tuned.model))
    tuned.model.train()
    ids = some_ids()
    first, second = (tuned.model(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_the_report_reads_well(base):
    report = prepare(section(base), name="lora", r=8, target_modules=["q_proj"])[0].report
    assert report.lines()[0] == "lora: 2,048 of 152,896 weights are trained (1.34%), in 4 tensors"
    assert report.lines()[1] == "q_proj x 2: 2,048"
    assert report.to_json()["trainable"] == 2048
