"""A hollow model is the loaded one in all but the values of its parameters."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.model.adapters import apply_method
from luthier.model.hollow import values_of
from luthier.model.load import load_base
from luthier.recipe.schema import MethodSection, ModelSection
from luthier.runtime.errors import EnvironmentProblem
from tests.model.support import CPU
from tests.support.tiny import save_tiny


def both(folder, dtype="float32", **settings):
    section = ModelSection(name_or_path=str(folder), **settings)
    return (load_base(section, device=CPU, dtype=dtype, hollow=hollow) for hollow in (False, True))


def names(model) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_but_values_is_as_loaded(tmp_path, tied, dtype):
    real, hollow = both(save_tiny(tmp_path / "base", tied=tied), dtype)
    assert type(hollow) is type(real) and names(hollow) == names(real)
    for (name, mine), theirs in zip(real.named_parameters(), hollow.parameters(), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
        assert theirs.untyped_storage().nbytes() == theirs.element_size(), "no memory"
        assert theirs.isnan().all(), "whoever reads it sees that there is nothing"
    buffers = dict(real.named_buffers())
    assert buffers and buffers.keys() == dict(hollow.named_buffers()).keys()
    for name, buffer in hollow.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name
    assert hollow.config.to_dict() == real.config.to_dict()
    assert hollow.generation_config.to_dict() == real.generation_config.to_dict()
    assert hollow.luthier_base == real.luthier_base
    assert (hollow.lm_head.weight is hollow.model.embed_tokens.weight) is tied
    values = values_of(hollow)
    assert sorted(values.names.values()) == sorted(names(real)) and set(values.files) >= set(values.names.values())


def test_attention_of_the_recipe_is_taken(tmp_path):
    real, hollow = both(save_tiny(tmp_path / "base"), attn_implementation="eager")
    assert hollow.config._attn_implementation == real.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "r": 4}, {"name": "lora", "r": 4, "init_lora_weights": "gaussian"},
        {"name": "lora", "r": 2, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"name": "full"}, {"name": "freeze", "last_n_layers": 1},
    ],
)  # fmt: skip
def test_methods_give_the_same_adapters_and_the_same_account(tmp_path, method):
    """Adapters bit for bit: the same draws in the same order, and no value of the base is read."""
    real, hollow = both(save_tiny(tmp_path / "base"), "bfloat16")
    mine, theirs = (apply_method(model, MethodSection(**method), seed=3) for model in (real, hollow))
    assert mine.report.lines() == theirs.report.lines()
    for (name, a), (other, b) in zip(mine.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert name == other and a.requires_grad == b.requires_grad
        if "lora_" in name:
            assert torch.equal(a, b) and b.device.type == "cpu"
    held = values_of(theirs.model)
    assert {id(p) for n, p in theirs.model.named_parameters() if "lora_" not in n} == set(held.names)


def test_an_adapter_that_is_continued_has_its_values(tmp_path):
    from luthier.model.save import save_trained
    from tests.support.tiny import tiny_tokenizer

    base = save_tiny(tmp_path / "base")
    first, hollow = both(base)
    tuned = apply_method(first, MethodSection(name="lora", r=4), seed=1).model
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_trained(tuned, tiny_tokenizer(), tmp_path / "adapter")
    method = MethodSection(name="lora", r=4, init_from=str(tmp_path / "adapter"))
    again = dict(apply_method(hollow, method, seed=2).model.named_parameters())
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            assert torch.equal(again[name], parameter), name


def test_a_weight_stored_under_both_its_names_is_shared_if_it_is_one(tmp_path):
    base = save_tiny(tmp_path / "base", tied=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    real, hollow = both(base)
    assert names(hollow) == names(real) and "lm_head.weight" not in names(real)
    tensors["lm_head.weight"] += 1  # transformers: not shared after all
    save_file(tensors, file, {"format": "pt"})
    real, hollow = both(base)
    assert names(hollow) == names(real) and "lm_head.weight" in names(real)


def test_older_names_are_loaded_whole_by_process_0_and_said(tmp_path, capsys, monkeypatch):
    """A file without the prefix `model.`: transformers adds it while it loads."""
    base = save_tiny(tmp_path / "base")
    file = base / "model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    real, hollow = both(base)
    assert "process 0 loads the whole model" in " ".join(capsys.readouterr().err.lower().split())
    values = values_of(hollow)
    assert not values.files and set(values.held) == set(names(real))
    assert all(torch.equal(values.held[name], tensor) for name, tensor in real.named_parameters())
    assert all(p.untyped_storage().nbytes() == 4 for p in hollow.parameters())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    _, other = both(base)
    assert not values_of(other).held and list(values_of(other).names.values()) == list(values.names.values())
    assert all(p.untyped_storage().nbytes() == 4 for p in other.parameters())


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_what_is_refused_whole_is_refused_hollow(tmp_path, change):
    base = save_tiny(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    if change == "missing":
        del tensors["model.norm.weight"]
    else:
        tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    errors = []
    for hollow in (False, True):
        with pytest.raises(EnvironmentProblem) as caught:
            load_base(ModelSection(name_or_path=str(base)), device=CPU, dtype="float32", hollow=hollow)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_pickles_are_refused(tmp_path):
    base = save_tiny(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(EnvironmentProblem, match="pickled"):
        load_base(ModelSection(name_or_path=str(base)), device=CPU, dtype="float32", hollow=True)
