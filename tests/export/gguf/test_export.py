"""Contract: a GGUF file is kept only if llama.cpp, an independent reader, cuts, renders, stops and answers alike."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from luthier.export.gguf import check, tensors, vocabulary, write
from luthier.export.gguf.export import QUANTIZER, export_gguf
from luthier.runtime.errors import EnvironmentProblem, RecipeError, RunFailed
from tests.export.gguf.support import FAMILIES, byte_level, save, sentence_piece

pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")

QUICK = {"llama-tied", "qwen3", "gemma3"}
"""The others are slow tests: each starts llama.cpp."""


def most_are_slow(values, quick):
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def only(folder, tmp_path, kind="f32", **more):
    (report,) = export_gguf(folder, tmp_path / "out", [kind], name="tiny", **more)
    return report


@pytest.mark.parametrize("family", most_are_slow(FAMILIES, QUICK))
def test_every_family_answers_alike(tmp_path, family):
    report = only(save(tmp_path / "m", family), tmp_path)
    assert report.passed and "llama.cpp" in report.reader
    assert report.answers_equal == report.answers == 6
    assert report.gap < 0.02 and report.weight_error == 0.0 and report.kl == pytest.approx(0.0, abs=1e-6)
    assert (tmp_path / "out" / "tiny-f32.gguf").stat().st_size == report.bytes


@pytest.mark.parametrize("kind", most_are_slow(["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"], {"q8_0"}))
def test_every_type(tmp_path, kind):
    report = only(save(tmp_path / "m", dtype=torch.bfloat16), tmp_path, kind)
    assert report.passed and report.gap <= report.allowed
    assert (report.weight_error < 1e-8) == (kind in {"f16", "bf16"})  # bf16 weights of this size fit both


def _inverted_halves(values, heads):
    return values


@pytest.mark.parametrize(
    "bug", most_are_slow(["not permuted", "norm not shifted", "rope base", "head of another token"], {"not permuted"})
)
def test_planted_mistakes_are_caught(tmp_path, monkeypatch, bug):
    family = "gemma" if bug == "norm not shifted" else "llama"
    folder = save(tmp_path / "m", family)
    if bug == "not permuted":
        monkeypatch.setattr(tensors, "_permute", _inverted_halves)
        monkeypatch.setattr(tensors, "_unpermute", _inverted_halves)
    elif bug == "norm not shifted":
        monkeypatch.setattr(tensors, "_NORM", tensors.re.compile("nothing"))
    elif bug == "rope base":
        config = json.loads((folder / "config.json").read_text())
        real = write.write_hyperparameters

        def other_base(writer, config, family):
            config = type(config).from_dict(
                {**config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
            )
            return real(writer, config, family)

        assert config["rope_parameters"]["rope_theta"] != 100.0
        monkeypatch.setattr(write, "write_hyperparameters", other_base)
    else:
        own = tensors.Weights.values
        monkeypatch.setattr(
            tensors.Weights, "values",
            lambda self, name: np.roll(own(self, name), 1, axis=0) if name == "lm_head.weight" else own(self, name),
        )  # fmt: skip
        monkeypatch.setattr(
            tensors.Weights, "back",
            lambda self, name, values: np.roll(values, -1, axis=0) if name == "lm_head.weight" else values,
        )  # fmt: skip
    with pytest.raises(RunFailed) as failure:
        only(folder, tmp_path)
    assert {problem.code for problem in failure.value.problems} == {"X621"}
    assert not list((tmp_path / "out").iterdir())


RULES = {
    "gpt-2": None,
    "smollm": [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)],
    "llama-bpe": [Split(Regex(vocabulary._LLAMA3), "isolated"), ByteLevel(False, use_regex=False)],
    "qwen2": [Split(Regex(vocabulary._QWEN2), "isolated"), ByteLevel(False, use_regex=False)],
    "tekken": [Split(Regex(vocabulary._TEKKEN), "isolated"), ByteLevel(False, use_regex=False)],
}  # fmt: skip


@pytest.mark.parametrize("name", most_are_slow(RULES, {"smollm"}))
def test_every_way_to_cut_words(tmp_path, name):
    assert only(save(tmp_path / "m", tokenizer=byte_level(steps=RULES[name])), tmp_path).passed


@pytest.mark.parametrize(
    ("prefix", "bos"),
    [
        (True, True),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((True, False), (False, True), (False, False))),
    ],
)
def test_sentence_pieces(tmp_path, prefix, bos):
    assert only(save(tmp_path / "m", tokenizer=sentence_piece(prefix=prefix, bos=bos)), tmp_path).passed


def test_a_wrong_name_of_the_rules_is_caught(tmp_path, monkeypatch):
    folder = save(tmp_path / "m", tokenizer=byte_level(steps=RULES["llama-bpe"]))
    monkeypatch.setattr(vocabulary, "_splitting", lambda rules: "smollm")
    with pytest.raises(RunFailed, match="cut differently"):
        only(folder, tmp_path)


@pytest.mark.slow
def test_a_template_that_the_file_lost_is_caught(tmp_path, monkeypatch):
    folder = save(tmp_path / "m")
    monkeypatch.setattr(
        "gguf.GGUFWriter.add_chat_template",
        lambda self, value: self.add_string("tokenizer.chat_template", "{{ messages[0]['content'] }}"),
    )
    with pytest.raises(RunFailed, match="renders differently"):
        only(folder, tmp_path)


def test_rules_without_a_name_are_refused(tmp_path):
    steps = [Split(Regex(r"\d+"), "isolated"), ByteLevel(False, use_regex=False)]
    with pytest.raises(RunFailed) as failure:
        only(save(tmp_path / "m", tokenizer=byte_level(steps=steps)), tmp_path)
    assert failure.value.problems[0].code == "X615"


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ("gemma2", {"hidden_activation": "gelu"}, "activation is `gelu`"),
        ("gemma2", {"attn_logit_softcapping": None}, "`attn_logit_softcapping` is None"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50"),
        ("llama", {"hidden_act": "gelu"}, "activation is `gelu`"),
    ],
)
def test_models_that_would_run_differently_are_refused(tmp_path, family, settings, words):
    folder = save(tmp_path / "m", family, **settings)
    with pytest.raises(RunFailed, match=words):
        only(folder, tmp_path)


def test_what_is_wrong_with_the_call(tmp_path):
    with pytest.raises(RecipeError, match="q7_0"):
        export_gguf(save(tmp_path / "m"), tmp_path / "out", ["q7_0"], name="x")
    with pytest.raises(RecipeError, match="no merged model"):
        export_gguf(tmp_path, tmp_path / "out", ["f16"], name="x")
    with pytest.raises(RecipeError) as failure:
        export_gguf(tmp_path, tmp_path / "out", ["q7_0", "f16", "q9"], name="a/b")
    assert [problem.code for problem in failure.value.problems] == ["X611", "X611", "X611", "X610"]
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"lacks model\.safetensors"):
        export_gguf(tmp_path / "m", tmp_path / "out", ["f16"], name="x")
    assert not (tmp_path / "out").exists()


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="package gguf"):
        export_gguf(save(tmp_path / "m"), tmp_path / "out", ["f16"], name="x")
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_float16(tmp_path):
    folder = save(tmp_path / "m")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed) as failure:
        only(folder, tmp_path, "f16")
    assert failure.value.problems[0].code == "X617"


def test_k_quants_go_through_the_users_program(tmp_path, monkeypatch):
    folder = save(tmp_path / "m")
    monkeypatch.delenv(QUANTIZER, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="llama-quantize"):
        export_gguf(folder, tmp_path / "out", ["q4_k_m"], name="x")
    program = tmp_path / "llama-quantize"
    program.write_text('#!/bin/sh\necho "$3" > "${0%/*}/asked"\n/bin/cp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv(QUANTIZER, str(program))
    (report,) = export_gguf(folder, tmp_path / "out", ["q4_k_m"], name="x")
    assert (tmp_path / "asked").read_text().strip() == "Q4_K_M" and report.passed
    assert 0 < report.weight_error < 1e-3  # measured in the file, which is f16 here
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["x-q4_k_m.gguf"]
    program.write_text("#!/bin/sh\necho no such type >&2\nexit 3\n")
    with pytest.raises(RunFailed, match="no such type"):
        export_gguf(folder, tmp_path / "out", ["q4_k_m"], name="x")


def test_the_modelfile_of_chatml(tmp_path):
    only(save(tmp_path / "m"), tmp_path, ollama=True)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./tiny-f32.gguf\nTEMPLATE") and 'PARAMETER stop "<|im_end|>"' in text


@pytest.mark.slow
def test_the_modelfile_of_another_template_has_none(tmp_path):
    only(save(tmp_path / "m", tokenizer=sentence_piece()), tmp_path, ollama=True)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "TEMPLATE" not in text and 'PARAMETER stop "</s>"' in text


@pytest.mark.slow
def test_without_llama_cpp_transformers_reads_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "is_available", lambda: False)
    report = only(save(tmp_path / "m"), tmp_path, "q8_0")
    assert report.passed and "weights only" in report.reader and report.gap < 1e-3
