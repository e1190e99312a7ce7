"""Contract: a compressed folder loads in plain transformers and answers as it did in memory, or there is none."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from luthier.export import compressed as module
from luthier.export.compressed import SCHEMES, export_compressed
from luthier.runtime.errors import EnvironmentProblem, LuthierError, RunFailed
from tests.support.tiny import save_tiny

INSTALLED = all(importlib.util.find_spec(name) for name in ("llmcompressor", "compressed_tensors"))
needed = pytest.mark.skipif(not INSTALLED, reason="llm-compressor is not installed: nothing of it was tested")


@pytest.fixture
def merged(tmp_path):
    return save_tiny(tmp_path / "merged", hidden_size=128, intermediate_size=256)


@needed
@pytest.mark.parametrize("kind", SCHEMES)
def test_the_folder_loads_and_answers_as_compressed(tmp_path, merged, kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (report,) = export_compressed(merged, tmp_path / "out", [kind], name="m")
    folder = tmp_path / "out" / f"m-{kind}"
    assert report.gap <= report.allowed and report.kl > 0 and report.bytes < report.merged_bytes
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    ids = torch.arange(5, 40)[None]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits for path in (folder, merged)
    )
    assert 0 < float((ours - theirs).abs().max()) < 0.5 * float(theirs.abs().max())
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(merged).chat_template
    assert 2 in json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"]


@needed
def test_a_folder_that_answers_otherwise_is_not_kept(tmp_path, merged, monkeypatch):
    real = module.write_stop_ids

    def spoil(folder, ids, model):
        from safetensors.torch import load_file, save_file

        real(folder, ids, model)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
        save_file({**tensors, name: tensors[name] * 1.1}, file, metadata={"format": "pt"})

    monkeypatch.setattr(module, "write_stop_ids", spoil)
    with pytest.raises(RunFailed) as caught:
        export_compressed(merged, tmp_path / "out", ["w8a8"], name="m")
    assert caught.value.problems[0].code == "X673"
    assert not list((tmp_path / "out").iterdir())


@needed
def test_layers_that_do_not_fit_are_named(tmp_path):
    small = save_tiny(tmp_path / "small")
    with pytest.raises(RunFailed, match=r"self_attn\.q_proj and 11 more have inputs that are no multiple of 128"):
        export_compressed(small, tmp_path / "out", ["w4a16"], name="m")


def test_everything_wrong_is_told_at_once(tmp_path):
    with pytest.raises(LuthierError) as caught:
        export_compressed(tmp_path, tmp_path / "out", ["int3", "fp8"], name="a/b")
    assert [problem.code for problem in caught.value.problems] == ["X670"] * 3


def test_without_the_package_it_says_which(tmp_path, merged, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="llmcompressor is missing") as caught:
        export_compressed(merged, tmp_path / "out", ["fp8"], name="m")
    assert caught.value.problems[0].code == "X671"
