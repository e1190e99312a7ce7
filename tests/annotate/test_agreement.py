"""Agreement and its formulas, against known values and other implementations."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.annotate.agreement import binomial_p, cohen_kappa, krippendorff_alpha
from luthier.annotate.items import read_items
from luthier.annotate.status import status
from tests.annotate.support import chats, labels_of, pairs, write


def test_kappa_of_a_table_worked_by_hand() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_without_meaning_is_none() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa("aaa", "aaa") is None
    assert cohen_kappa("aab", "aab") == 1


@pytest.mark.filterwarnings("ignore")
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30))
def test_kappa_is_that_of_scikit_learn(rows) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = zip(*rows, strict=True)
    ours = cohen_kappa(first, second)
    if ours is not None:
        assert ours == pytest.approx(metrics.cohen_kappa_score(first, second))


def test_alpha_of_krippendorffs_own_example() -> None:
    # Four observers, twelve units, values missing: "Computing Krippendorff's Alpha-Reliability", section C: 0.743.
    table = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [
        [value for value in column if value != "."] for column in zip(*(row.split() for row in table), strict=True)
    ]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a"], []]) is None and krippendorff_alpha([["a", "a"]]) is None


def test_alpha_of_chance_is_near_nought() -> None:
    chance = random.Random(0)
    assert abs(krippendorff_alpha([chance.choices("ab", k=3) for _ in range(4000)]) or 1) < 0.03


@given(st.integers(1, 200), st.data())
def test_the_binomial_test_is_that_of_scipy(trials: int, data) -> None:
    stats = pytest.importorskip("scipy.stats")
    hits = data.draw(st.integers(0, trials))
    assert binomial_p(hits, trials) == pytest.approx(stats.binomtest(hits, trials).pvalue)


def test_status_counts_what_was_said(tmp_path: Path) -> None:
    items = read_items([str(write(tmp_path / "a.jsonl", chats(6)))])
    edit = {"edits": (), "seconds": 4.0}
    labels = labels_of(
        items, ("ann", 0, "accept", {"seconds": 2.0}), ("ann", 1, "reject", {"seconds": 3.0}), ("ann", 2, "edit", edit),
        ("bob", 0, "accept", {}), ("bob", 1, "accept", {}), ("bob", 3, "skip", {}), ("cy", 0, "accept", {}),
    )  # fmt: skip
    found = status(items, labels)
    assert (found["decided"], found["remaining"], found["distinct"]) == (3, 3, 6)
    ann = found["annotators"]["ann"]
    assert ann["outcomes"] == {"accept": 1, "reject": 1, "edit": 1}
    assert (ann["median_seconds"], ann["rows_per_hour"], ann["remaining"], ann["remaining_seconds"]) == (
        3.0,
        1200.0,
        3,
        9,
    )
    assert found["annotators"]["bob"]["skipped"] == 1 and found["annotators"]["bob"]["median_seconds"] is None
    assert [(one["annotators"], one["rows"], one["equal"]) for one in found["agreement"]] == [
        (["ann", "bob"], 2, 1), (["ann", "cy"], 1, 1), (["bob", "cy"], 1, 1),
    ]  # fmt: skip
    assert [(one["line"], one["said"]) for one in found["conflicts"]] == [(2, {"ann": "reject", "bob": "accept"})]


def test_a_liking_for_the_left_side_shows(tmp_path: Path) -> None:
    items = read_items([str(write(tmp_path / "a.jsonl", pairs(40)))])
    sides = ["first", "second"] * 20
    always_left = labels_of(items, *(("ann", n, "choose", {"choice": s, "left": s}) for n, s in enumerate(sides)))
    fair = labels_of(items, *(("ann", n, "choose", {"choice": "first", "left": s}) for n, s in enumerate(sides)))
    assert status(items, always_left)["annotators"]["ann"]["left"] == {"chosen": 40, "of": 40, "p": 0.0}
    assert status(items, fair)["annotators"]["ann"]["left"] == {"chosen": 20, "of": 40, "p": 1.0}
