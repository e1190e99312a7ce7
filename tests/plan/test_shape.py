"""Contract: tensors derived from a config are those of transformers; the shipped table has the published counts."""

import json
from pathlib import Path

import pytest

from luthier.plan import known
from luthier.plan.families import KNOWN_FAMILIES, family_tensors
from luthier.plan.known import known_model, known_names, published_parameters
from luthier.plan.shape import read_header, read_shape, shape_from_config
from luthier.runtime.errors import EnvironmentProblem
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", known_names())
def test_shipped_shapes_have_the_published_number_of_parameters(name):
    assert known_model(name).parameters == published_parameters()[name]


def test_the_usual_models_ship():
    for name in (
        "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B", "mistralai/Mistral-7B-Instruct-v0.3", "google/gemma-2b-it", "google/gemma-3-1b-it",
        "microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct",
        "smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-1.7B",
        *(f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")),
        *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
    ):  # fmt: skip
        assert known_model(name) is not None, name


def test_names_that_only_look_alike_are_not_taken():
    for name in ("someone/Llama-3.1-8B-pruned", "x/y", "Llama-3.1-9B", "", "Qwen2.5-7B-1M-extended"):
        assert known_model(name) is None, name


@pytest.mark.parametrize("family", sorted(KNOWN_FAMILIES))
def test_names_and_shapes_are_those_of_transformers(family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    entry = next(entry for entry in known._entries().values() if entry["config"]["model_type"] == family)
    config = {**entry["config"], "num_hidden_layers": 2}
    config.pop("sliding_window_pattern", None)
    made = AutoConfig.for_model(**{**config, "pad_token_id": 0})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(family_tensors(config)) == theirs


@pytest.mark.parametrize("option", ["attention_bias", "mlp_bias"])
def test_biases_of_llama_are_counted(option):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **{option: True},
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(family_tensors(config.to_dict())) == theirs


def test_parameters_equal_those_of_the_loaded_model(folder):
    assert read_shape(folder).parameters == sum(parameter.numel() for parameter in tiny_model().parameters())


def test_a_tied_head_counts_once(tmp_path):
    shape = read_shape(save_tiny(tmp_path, tied=True))
    assert shape.tied
    assert shape.parameters == sum(parameter.numel() for parameter in tiny_model(tied=True).parameters())


def test_a_config_alone_gives_the_same_sizes_as_the_weights(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    alone, whole = read_shape(tmp_path), read_shape(folder)
    assert {(tensor.name, tensor.shape) for tensor in alone.tensors} == {
        (tensor.name, tensor.shape) for tensor in whole.tensors
    }
    assert (alone.source, whole.source) == ("config.json alone", "config.json and safetensors headers")


def test_norms_windows_and_normed_heads_are_read():
    assert [known_model(name).norms_per_layer for name in ("Llama-3.1-8B", "gemma-3-1b", "gemma-2-2b")] == [2, 4, 4]
    assert [known_model(name).qk_norm for name in ("Qwen3-8B", "gemma-3-1b", "Qwen2.5-7B")] == [True, True, False]
    assert (known_model("gemma-3-1b").window, known_model("gemma-3-1b").windowed_layers) == (512, 22)
    assert (known_model("Mistral-7B-v0.1").window, known_model("Mistral-7B-v0.1").windowed_layers) == (4096, 32)
    assert known_model("Mistral-7B-v0.3").windowed_layers == 0


def test_a_torn_safetensors_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x00\x01")
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors"):
        read_header(file)
    with pytest.raises(EnvironmentProblem, match=r"config\.json"):
        read_shape(tmp_path)


def test_an_unknown_family_needs_its_weights(tmp_path):
    config = {"model_type": "mamba", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EnvironmentProblem, match=r"no \.safetensors file"):
        read_shape(tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"model_type 'mamba'"):
        shape_from_config(config, where="x", source="x")


def test_a_missing_size_is_named():
    sizes = {"hidden_size": 8, "vocab_size": 9, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(EnvironmentProblem, match="intermediate_size"):
        shape_from_config({"model_type": "llama", **sizes}, where="x", source="x")


def test_the_data_file_has_only_values_that_are_used():
    lines = (Path(known.__file__).parent / "models.jsonl").read_text().splitlines()
    names = [name for line in lines for name in json.loads(line)["names"]]
    assert len(names) == len({name.lower() for name in names})
