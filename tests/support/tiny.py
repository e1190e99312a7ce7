"""Fixture T: a 2-layer Llama and a small byte-level BPE, made from fixed seeds. No file, no network."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour"
).split()


@cache
def _trained_tokenizer_json(vocab_size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chooser = random.Random(0)
    lines = [" ".join(chooser.choices(WORDS, k=12)) + " user assistant system 0123456789" for _ in range(200)]
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, chat_template: str | None = CHATML, vocab_size: int = 600, pad_is_eos: bool = True):
    """About 600 tokens; eos and (by default) pad are `<|im_end|>`, as in SmolLM2."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer_json(vocab_size)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad_is_eos else "<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(*, seed: int = 0, tied: bool = False, vocab_size: int = 600, layers: int = 2, **overrides):
    """2-layer Llama, hidden 64, 4 heads, 2 key/value heads, fp32, random weights from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` keeps stack traces, which takes milliseconds
        return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).float()


def save_tiny(folder: Path, **kwargs) -> Path:
    """Write model and tokenizer as a hub model folder; returns it."""
    model = tiny_model(**kwargs)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def conversations(n: int = 64, *, seed: int = 0, turns: int = 1) -> list[dict]:
    """`n` rows of OpenAI `messages` with 2 to 25 words a message: a wide spread of lengths."""
    chooser = random.Random(seed)

    def words() -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(2, 25)))

    rows = []
    for _ in range(n):
        messages = []
        for _ in range(turns):
            messages += [{"role": "user", "content": words()}, {"role": "assistant", "content": words()}]
        rows.append({"messages": messages})
    return rows
