"""Small models of every family with sharp answers, and tokenizers of every kind that a file can hold."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from tests.support.tiny import CHATML, WORDS, tiny_tokenizer

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "vocab_size": 608,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"head_dim": 16}),
    "qwen3": ("Qwen3Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 6}),
}


def model_of(family: str, *, seed: int = 0, **more):
    """A model whose weights are large enough that every mistake shows in its answers."""
    import transformers

    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**SMALL, **settings, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 1.6 / parameter.shape[-1] ** 0.5)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            model.get_input_embeddings().weight.normal_(0.0, 0.4)
    return model


def save(folder: Path, family: str = "llama", *, tokenizer=None, dtype=torch.float32, **more) -> Path:
    """As a merged folder."""
    model_of(family, **more).to(dtype).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def byte_level(*, steps=None, normalizer=None, template: str | None = CHATML):
    """A byte-level tokenizer that cuts text into words by other rules."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if steps else pre_tokenizers.ByteLevel(False)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_lines(), trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))  # fmt: skip
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip
    made.chat_template = template
    return made


def sentence_piece(*, prefix: bool = True, bos: bool = True):
    """A BPE of pieces with bytes to fall back to, as Llama 2, Mistral 7B and Gemma have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    space = "\N{LOWER ONE EIGHTH BLOCK}"
    special = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    steps = [normalizers.Prepend(space)] if prefix else []
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", space)])
    tokenizer.train_from_iterator(
        _lines(), trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    rules = __import__("json").loads(tokenizer.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(__import__("json").dumps(rules))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    )
    return made


def _lines() -> list[str]:
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=12)) + " user assistant 0123456789, it's!" for _ in range(200)]
