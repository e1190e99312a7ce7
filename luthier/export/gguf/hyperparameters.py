"""config.json -> the keys that llama.cpp runs a model by."""

from __future__ import annotations

from typing import Any

from luthier.export.gguf.families import Family
from luthier.runtime.errors import RunFailed

__all__ = ["context_of", "write_hyperparameters"]


def context_of(config: Any, family: Family) -> tuple[int, str | None]:
    """Tokens the file says it can hold, and why these are fewer than the model's if they are."""
    length = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if family.pattern is None and window and int(window) < length and getattr(config, "use_sliding_window", True):
        return int(
            window
        ), f"llama.cpp has no sliding window for this family: the context is the window, {int(window):,} tokens"
    return length, None


def write_hyperparameters(writer: Any, config: Any, family: Family) -> list[str]:
    """Write them; says what a user should know.

    Raises:
        RunFailed: a rotary scaling that cannot be said in a file.
    """
    context, note = context_of(config, family)
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    writer.add_context_length(context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))
    if family.arch == "llama":
        writer.add_rope_dimension_count(width)
    if family.pattern is not None:
        writer.add_sliding_window(int(config.sliding_window))
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if family.pattern is not None and getattr(config, key, None):
            add(float(getattr(config, key)))
    _write_rope(writer, config)
    return [note] if note else []


def _write_rope(writer: Any, config: Any) -> None:
    from gguf import RopeScalingType

    parameters = config.rope_parameters
    if "full_attention" in parameters:  # Gemma 3: layers with a window have frequencies of their own
        local = parameters["sliding_attention"]
        if local.get("rope_type", "default") != "default" or float(local["rope_theta"]) != 10_000.0:
            raise RunFailed(
                code="X613", message=f"llama.cpp would run this differently: rope of windowed layers {dict(local)}",
                hint="serve the merged folder",
            )  # fmt: skip
        parameters = parameters["full_attention"]
    writer.add_rope_freq_base(float(parameters["rope_theta"]))
    kind = parameters.get("rope_type", "default")
    if kind in {"default", "llama3"}:  # Llama 3's factors are a tensor of the file
        return
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
    elif kind == "yarn" and set(parameters) <= {
        "rope_type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
    }:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(parameters["original_max_position_embeddings"]))
    else:
        raise RunFailed(
            code="X613", message=f"rotary scaling {dict(parameters)} cannot be said in a GGUF file here",
            hint="can be: default, llama3, linear, yarn without further keys; serve the merged folder",
        )  # fmt: skip
