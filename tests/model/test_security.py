"""Contract: nothing in a model or adapter folder runs, unless the recipe trusts it by name."""

from __future__ import annotations

import json
import pickle

import pytest

from luthier.export.merge import merge
from luthier.model.load import load_tuned
from luthier.model.save import save_trained
from luthier.model.tokenizer import load_tokenizer
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from tests.model.support import CPU, base_folder, load, prepare, section

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def hostile(tmp_path, marker):
    """A model folder that tries every way of having code run."""
    folder = base_folder(tmp_path / "base")
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    config.update(
        auto_map=auto_map,
        trust_remote_code=True,
        _attn_implementation="evil/kernel",
        _attn_implementation_internal="evil/kernel",
        attn_implementation="evil/kernel",
        experts_implementation="evil/kernel",
        custom_pipelines={"text-generation": {"impl": "evil.EvilModel"}},
        nested={"trust_remote_code": True, "_attn_implementation_internal": "evil/kernel"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.update(auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}, trust_remote_code=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_no_stage_runs_code_from_the_folder(hostile, tmp_path, marker):
    where = section(hostile)
    load_tokenizer(where)
    model = load(where)
    assert model.config._attn_implementation == "sdpa"
    assert "evil" not in json.dumps(model.config.to_dict())
    tuned, tokenizer = prepare(where, name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    load_tuned(where, tmp_path / "out", device=CPU, dtype="float32")
    merge(where, tmp_path / "out", tmp_path / "merged", device=CPU)
    assert not marker.exists()
    assert "evil" not in "".join(file.read_text() for file in (tmp_path / "merged").glob("*config.json"))


def test_a_model_that_needs_its_own_code_is_refused_and_says_how_to_trust_it(hostile, marker):
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(RecipeError, match="trust_remote_code: true") as caught:
        load(section(hostile))
    assert caught.value.problems[0].code == "M307"
    assert not marker.exists()


def test_with_the_recipes_consent_the_same_code_does_run(hostile, marker):
    """Otherwise the tests above could not fail."""
    config = json.loads((hostile / "config.json").read_text())
    kept = {key: value for key, value in config.items() if "implementation" not in key and key != "nested"}
    (hostile / "config.json").write_text(json.dumps(kept))
    load(section(hostile, trust_remote_code=True))
    assert marker.exists()


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_pickled_weights_are_never_opened(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    pickle.loads(pickle.dumps(Bomb(marker))).close()
    assert marker.exists()  # the bomb works
    marker.unlink()
    base = base_folder(tmp_path / "base")
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        (base / name).write_bytes(pickle.dumps(Bomb(marker)))
    load(section(base))
    (base / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="only pickled weights") as caught:
        load(section(base))
    assert caught.value.problems[0].code == "M306"
    assert not marker.exists()


def test_a_pickled_adapter_is_never_opened(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    (tmp_path / "out" / "luthier.json").unlink()
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    (tmp_path / "out" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(EnvironmentProblem, match="never opened"):
        load_tuned(section(base), tmp_path / "out", device=CPU, dtype="float32")
    with pytest.raises(EnvironmentProblem, match="never opened"):
        prepare(section(base), name="lora", init_from=str(tmp_path / "out"))
    with pytest.raises(EnvironmentProblem, match="never opened"):
        merge(section(base), tmp_path / "out", tmp_path / "merged", device=CPU)
    assert not marker.exists()


def test_other_kinds_of_adapter_are_refused(tmp_path):
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    (tmp_path / "out" / "luthier.json").unlink()
    file = tmp_path / "out" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "PROMPT_TUNING"}))
    with pytest.raises(RecipeError, match="only LORA"):
        load_tuned(section(base), tmp_path / "out", device=CPU, dtype="float32")
