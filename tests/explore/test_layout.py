"""Vectors, neighbours and the picture: exact where they are exact, measured where not, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from luthier.explore.layout import principal_plane, project, quality
from luthier.explore.neighbours import far_out, nearest
from luthier.explore.turns import text_to_embed, turns_of
from luthier.explore.vectors import embed_with, words
from luthier.runtime.errors import DataError, EnvironmentProblem
from tests.explore.support import planted_set


@pytest.fixture(scope="module")
def texts():
    explored, _ = planted_set(400)
    return [text_to_embed(turns_of(item.row), "conversation") for item in explored.items]


@pytest.fixture(scope="module")
def values(texts):
    return embed_with(texts, "tfidf", seed=0).values


def test_words_of_any_script():
    assert words("The 2 Cats' don't run x") == ["the", "cats", "don't", "run", "x"]
    assert words("Größe naïve") == ["größe", "naïve"]
    assert words("今天天气 ok") == ["今天", "天天", "天气", "ok"]
    assert words("12 + 3 = 15") == []


def test_vectors_have_length_one_and_are_the_same_for_a_seed(texts, values):
    assert values.dtype == np.float32 and np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    assert np.array_equal(values, embed_with(texts, "tfidf", seed=0).values)


def test_a_row_without_words_has_no_direction_and_texts_without_any_are_refused(texts):
    found = embed_with([*texts[:300], "1 + 1"], "tfidf", seed=0).values
    assert np.linalg.norm(found[-1]) == 0 and np.linalg.norm(found[0]) > 0.99
    with pytest.raises(DataError, match="no words to compare"):
        embed_with(["1", "2", "3"], "tfidf", seed=0)
    with pytest.raises(EnvironmentProblem, match="no embedding model in"):
        embed_with(texts[:20], "/no/such/folder", seed=0)


def test_few_rows_give_vectors_too():
    assert embed_with(["a cat", "a dog", "the cat"], "tfidf", seed=0).values.shape[0] == 3


@pytest.mark.parametrize("same", [True, False])
def test_neighbours_are_those_of_a_plain_search(values, same):
    queries = values if same else values[:50]
    found, distance = nearest(queries, values, 5, same=same)
    cosine = queries @ values.T
    if same:
        np.fill_diagonal(cosine, -2)
    true = np.sort(1 - cosine, axis=1)[:, :5]
    assert np.allclose(distance, np.clip(true, 0, 2), atol=1e-5)
    assert np.allclose(np.take_along_axis(1 - cosine, found, axis=1), true, atol=1e-5)
    if same:
        assert (found != np.arange(len(values))[:, None]).all()


def test_copies_are_each_others_neighbours_and_never_their_own():
    one = np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1))
    found, distance = nearest(one, one, 4, same=True)
    assert (found != np.arange(20)[:, None]).all() and np.allclose(distance, 0)


def test_quality_is_sklearns_trustworthiness_when_all_rows_are_asked(values):
    from sklearn.manifold import trustworthiness

    plane = principal_plane(values)
    measured = quality(values, plane, seed=0, sample=len(values))
    assert measured["rows"] == len(values) and measured["k"] == 10
    assert measured["trustworthiness"] == pytest.approx(trustworthiness(values, plane, n_neighbors=10), abs=1e-3)
    flat = values[:, :2]
    assert quality(flat / np.linalg.norm(flat, axis=1, keepdims=True), flat, seed=0)["kept"] < 1
    circle = np.stack([np.cos(np.linspace(0, 3, 90)), np.sin(np.linspace(0, 3, 90))], axis=1).astype(np.float32)
    perfect = quality(circle, circle, seed=0)
    assert perfect["trustworthiness"] == pytest.approx(1.0) and perfect["kept"] == pytest.approx(1.0)


def test_the_picture_keeps_neighbours_better_than_two_components_and_is_the_same_for_a_seed(values):
    near, _ = nearest(values, values, 15, same=True)
    drawn = project(values, near, seed=3)
    assert drawn.shape == (len(values), 2) and np.isfinite(drawn).all()
    assert np.array_equal(drawn, project(values, near, seed=3))
    assert not np.array_equal(drawn, project(values, near, seed=4))
    ours, plane = quality(values, drawn, seed=0), quality(values, principal_plane(values), seed=0)
    assert ours["trustworthiness"] > 0.93 > plane["trustworthiness"] and ours["kept"] > plane["kept"] + 0.1


def test_umap_is_optional(values):
    import importlib.util

    if importlib.util.find_spec("umap"):
        pytest.skip("umap-learn is installed")
    with pytest.raises(EnvironmentProblem, match="umap-learn"):
        project(values, None, seed=0, method="umap")


def test_the_fence_is_tukeys():
    assert far_out(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(4 + 1.5 * 2)
