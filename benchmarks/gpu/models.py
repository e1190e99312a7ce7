"""Models of the true shapes with random weights, made on the device: no file, no network, never zeros.

Weights are those of `../shared/gpu/peers/bench_peers.py` (normal, 0.02, generator seed 0 on the device; norms 1,
biases 0), so ours and the peers' start equal on one box. `perturbed` moves norms and biases too: parity needs it,
since a norm of ones hides a kernel that forgets to multiply by it.
"""

from __future__ import annotations

import copy
import gc
from typing import Any

_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama8b": ("llama", {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "rope_parameters": _LLAMA3,
    }),
    "llama1b": ("llama", {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_parameters": {**_LLAMA3, "factor": 32.0},
    }),
    "qwen05b": ("qwen2", {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "tie_word_embeddings": True, "rope_parameters": _rope(1000000.0),
    }),
    "smol135m": ("llama", {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_parameters": _rope(100000.0),
    }),
    "tiny": ("llama", {
        "vocab_size": 49152, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, "rope_parameters": _rope(10000.0),
    }),
}  # fmt: skip
"""As in bench_peers.MODELS, by the same names."""


def make_config(kind: str, settings: dict[str, Any]) -> Any:
    """A transformers config; `settings` are copied, because configs keep what they are given."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind, **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False},
        **copy.deepcopy(settings),
    )  # fmt: skip


def shape(name: str, *, layers: int | None = None) -> tuple[str, dict[str, Any]]:
    """(kind, settings) of a named shape, with fewer layers if asked."""
    kind, settings = SHAPES[name]
    return kind, {**settings, **({"num_hidden_layers": layers} if layers else {})}


def random_model(
    kind: str, settings: dict[str, Any], *, device: str, dtype: str = "bfloat16", nf4: bool = False,
    std: float = 0.02, perturbed: bool = False, seed: int = 0,
) -> Any:  # fmt: skip
    """A causal model through the real `from_pretrained` (quantiser included), fed with random tensors on the device.

    Args:
        device: `cuda` or `cpu`.
        dtype: `bfloat16`, `float32` or `float64`: of every weight; with `nf4` of the products.
        nf4: linear layers in bitsandbytes NF4, as `quantization: nf4` makes them.
        std: of the matrices.
        perturbed: norms and biases get noise too.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from luthier.model.quantize import nf4_config

    disable_progress_bar()
    config = make_config(kind, settings)
    config.dtype = dtype
    torch_dtype = getattr(torch, dtype)
    place = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    cls = AutoModelForCausalLM._model_mapping[type(config)]
    state = _random_state(cls, config, place, torch_dtype, std=std, perturbed=perturbed, seed=seed)
    extra = {"quantization_config": nf4_config(torch_dtype)} if nf4 else {}
    model = cls.from_pretrained(
        None, config=config, state_dict=state, dtype=torch_dtype, attn_implementation="sdpa",
        device_map={"": place.index if device == "cuda" else "cpu"}, **extra,
    )  # fmt: skip
    del state
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return model


def _random_state(
    cls: Any, config: Any, device: Any, dtype: Any, *, std: float, perturbed: bool, seed: int
) -> dict[str, Any]:
    import torch

    with torch.device("meta"):
        skeleton = cls(config)
    generator = torch.Generator(device=device).manual_seed(seed)
    tied = bool(config.tie_word_embeddings)
    state: dict[str, Any] = {}
    for name, value in skeleton.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        is_norm, is_bias = "norm" in name, name.endswith(".bias")
        middle = float(is_norm and not _norm_is_plus_one(config))
        if (is_norm or is_bias) and not perturbed:
            state[name] = torch.full(value.shape, middle, dtype=dtype, device=device)
            continue
        noise = torch.empty(value.shape, dtype=dtype, device=device)
        noise.normal_(0, 0.1 if is_norm or is_bias else std, generator=generator)
        state[name] = noise + 1 if middle else noise
    return state


def _norm_is_plus_one(config: Any) -> bool:
    """Gemma multiplies by 1 + weight, so its weights lie around 0."""
    return str(config.model_type).startswith("gemma")
