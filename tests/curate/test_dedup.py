"""What a result promises, whatever the rows: nothing is lost, nothing is dropped without a kept row that is like it.

Planted bugs stand at the end: each makes the checks of `support.wrongs` or a test here fail.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.curate.dedup import fuzzy, run
from luthier.curate.dedup.fuzzy import Fuzzy
from luthier.curate.dedup.keep import Similar
from luthier.curate.dedup.minhash import FOUND, bands_for, found_share, signatures
from luthier.curate.dedup.run import deduplicate
from luthier.curate.dedup.shingles import jaccard, shingle_hashes, shingles
from luthier.curate.dedup.views import Views
from luthier.data.types import Conversation
from luthier.recipe.schema import DedupSection
from luthier.runtime.console import Bar
from luthier.runtime.errors import EnvironmentProblem
from tests.curate.support import chat, similarity, true_clusters, variants, wrongs
from tests.support.tiny import WORDS

SECTIONS = [
    DedupSection(),
    DedupSection(fuzzy=0.6, numbers="any"),
    DedupSection(fuzzy=0.5, keep="longest"),
    DedupSection(fuzzy=None),
]


def clusters(rows: Sequence[Conversation], section: DedupSection) -> set[frozenset[int]]:
    views = Views(rows, numbers=section.numbers)
    found = Fuzzy(views, range(len(rows)), section.fuzzy or 1.0, Bar("", 1, "")).clusters(Bar("", 1, ""))
    return {frozenset(group) for group in found.groups().values()}


# -- promises


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 60), which=st.sampled_from(range(len(SECTIONS))))
def test_every_promise_holds(seed: int, n: int, which: int) -> None:
    rows = variants(n, seed=seed)
    assert wrongs(rows, SECTIONS[which], deduplicate(rows, SECTIONS[which])) == []


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), shuffle=st.integers(0, 10_000))
def test_clusters_do_not_depend_on_the_order_and_are_those_of_all_pairs(seed: int, shuffle: int) -> None:
    rows = variants(50, seed=seed)
    order = random.Random(shuffle).sample(range(len(rows)), len(rows))
    section = DedupSection(fuzzy=0.7)
    found = clusters(rows, section)
    again = clusters([rows[index] for index in order], section)
    assert {frozenset(order[index] for index in group) for group in again} == found
    assert found == true_clusters(rows, section)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), which=st.sampled_from(range(len(SECTIONS))))
def test_a_second_time_drops_nothing(seed: int, which: int) -> None:
    rows = variants(60, seed=seed)
    first = deduplicate(rows, SECTIONS[which])
    assert deduplicate([rows[index] for index in first.kept], SECTIONS[which]).dropped == []


def test_the_longest_stays_whatever_the_order() -> None:
    rows = variants(60, seed=3)
    section = DedupSection(fuzzy=0.7, keep="longest")

    def kept_lengths(some: list[Conversation]) -> list[int]:
        views = Views(some)
        return sorted(views.length(index) for index in deduplicate(some, section).kept)

    shuffled = random.Random(5).sample(rows, len(rows))
    longest = kept_lengths(rows)
    assert len(longest) < 50 and longest == kept_lengths(shuffled)
    for item in deduplicate(rows, section).dropped:
        views = Views(rows)
        assert views.length(item.of) >= views.length(item.row)


def test_the_score_decides_and_the_first_wins_a_tie() -> None:
    rows = [chat("where does the river go to", "to the sea", line) for line in range(1, 6)]
    scores = dict(zip((row.ref for row in rows), (0.1, 0.9, 0.3, 0.9, -2.0), strict=True))
    assert deduplicate(rows, DedupSection(keep="score", score="s"), scores=scores).kept == [1]
    assert deduplicate(rows, DedupSection()).kept == [0]


def test_a_chain_keeps_what_is_no_duplicate_of_a_kept_row() -> None:
    """A - B and B - C are near, A - C are not: dropping B alone is enough."""
    words = "the ship left the harbour before the storm and came back with its cargo and crew".split()
    a = " ".join(words)
    b = " ".join([*words[:-2], "or", "mast"])
    c = " ".join(["some", "boat", *words[2:-2], "or", "mast"])
    rows = [chat(text, "yes", line) for line, text in enumerate((a, b, c), 1)]
    threshold = min(similarity(rows[0], rows[1]), similarity(rows[1], rows[2]))
    assert similarity(rows[0], rows[2]) < threshold
    section = DedupSection(fuzzy=threshold)
    assert clusters(rows, section) == {frozenset({0, 1, 2})}
    result = deduplicate(rows, section)
    assert result.kept == [0, 2] and result.dropped[0].row == 1


def test_a_row_that_is_dropped_late_names_the_row_that_stays() -> None:
    whole = "the ship left the harbour before the storm and came back with all its cargo"
    rows = [chat(whole + " at last", "yes", 1), chat(whole, "yes", 2), chat(whole.upper(), "yes", 3)]
    exact, near = sorted(deduplicate(rows, DedupSection(fuzzy=0.8)).dropped, key=lambda item: item.stage)
    assert (exact.row, exact.of, exact.kept, exact.similarity) == (2, 1, 0, 1.0)
    assert (near.row, near.of, near.kept) == (1, 0, 0) and 0.8 <= near.similarity < 1
    assert near.to_json(rows) == {
        "file": "a.jsonl", "line": 2, "source": 0, "reason": "duplicate", "stage": "fuzzy",
        "similarity": round(near.similarity, 6), "duplicate_of": "a.jsonl:1", "kept": "a.jsonl:1",
    }  # fmt: skip


def test_the_stages_count_what_they_did() -> None:
    rows = variants(60, seed=1)
    result = deduplicate(rows, DedupSection(fuzzy=0.7))
    exact, near = result.stages["exact"], result.stages["fuzzy"]
    assert exact["rows"] == 60 and near["rows"] == 60 - exact["dropped"] == 60 - result.counts()["exact"]
    assert near["rows"] - near["dropped"] == len(result.kept)
    assert near["pairs_compared"] >= near["dropped"] and near["largest_cluster"] >= 2


# -- parts


def test_hashes_are_of_the_same_shingles_as_the_sets() -> None:
    rows = [("abcdefgh", "xyz"), ("", "abcdef"), ("", ""), ("日本語の文章です", "")]
    hashes, offsets = shingle_hashes(rows)
    assert list(np.diff(offsets)) == [4 + 1, 2, 0, 4]
    own = [set(hashes[start:stop].tolist()) for start, stop in pairwise(offsets)]
    assert [len(group) for group in own] == [sum(len(shingles(part)) for part in row) for row in rows]
    # "abcde" is in part 0 of the first and in part 1 of the second: not the same.
    assert not own[0] & own[1]
    twice, _ = shingle_hashes([("abcdef",), ("abcdex",)])
    assert twice[0] == twice[2] and twice[1] != twice[3]


@settings(max_examples=30)
@given(a=st.text("abc ", max_size=40), b=st.text("abc ", max_size=40))
def test_jaccard_is_that_of_sets(a: str, b: str) -> None:
    one, other = shingles(a), shingles(b)
    both = one | other
    assert jaccard(one, other) == (len(one & other) / len(both) if both else 1.0)


def test_signatures_estimate_the_jaccard_index() -> None:
    rows = variants(80, seed=2)
    views = Views(rows)
    signed = signatures((views.parts(index) for index in range(80)), 80)
    errors = []
    for i in range(80):
        for j in range(i):
            parts = [set(zip((0, 1), map(shingles, views.parts(k)), strict=True)) for k in (i, j)]
            sets = [{(part, piece) for part, group in some for piece in group} for some in parts]
            errors.append((signed[i] == signed[j]).mean() - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.06


def test_signatures_are_the_same_on_every_machine() -> None:
    """Golden: candidates change when this does (never what is dropped for too little similarity)."""
    signed = signatures(iter([("the ship left the harbour", "yes")]), 1)
    assert signed[0, :3].tolist() == GOLDEN


GOLDEN = [2025842886, 3222433557, 3235868631]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_catch_what_they_promise(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128
    assert found_share(threshold, bands, rows) >= FOUND or rows == 1
    assert found_share((1 + threshold) / 2, bands, rows) >= found_share(threshold, bands, rows)


def test_one_shared_band_is_enough() -> None:
    """Pairs about as similar as the threshold, each found if and only if a band of its signatures is equal."""
    chance, n, threshold = random.Random(7), 1_000, 0.9
    rows = []
    for line in range(1, n, 2):
        text = " ".join(chance.choices(WORDS, k=20))
        place = chance.randrange(10, len(text) - 10)
        rows += [chat(text, "yes", line), chat(f"{text[:place]}#{text[place + 1 :]}", "yes", line + 1)]
    views = Views(rows)
    bands, width = bands_for(threshold)
    signed = signatures((views.parts(index) for index in range(n)), n)[:, : bands * width].reshape(n, bands, width)
    expected, once = set(), 0
    for i in range(0, n, 2):
        shared = int((signed[i] == signed[i + 1]).all(axis=1).sum())
        if shared and similarity(rows[i], rows[i + 1]) >= threshold:
            expected.add(frozenset({i, i + 1}))
            once += shared == 1
    assert once >= 1 and len(expected) > 100
    assert clusters(rows, DedupSection(fuzzy=threshold)) == expected


def test_a_large_bucket_of_one_kind_needs_few_comparisons() -> None:
    """1,000 rows that differ in one word: half a million pairs, and not many of them compared."""
    rows = [chat(f"the ship left the harbour before the storm and came back with cargo of kind {word}", "yes", line)
            for line, word in enumerate((f"{a}{b}" for a in "abcdefghij" for b in range(100)), 1)]  # fmt: skip
    result = deduplicate(rows, DedupSection(fuzzy=0.7, numbers="any"))
    assert result.kept == [0]
    assert result.stages["fuzzy"]["pairs_compared"] < 5_000


def test_empty_rows_are_equal_and_not_near_anything() -> None:
    rows = [chat("", "", 1), chat("what is a ship", "a boat", 2), chat(" ", "\n", 3)]
    result = deduplicate(rows, DedupSection())
    assert result.kept == [0, 1] and [item.stage for item in result.dropped] == ["exact"]
    assert clusters(rows, DedupSection()) == set()
    assert deduplicate([], DedupSection()).kept == []


def test_without_rensa_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rensa", None)
    assert deduplicate(variants(5), DedupSection(fuzzy=None)).kept
    with pytest.raises(EnvironmentProblem, match=r"luthier\[data\]"):
        deduplicate(variants(5), DedupSection())


# -- planted bugs: each is noticed


ROWS = variants(60, seed=11)
SECTION = DedupSection(fuzzy=0.6)


def broken() -> list[str]:
    return wrongs(ROWS, SECTION, deduplicate(ROWS, SECTION))


def test_the_rows_of_the_planted_bugs_have_what_they_need() -> None:
    stages = deduplicate(ROWS, SECTION).stages
    assert broken() == [] and stages["exact"]["dropped"] > 3 and stages["fuzzy"]["dropped"] > 10


def test_planted_all_members_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(members: Sequence[int], rank: object, similar: Similar) -> dict[int, tuple[int, float]]:
        pairs = zip(members, [*members[1:], members[0]], strict=True)
        return {row: (other, similar.similarity(row, other)) for row, other in pairs}

    monkeypatch.setattr(run, "_final", lambda row, found: found[row][0])
    monkeypatch.setattr(run, "choose", choose)
    assert any("which is dropped, too" in wrong for wrong in broken())


def test_planted_candidates_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzy, "jaccard", lambda first, second: 1.0)
    assert any("similar, not 1.000" in wrong for wrong in broken())


def test_planted_numbers_merged_though_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Views, "may_be_one", lambda self, first, second: True)
    assert any("different numbers" in wrong for wrong in broken())


def test_planted_digits_normalised_away(monkeypatch: pytest.MonkeyPatch) -> None:
    join = Views._join
    monkeypatch.setattr(Views, "_join", lambda self, texts: "".join(c for c in join(self, texts) if not c.isdigit()))
    assert any("are not equal" in wrong for wrong in broken())


def test_planted_score_order_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = run._ranking
    monkeypatch.setattr(run, "_ranking", lambda *given: lambda row: (-ranking(*given)(row)[0], row))
    with pytest.raises(AssertionError):
        test_the_score_decides_and_the_first_wins_a_tie()


def test_planted_whole_text_compared_instead_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`yes` and `no` to the same question look alike as one text."""
    parts = Views.parts
    monkeypatch.setattr(Views, "parts", lambda self, row: (" ".join(parts(self, row)),))
    assert broken() != []


def test_planted_clusters_without_a_check_against_the_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual way: of each cluster the first stays, however far the others are from it."""

    def choose(members: Sequence[int], rank: object, similar: Similar) -> dict[int, tuple[int, float]]:
        return {row: (members[0], max(similar.similarity(row, members[0]), 0.6)) for row in members[1:]}

    monkeypatch.setattr(run, "choose", choose)
    with pytest.raises(AssertionError):
        test_a_chain_keeps_what_is_no_duplicate_of_a_kept_row()


def test_planted_first_pairs_of_a_bucket_only(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = fuzzy._neighbours
    monkeypatch.setattr(fuzzy, "_neighbours", lambda *given: iter([next(neighbours(*given))]))
    sections = [DedupSection(fuzzy=0.7)] * 12
    assert any(
        clusters(rows, section) != true_clusters(rows, section)
        for section, rows in zip(sections, (variants(50, seed=seed) for seed in range(12)), strict=True)
    )
