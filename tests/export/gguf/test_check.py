"""Contract: what cannot be compared, or did not come back, is a fault or is told; odd folders are read as they are."""

import pytest
import torch
from transformers import AutoConfig

from luthier.export.gguf import check, logits, runner, tensors
from luthier.export.gguf.check import GgufReport
from luthier.export.gguf.families import family_of
from luthier.runtime.errors import RecipeError, RunFailed
from tests.export.gguf.support import byte_level, model_of, save, sentence_piece
from tests.export.gguf.test_export import only
from tests.support.tiny import CHATML, tiny_tokenizer

pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")


@pytest.mark.slow
def test_a_stop_that_the_file_lost_is_caught(tmp_path, monkeypatch):
    folder = save(tmp_path / "m", tokenizer=sentence_piece(), eos_token_id=[2, 300])
    with pytest.raises(RunFailed, match="ends an answer, but not in the runner"):
        only(folder, tmp_path)


def test_a_talk_that_the_template_refuses_is_told(tmp_path):
    tokenizer = byte_level(template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
                           "{% endif %}" + CHATML)  # fmt: skip
    report = only(save(tmp_path / "m", tokenizer=tokenizer), tmp_path, ollama=True)
    assert report.passed and report.notes == [
        "the template refuses talks of system, user, so none was compared: no system"
    ]
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text()


def test_a_head_stored_beside_the_embedding_it_is_tied_to(tmp_path):
    folder = save(tmp_path / "m", "llama-tied")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = AutoConfig.from_pretrained(folder)
    assert "output.weight" not in {name for _, name, _ in tensors.Weights(folder, config, family_of(config)).names()}
    weights["lm_head.weight"] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "output.weight" in {name for _, name, _ in tensors.Weights(folder, config, family_of(config)).names()}


@pytest.mark.slow
def test_shards(tmp_path):
    model_of("llama").save_pretrained(tmp_path / "m", max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 2 and only(tmp_path / "m", tmp_path).passed
    shards[1].unlink()
    with pytest.raises(RecipeError, match=f"lacks {shards[1].name}"):
        only(tmp_path / "m", tmp_path)


def test_numbers_that_are_none_are_faults():
    expected = torch.log_softmax(torch.arange(30.0), dim=0)
    for found, logs, allowed in (
        ({}, expected, 0.1),
        ({29: -0.4}, expected * torch.nan, 0.1),
        ({29: float(expected[29])}, expected, torch.nan),
    ):
        report = GgufReport(file="f", type="f32", bytes=1, bits_per_weight=1.0, weight_error=0.0, kl=0.0,
                            same_choice=1.0, reader="", gap=0.0, allowed=allowed)  # fmt: skip
        check._compare(report, 0, logs, found)
        assert not report.passed


def test_an_overflow_where_the_runner_rounds_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "is_available", lambda: False)
    monkeypatch.setitem(logits._ROUNDINGS, "f16", lambda values: (values * 1e9).half().float() * 1e-9)
    with pytest.raises(RunFailed, match="overflow"):
        only(save(tmp_path / "m"), tmp_path, "f16")


def test_a_runner_that_hangs_is_given_up(tmp_path, monkeypatch):
    file, program = tmp_path / "x.gguf", tmp_path / "python"
    file.write_bytes(b"")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(program))
    monkeypatch.setattr(runner, "_START_SECONDS", 0.3)
    with pytest.raises(RunFailed, match="has not loaded"), runner.running(file, context=8):
        pass


@pytest.mark.slow
def test_a_proxy_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert only(save(tmp_path / "m"), tmp_path).passed
