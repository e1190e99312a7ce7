"""The tokenizer as llama.cpp needs it: tokens, kinds, merges or scores, ids with a meaning, chat template.

Two kinds of tokenizers can be said in a file. Byte-level BPE (`gpt2`): llama.cpp has the splitting of text into words
built in, under names; the name is found from the tokenizer's own rules, and unknown rules are refused, because a
wrong name loads, answers, and cuts numbers or words otherwise than in training. SentencePiece BPE (`llama`): pieces
have scores, and the best-scored pair is joined first; the order of the merges gives them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from luthier.model.stops import end_of_turn_id
from luthier.runtime.errors import RunFailed

__all__ = ["write_vocabulary"]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_REGEX = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2", _TEKKEN: "tekken"}
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, slots=True)
class _Tokens:
    texts: list[str]
    kinds: list[int]


def write_vocabulary(writer: Any, tokenizer: Any, *, rows: int) -> None:
    """Write tokens, template and ids.

    Args:
        writer: A `gguf.GGUFWriter`.
        tokenizer: Fast tokenizer of the merged model.
        rows: Of the embedding matrix; rows without a token are written as unused.

    Raises:
        RunFailed: a tokenizer whose rules llama.cpp does not have.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    if rules["model"].get("type") != "BPE":
        _refuse(f"its model is {rules['model'].get('type')}")
    tokens = _tokens(tokenizer, rules, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules["model"]["merges"]]
    if _is_byte_level(rules):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting(rules))
        writer.add_token_list(tokens.texts)
        writer.add_token_types(tokens.kinds)
        writer.add_token_merges(merges)
        writer.add_add_space_prefix(False)
    elif rules["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens.texts)
        writer.add_token_scores(_scores(tokens.texts, merges))
        writer.add_token_types(tokens.kinds)
        writer.add_add_space_prefix(_adds_space(rules))
    else:
        _refuse("it is neither byte-level nor has it bytes to fall back to")
    _write_ids(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_ids(writer: Any, tokenizer: Any) -> None:
    for add, value in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if value is not None:
            add(int(value))
    turn = end_of_turn_id(tokenizer)
    if turn is not None and turn != tokenizer.eos_token_id:
        writer.add_eot_token_id(turn)
    plain = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(plain) and plain[0] == tokenizer.bos_token_id)


def _tokens(tokenizer: Any, rules: dict[str, Any], rows: int) -> _Tokens:
    from gguf import TokenType

    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    special = {token["id"]: bool(token["special"]) for token in rules["added_tokens"]}
    highest = max(by_id)
    if highest >= rows:
        raise RunFailed(
            code="X616", message=f"the tokenizer has tokens up to {highest}, the model {rows} rows for them",
            hint="add the tokens with `model.new_tokens`, so that the model gets their rows",
        )  # fmt: skip
    texts, kinds = [], []
    for index in range(rows):
        text = by_id.get(index)
        if text is None:
            texts.append(f"[PAD{index}]")
            kinds.append(int(TokenType.UNUSED))
            continue
        texts.append(text)
        kinds.append(int(_kind(index, text, special, tokenizer)))
    return _Tokens(texts, kinds)


def _kind(index: int, text: str, special: dict[int, bool], tokenizer: Any) -> Any:
    from gguf import TokenType

    if index == tokenizer.unk_token_id and index not in {tokenizer.bos_token_id, tokenizer.eos_token_id}:
        # A byte-level tokenizer has no unknown text; what it calls so is one more control token.
        return TokenType.CONTROL if special.get(index) and not text.startswith("<unk") else TokenType.UNKNOWN
    if index in special:
        return TokenType.CONTROL if special[index] else TokenType.USER_DEFINED
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _is_byte_level(rules: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(rules["pre_tokenizer"]))


def _steps(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    if value is None:
        return []
    for key in ("pretokenizers", "normalizers", "decoders"):
        if key in value:
            return [step for inner in value[key] for step in _steps(inner)]
    return [value]


def _splitting(rules: dict[str, Any]) -> str:
    """llama.cpp's name of the rules by which text is cut into words."""
    name = _name_of(_steps(rules["pre_tokenizer"]), _steps(rules["normalizer"]))
    if name is None:
        _refuse(f"it cuts text by rules that have no name in llama.cpp: {json.dumps(rules['pre_tokenizer'])[:300]}")
    return name


def _name_of(steps: list[dict[str, Any]], normalizers: list[dict[str, Any]]) -> str | None:
    if any(step["type"] != "NFC" for step in normalizers) or steps[-1].get("add_prefix_space"):
        return None
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if names == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if names == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
        return _BY_REGEX.get(steps[0]["pattern"].get("Regex", ""))
    return None


def _adds_space(rules: dict[str, Any]) -> bool:
    """Whether a space is put in front of a text, from SentencePiece's normaliser or its successor."""
    steps = [*_steps(rules["normalizer"]), *_steps(rules["pre_tokenizer"])]
    for step in steps:
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            return True
        if step["type"] == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
        if step["type"] not in {"Replace", "Split", "Prepend"}:
            _refuse(f"it has the rule {json.dumps(step)[:200]}")
    return False


def _scores(texts: list[str], merges: list[str]) -> list[float]:
    """Minus the place of the merge that makes a token first: the earlier it is joined, the better its score."""
    place: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        place.setdefault("".join(pair.split(" ")), rank)
    return [-float(place[text]) if text in place else -float(len(merges)) for text in texts]


def _refuse(why: str) -> NoReturn:
    raise RunFailed(
        code="X615", message=f"llama.cpp cannot read this tokenizer as it is: {why}",
        hint="known: GPT-2, SmolLM, Llama 3, Qwen 2 and 3, Mistral's Tekken, SentencePiece BPE",
    )  # fmt: skip
