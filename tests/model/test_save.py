"""Contract: what was trained is on disk, exactly, without a pickle, or nothing is."""

from __future__ import annotations

import json
import resource

import pytest
import torch
from safetensors.torch import load_file

from luthier.model.load import load_tuned
from luthier.model.save import save_trained
from luthier.model.stops import stop_ids
from luthier.runtime.errors import EnvironmentProblem, RunFailed
from tests.model.support import CPU, base_folder, logits, prepare, section, some_ids, train, weights_of

NEW = ["<x>"]
METHODS = [
    {"name": "full"},
    {"name": "lora"},
    {"name": "lora", "use_dora": True},
    {"name": "lora", "modules_to_save": ["embed_tokens", "norm"]},
    {"name": "lora", "target_modules": ["embed_tokens", "q_proj"]},
    {"name": "qlora"},
    {"name": "freeze", "last_n_layers": 1},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_reloaded_model_is_the_trained_one(base, tmp_path, method):
    where = section(base)
    tuned, tokenizer = prepare(where, **method)
    train(tuned)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    packed = "nf4" if method["name"] == "qlora" else "none"
    again = load_tuned(where, tmp_path / "out", device=CPU, dtype="float32", quantization=packed)
    assert torch.equal(logits(again), logits(tuned.model))
    assert not again.training


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_only_safetensors_json_and_templates_are_written(base, tmp_path, method):
    tuned, tokenizer = prepare(section(base), **method)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jinja"}
    # A pickle starts with 0x80 (or is a zip): no file may.
    assert not [
        file.name for file in files if file.read_bytes()[:1] in (b"\x80", b"P") and file.suffix != ".safetensors"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("method", METHODS[1:6], ids=str)
def test_every_tensor_that_changed_is_in_the_file_with_its_value(base, tmp_path, method):
    tuned, tokenizer = prepare(section(base), **method)
    before = weights_of(tuned.model)
    train(tuned)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    after = weights_of(tuned.model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    for name in changed:
        key = name.replace(".default", "").replace(".modules_to_save", "")
        key = key.removesuffix(".weight") if "magnitude" in key else key
        assert torch.equal(saved[key], after[name]), name
    assert all(value.numel() and value.dtype == torch.float32 for value in saved.values())


def test_masters_are_what_is_saved_for_an_adapter(base, tmp_path):
    tuned, tokenizer = prepare(section(base, new_tokens=NEW), dtype="bfloat16", name="lora", modules_to_save=["norm"])
    values = {
        name: value.detach().float() + 1e-4 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        for name, value in tuned.model.named_parameters()
        if value.requires_grad
    }
    save_trained(tuned.model, tokenizer, tmp_path / "out", masters=values)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(saved) == len(values)
    for name, value in values.items():
        key = name.replace(".default", "").replace(".modules_to_save", "")
        assert torch.equal(saved[key], value), name
        assert not torch.equal(value, value.bfloat16().float())  # or this shows nothing


def test_masters_of_a_whole_model_are_rounded_to_its_type(base, tmp_path):
    tuned, tokenizer = prepare(section(base), dtype="bfloat16", name="full")
    masters = {name: value.detach().float() + 0.01 for name, value in tuned.model.named_parameters()}
    save_trained(tuned.model, tokenizer, tmp_path / "out", masters=masters)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(saved[name], value.bfloat16()) for name, value in masters.items())


def test_masters_under_an_unknown_name_are_a_programming_error(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    with pytest.raises(ValueError, match="name no parameter"):
        save_trained(tuned.model, tokenizer, tmp_path / "out", masters={"x": torch.zeros(1)})


@pytest.mark.parametrize("name", ["lora", "full"])
def test_nothing_that_is_not_finite_is_ever_saved(base, tmp_path, name):
    tuned, tokenizer = prepare(section(base), name=name)
    weight = next(value for value in tuned.model.parameters() if value.requires_grad)
    with torch.no_grad():
        weight.view(-1)[7] = float("nan")
    with pytest.raises(RunFailed, match="NaN or infinity"):
        save_trained(tuned.model, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lora", "full"])
def test_stop_ids_are_in_every_config(base, tmp_path, name):
    tuned, tokenizer = prepare(section(base), name=name)
    tokenizer.eos_token = "<|endoftext|>"  # as in a base whose turns end with another token than its texts
    tuned.model.generation_config.temperature = 0.7  # such a file loads, but transformers refuses to save it
    tuned.model.generation_config.do_sample = False
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == {0, 2} == set(stop_ids(tokenizer, tuned.model))
    assert generation["temperature"] == 0.7
    if name == "full":
        assert set(json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"]) == {0, 2}


def test_saving_over_an_older_result_replaces_all_of_it(base, tmp_path):
    full, tokenizer = prepare(section(base), name="full")
    save_trained(full.model, tokenizer, tmp_path / "out")
    lora, _ = prepare(section(base), name="lora")
    save_trained(lora.model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_path_that_cannot_be_written_is_one_clear_error(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="lora")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write") as caught:
        save_trained(tuned.model, tokenizer, tmp_path / "file" / "out")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_disk_that_fills_up_leaves_nothing_and_names_the_folder(base, tmp_path, name):
    """A file-size limit of the process stands for the full disk: the write fails in the same place."""
    tuned, tokenizer = prepare(section(base), name=name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(
            EnvironmentProblem, match=rf"cannot write {tmp_path / 'out'}: File too large[\s\S]*ulimit"
        ) as caught:
            save_trained(tuned.model, tokenizer, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.exit_code, caught.value.problems[0].code) == (4, "R710")
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_a_recomputing_model_still_uses_its_cache(base, tmp_path):
    tuned, tokenizer = prepare(section(base), name="full")
    tuned.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned.model(input_ids=some_ids(), use_cache=False)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is True
