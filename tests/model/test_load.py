"""Contract: a model is loaded as stored, byte for byte, or refused with a code, a name and a fix."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.model.load import load_base, load_tuned
from luthier.model.save import save_trained
from luthier.model.weights import non_finite_tensors
from luthier.runtime.errors import EnvironmentProblem, RecipeError, RunFailed
from tests.model.support import CPU, base_folder, load, prepare, section

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path / "base")


def edit_config(folder, **changes):
    file = folder / "config.json"
    value = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(value))


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_every_weight_is_the_one_in_the_file(base):
    model = load(section(base))
    stored = load_file(base / "model.safetensors")
    live = model.state_dict()
    assert set(stored) == set(live)
    assert all(torch.equal(stored[name], live[name]) for name in stored)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_get_the_type_asked_for_and_rotary_tables_stay_fp32(base, dtype):
    model = load(section(base), dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_folder_that_does_not_exist_is_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError, match="no such folder") as caught:
        load(section(tmp_path / "nowhere"))
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].code == "M301"


def test_a_file_instead_of_a_folder(base):
    with pytest.raises(RecipeError, match="not a folder"):
        load(section(base / "config.json"))


def test_a_folder_without_config(base):
    (base / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"no config\.json") as caught:
        load(section(base))
    assert caught.value.problems[0].code == "M302"


def test_an_adapter_folder_as_base_is_told_how_to_continue_it(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    with pytest.raises(RecipeError, match=r"is an adapter[\s\S]*init_from"):
        load(section(tmp_path / "adapter"))


def test_a_config_that_is_not_json(base):
    (base / "config.json").write_text("{")
    with pytest.raises(EnvironmentProblem, match="not JSON") as caught:
        load(section(base))
    assert (caught.value.exit_code, caught.value.problems[0].code) == (4, "M303")


def test_an_unknown_architecture(base):
    edit_config(base, model_type="gaga")
    with pytest.raises(RecipeError, match="'gaga' is unknown"):
        load(section(base))


def test_an_architecture_without_causal_head(base):
    edit_config(base, model_type="clip")
    with pytest.raises(EnvironmentProblem, match="causal language model"):
        load(section(base))


def test_a_quantised_base_is_refused(base):
    edit_config(base, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(RecipeError, match=r"quantised \(gptq\)"):
        load(section(base))


def test_no_weights(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match=r"no \*\.safetensors"):
        load(section(base))


@pytest.mark.parametrize("keep", [0, 7, 100, 300_000])
def test_a_truncated_file_is_named(base, keep):
    file = base / "model.safetensors"
    data = file.read_bytes()
    assert keep < len(data)
    file.write_bytes(data[:keep])
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors is not a complete safetensors file"):
        load(section(base))


def test_a_missing_shard_is_named(base, tmp_path):
    load(section(base)).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    for file in base.glob("tokenizer*"):
        (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    load(section(tmp_path / "sharded"))
    shards[1].unlink()
    with pytest.raises(EnvironmentProblem, match=f"{shards[1].name} is missing"):
        load(section(tmp_path / "sharded"))


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/x.safetensors", "weights.bin"])
def test_an_index_cannot_lead_out_of_its_folder_or_to_a_pickle(base, name):
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(EnvironmentProblem, match="only plain names"):
        load(section(base))


def test_a_tensor_that_is_not_in_the_file_is_not_made_up(base):
    edit_weights(base, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(EnvironmentProblem, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj\.weight") as caught:
        load(section(base))
    assert caught.value.problems[0].code == "M312"


def test_a_tensor_of_another_shape(base):
    edit_config(base, intermediate_size=96)
    with pytest.raises(EnvironmentProblem):
        load(section(base))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_one_bad_number_in_the_base_is_found_and_its_tensor_named(base, value, quantization):
    edit_weights(base, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][5].__setitem__(3, value))
    with pytest.raises(RunFailed, match=r"NaN or infinity in model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        load(section(base), quantization=quantization)
    assert caught.value.problems[0].code == "M309"


def test_a_weight_too_large_for_fp16_is_found(base):
    edit_weights(base, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 1e6))
    load(section(base))
    with pytest.raises(RunFailed, match=r"float16.*model\.norm\.weight"):
        load(section(base), dtype="float16")


def test_finite_weights_whose_sum_overflows_are_fine():
    huge = torch.full((1000,), 3e38)
    assert not torch.isfinite(huge.sum())
    assert non_finite_tensors({"huge": huge, "empty": torch.empty(0), "ids": torch.arange(3)}) == []
    assert non_finite_tensors({"mixed": torch.tensor([INF, -INF])}) == ["mixed"]


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path):
    # 273 rows: fewer than the tokenizer's largest id.
    folder = base_folder(tmp_path / "small", vocab_size=273)
    with pytest.raises(RecipeError, match="the model has 273 embedding rows") as caught:
        load(section(folder))
    assert caught.value.problems[0].code == "M310"


def test_control_tokens_beyond_the_rows_that_no_template_writes_are_only_noted(tmp_path, capsys):
    from transformers import AutoTokenizer

    folder = base_folder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # As in some text models of a multimodal family: an image mark one past the last row.
    last = max(tokenizer.get_vocab().values())
    base_folder(folder, vocab_size=last + 1)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert load(section(folder)).get_input_embeddings().weight.shape[0] == last + 1
    assert "<image>" in capsys.readouterr().err
    tokenizer.chat_template = "{{ '<image>' }}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(RecipeError, match="embedding rows"):
        load(section(folder))


def test_attention_comes_from_the_recipe(base):
    assert load(section(base)).config._attn_implementation == "sdpa"
    assert load(section(base, attn_implementation="eager")).config._attn_implementation == "eager"


def test_loading_draws_no_random_numbers(base):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    load(section(base, new_tokens=[f"<{n}>" for n in range(400)]))
    assert torch.equal(torch.rand(4), expected)


def test_the_wrong_base_under_an_adapter_is_refused(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    load_tuned(section(base), tmp_path / "adapter", device=CPU, dtype="float32")
    other = base_folder(tmp_path / "other", seed=1)
    with pytest.raises(RunFailed, match="has other weights") as caught:
        load_tuned(section(other), tmp_path / "adapter", device=CPU, dtype="float32")
    assert caught.value.problems[0].code == "M318"


def test_an_adapter_of_another_shape_is_refused_even_without_a_record(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    (tmp_path / "adapter" / "luthier.json").unlink()
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert set(targets) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    wide = base_folder(tmp_path / "wide", hidden_size=128)
    with pytest.raises(RunFailed, match="does not fit"):
        load_tuned(section(wide), tmp_path / "adapter", device=CPU, dtype="float32")
    deep = base_folder(tmp_path / "deep", layers=3)
    with pytest.raises(RunFailed, match=r"the file lacks .*layers\.2"):
        load_tuned(section(deep), tmp_path / "adapter", device=CPU, dtype="float32")
    shallow = base_folder(tmp_path / "shallow", layers=1)
    with pytest.raises(RunFailed, match=r"no place for .*layers\.1"):
        load_tuned(section(shallow), tmp_path / "adapter", device=CPU, dtype="float32")


def test_an_adapter_with_nan_is_refused(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = NAN
    save_file(tensors, file)
    (tmp_path / "adapter" / "luthier.json").unlink()
    with pytest.raises(RunFailed, match="NaN or infinity in base_model"):
        load_tuned(section(base), tmp_path / "adapter", device=CPU, dtype="float32")


def test_a_record_is_kept_of_where_the_base_came_from(base):
    record = load_base(section(base), device=CPU, dtype="float32").luthier_base
    assert record.name_or_path == str(base)
    assert len(record.hash) == 32
