"""Planted topics are found, named by their own words, and counted by the stated criterion; planted gaps are found."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from luthier.explore.chart import draw_chart, sampled
from luthier.explore.clusters import find_clusters
from luthier.explore.coverage import coverage
from luthier.explore.rows import Explored
from luthier.explore.vectors import embed_with
from luthier.runtime.errors import DataError
from tests.explore.planted import TOPICS, planted
from tests.explore.support import asked, item, planted_set


@pytest.fixture(scope="module")
def chart():
    explored, topics = planted_set(600, 100, without=("music",))
    return draw_chart(explored, seed=0, languages=False), topics


def test_planted_topics_are_recovered(chart):
    from sklearn.metrics import adjusted_rand_score

    drawn, topics = chart
    assert adjusted_rand_score(topics, drawn.clusters.of) > 0.9
    assert len(drawn.clusters.labels) == 8, drawn.clusters.silhouette


def test_the_number_of_clusters_is_the_one_with_the_best_silhouette(chart):
    scores = chart[0].clusters.silhouette
    assert len(chart[0].clusters.labels) == max(scores, key=scores.get) == 8
    assert set(scores) == {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40}


def test_labels_are_words_of_the_topic(chart):
    drawn, topics = chart
    for k, terms in enumerate(drawn.clusters.terms):
        own = [topic for topic, cluster in zip(topics, drawn.clusters.of, strict=True) if cluster == k]
        topic = max(set(own), key=own.count)
        assert sum(term in TOPICS[topic].split() for term in terms[:5]) >= 4, (topic, terms)


def test_clusters_are_ordered_by_size_and_the_same_for_a_seed():
    rows = [f"{question} {answer}" for _, question, answer in planted(300, topics=4)]
    vectors = embed_with(rows, "tfidf", seed=0)
    found = find_clusters(vectors.values, vectors.counts, vectors.vocabulary, seed=1)
    sizes = np.bincount(found.of)
    assert (np.diff(sizes) <= 0).all() and len(sizes) == len(found.labels) == len(found.terms)
    again = find_clusters(vectors.values, vectors.counts, vectors.vocabulary, seed=1)
    assert np.array_equal(found.of, again.of) and found.labels == again.labels
    three = find_clusters(vectors.values, vectors.counts, vectors.vocabulary, seed=1, clusters=3)
    assert len(three.labels) == 3


def test_a_planted_gap_is_found_and_nothing_else(chart):
    drawn, topics = chart
    worst = drawn.regions[0]
    tests = drawn.covered.tests
    music = np.array([topics[index] == "music" for index in tests])
    assert drawn.covered.uncovered[music].mean() > 0.9, "test rows of a topic that training lacks"
    assert drawn.covered.uncovered[~music].mean() < 0.15
    assert any(word in TOPICS["music"].split() for word in drawn.clusters.terms[worst["cluster"]])
    assert worst["train"] == 0 and worst["share"] > 0.9
    for index, near in zip(tests, drawn.covered.nearest, strict=True):
        assert drawn.explored.items[index].split == "test" and drawn.explored.items[near].split == "train"


def test_rows_of_one_kind_are_covered():
    explored, _ = planted_set(400, 200)
    drawn = draw_chart(explored, languages=False)
    assert drawn.covered.uncovered.mean() < 0.1


def test_distances_are_those_of_a_plain_search():
    draws = np.random.default_rng(0)
    values = draws.normal(size=(60, 5)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    train, tests = list(range(0, 60, 2)), list(range(1, 60, 2))
    found = coverage(values, train, tests, seed=0)
    apart = 1 - values[tests] @ values[train].T
    assert np.allclose(found.distance, apart.min(axis=1), atol=1e-5)
    assert [train[place] for place in apart.argmin(axis=1)] == found.nearest.tolist()
    own = 1 - values[train] @ values[train].T + 9 * np.eye(30)
    assert found.threshold == pytest.approx(np.percentile(own.min(axis=1), 95), abs=1e-5)
    assert coverage(values, train, [], seed=0) is None and coverage(values, [0], [1], seed=0) is None


def test_an_odd_row_is_an_outlier():
    explored, _ = planted_set(300)
    odd = item(asked("zxcv qwer tyui vbnm", "zxcv hjkl vbnm qwer", 301))
    drawn = draw_chart(Explored(title="t", items=[*explored.items, odd, odd]), languages=False)
    assert drawn.outliers().mean() < 0.1
    scores = drawn.outlier
    assert (scores[-2:] > np.percentile(scores, 90)).all()


def test_too_few_rows_and_a_draw_of_many():
    explored, _ = planted_set(9)
    with pytest.raises(DataError, match="needs 10 rows or more; there are 9"):
        draw_chart(explored)
    many, _ = planted_set(50)
    some = sampled(many, 20, seed=0)
    assert len(some.items) == 20 and some.items == sampled(many, 20, seed=0).items and "20 of 50" in some.title
    assert sampled(many, 50, seed=0) is many
