"""A model written file by file has the bytes of `save_pretrained`, and one file's tensors in memory."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from luthier.model.save import save_model_files
from luthier.runtime.errors import RunFailed
from tests.support.tiny import tiny_model


class Counted:
    """Tensors of a model, and what was asked for at a time."""

    def __init__(self, model) -> None:
        self.tensors = dict(model.state_dict(keep_vars=True))
        self.asked: list[int] = []

    def outline(self):
        return self.tensors

    def take(self, names):
        self.asked.append(sum(self.tensors[name].nbytes for name in names))
        return {name: self.tensors[name].detach().clone() for name in names}


def digests(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def loaded(tmp_path, **settings):
    """As training has it: from a folder, so transformers knows that nothing was converted."""
    from transformers import AutoModelForCausalLM

    tiny_model(**settings).save_pretrained(tmp_path / "base")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("size", ["5GB", "200KB", "60KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_is_that_of_save_pretrained(tmp_path, size, tied, dtype):
    model = loaded(tmp_path, tied=tied).to(dtype)
    source = Counted(model)
    for name in ("whole", "streamed"):
        (tmp_path / name).mkdir()
    save_model_files(model, tmp_path / "whole", max_shard_size=size)
    save_model_files(model, tmp_path / "streamed", max_shard_size=size, whole=source)
    assert digests(tmp_path / "streamed") == digests(tmp_path / "whole")
    files = list((tmp_path / "streamed").glob("*.safetensors"))
    assert len(files) == len(source.asked) and (size == "5GB") == (len(files) == 1)
    table = model.get_input_embeddings().weight.nbytes
    assert max(source.asked) <= max(table, {"5GB": 5e9, "200KB": 2e5, "60KB": 6e4}[size])


def test_a_model_that_was_not_loaded(tmp_path):
    """Not from `from_pretrained`: the registry of conversions is asked, and has none."""
    model = tiny_model()
    (tmp_path / "out").mkdir()
    save_model_files(model, tmp_path / "out", max_shard_size="1GB", whole=Counted(model))
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in model.state_dict().items())


def test_split_experts_are_written_as_transformers_splits_them(tmp_path, capsys):
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    for name in ("whole", "streamed"):
        (tmp_path / name).mkdir()
    save_model_files(model, tmp_path / "whole")
    save_model_files(model, tmp_path / "streamed", whole=Counted(model))
    assert digests(tmp_path / "streamed") == digests(tmp_path / "whole")
    assert "process 0 holds all weights" in " ".join(capsys.readouterr().err.split())


def test_nan_is_refused_by_name_and_no_index_is_left(tmp_path):
    model = loaded(tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    (tmp_path / "out").mkdir()
    with pytest.raises(RunFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        save_model_files(model, tmp_path / "out", max_shard_size="60KB", whole=Counted(model))
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_the_index_names_every_tensor_once(tmp_path):
    model = loaded(tmp_path)
    (tmp_path / "out").mkdir()
    save_model_files(model, tmp_path / "out", max_shard_size="60KB", whole=Counted(model))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
