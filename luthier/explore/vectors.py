"""Texts -> vectors of length 1 whose cosine says how alike they are.

tfidf (default): words weighted by TF-IDF (sublinear term frequency), then a randomised truncated SVD (latent semantic
  analysis; Deerwester et al., 1990), the mean taken off. Nothing is downloaded, and 100,000 rows take seconds.
minilm, or a folder: a sentence-embedding model (`luthier/curate/dedup/embed.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.explore.needs import need
from luthier.runtime.errors import DataError

__all__ = ["Vectors", "count_words", "embed_with", "words"]

DIMENSIONS = 64
_POWER_ITERATIONS = 4
_MOST_WORDS = 50_000
_RARE = 2
_FEW_ROWS = 200

_WORD = re.compile(r"[^\W\d_][\w']*\w|[^\W\d_]")
# Scripts written without spaces: kana, Han, Hangul syllables are left as words, Thai, Lao, Khmer, Myanmar.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One vector a row."""

    values: Any
    """[n, d] float32; length 1, or 0 for a row without any known word."""
    counts: Any
    """[n, w] sparse counts of words."""
    vocabulary: list[str]
    """The word of each column of `counts`."""
    how: str
    """In one sentence, for the page."""


def words(text: str) -> list[str]:
    """Words in lower case, without numbers; of scripts without spaces every two neighbouring characters."""
    found = _WORD.findall(text.lower())
    if text.isascii():
        return found
    pieces: list[str] = []
    for word in found:
        runs = _UNSPACED.findall(word)
        if runs:
            pieces += [run[place : place + 2] for run in runs for place in range(max(1, len(run) - 1))]
        else:
            pieces.append(word)
    return pieces


def count_words(texts: Sequence[str]) -> tuple[Any, list[str]]:
    """Sparse counts [n, w] of the most frequent words, and the words.

    Raises:
        DataError: no text has a word.
        EnvironmentProblem: scikit-learn is missing.
    """
    text = need("sklearn.feature_extraction.text", "the map")
    rare = _RARE if len(texts) >= _FEW_ROWS else 1
    counter = text.CountVectorizer(analyzer=words, min_df=rare, max_features=_MOST_WORDS, dtype=np.float32)
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:
        message = f"the {len(texts):,} rows have no words to compare" + (" that stand in two rows" if rare > 1 else "")
        raise DataError(code="D281", message=message, hint="an embedding model may: --embedder minilm") from error
    return counts, [str(word) for word in counter.get_feature_names_out()]


def embed_with(
    texts: Sequence[str], embedder: str, *, seed: int, advance: Callable[[int], None] = lambda count: None
) -> Vectors:
    """Vectors of texts.

    Args:
        texts: One a row.
        embedder: `tfidf`, `minilm`, or the folder of an embedding model.
        seed: Of the randomised SVD.
        advance: Called with the rows done, by an embedding model.

    Raises:
        DataError: no text has a word.
        EnvironmentProblem: a library or model is missing.
    """
    counts, vocabulary = count_words(texts)
    if embedder != "tfidf":
        from luthier.curate.dedup.embed import EMBEDDING_MODEL, embed

        name = EMBEDDING_MODEL if embedder == "minilm" else embedder
        values = embed(texts, name, advance)
        how = f"embeddings of {name} ({values.shape[1]} dimensions)"
        return Vectors(values=values, counts=counts, vocabulary=vocabulary, how=how)
    values, kept = _latent(counts, seed)
    how = (
        f"TF-IDF of {len(vocabulary):,} words, randomised SVD to {values.shape[1]} dimensions "
        f"({kept:.0%} of the variance), mean taken off"
    )
    return Vectors(values=values, counts=counts, vocabulary=vocabulary, how=how)


def _latent(counts: Any, seed: int) -> tuple[Any, float]:
    """[n, d] of length 1 (0 for rows without words), and the share of the variance that the SVD keeps."""
    text = need("sklearn.feature_extraction.text", "the map")
    decomposition = need("sklearn.decomposition", "the map")
    weighted = text.TfidfTransformer(sublinear_tf=True).fit_transform(counts).astype(np.float32)
    most = min(weighted.shape) - 1
    if most < 2:
        values, kept = weighted.toarray(), 1.0
    else:
        svd = decomposition.TruncatedSVD(
            min(DIMENSIONS, most), algorithm="randomized", n_iter=_POWER_ITERATIONS, random_state=seed
        )
        values = svd.fit_transform(weighted)
        kept = float(svd.explained_variance_ratio_.sum())
    spoken = np.asarray(weighted.sum(axis=1)).ravel() > 0
    values = np.asarray(values, np.float32)
    values = values - values[spoken].mean(axis=0, keepdims=True)
    values[~spoken] = 0.0
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 1e-7, lengths, 1.0)).astype(np.float32), kept
