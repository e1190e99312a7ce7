"""Contract: every row in exactly one pack, no pack over its capacity, few tokens wasted, always the same answer."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.pack import _best_fit, _completion, _next_size, efficiency, one_by_one, pack

CASES = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=200), st.just(capacity))
)


def test_longest_first_each_into_the_fullest_pack_with_room():
    # 7 opens A (3 left), 6 opens B (4 left), 4 fits only B (0 left), 3 fits A (0 left), 2 opens C
    packs = pack([2, 3, 4, 6, 7], 10)
    assert [item.examples for item in packs] == [(4, 1), (3, 2), (0,)]
    assert [item.tokens for item in packs] == [10, 10, 2]


def test_the_fullest_pack_is_chosen_not_the_first():
    # 7 opens A (3 left), 6 opens B (4 left); 3 fits both and goes to the fuller A
    packs = pack([6, 7, 3], 10)
    assert [item.examples for item in packs] == [(1, 2), (0,)]


def test_completion_wins_where_no_row_is_short():
    # Four rows of 40, 30, 30 fill 100 each. Best fit pairs 40 + 40 and is left with 20 empty tokens twice.
    lengths = [40] * 4 + [30] * 8
    order = list(range(12))
    assert (len(_best_fit(lengths, order, 100)), len(_completion(lengths, order, 100))) == (5, 4)
    assert len(pack(lengths, 100)) == 4


@given(CASES)
def test_no_row_is_lost_split_or_doubled_and_no_pack_is_over_capacity(case):
    lengths, capacity = case
    packs = pack(lengths, capacity)
    assert sorted(index for item in packs for index in item.examples) == list(range(len(lengths)))
    for item in packs:
        assert item.tokens == sum(lengths[index] for index in item.examples) <= capacity
    assert packs == pack(lengths, capacity)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    assert len(packs) <= min(len(_best_fit(lengths, order, capacity)), len(_completion(lengths, order, capacity)))


@given(CASES)
def test_no_two_packs_could_be_one_and_the_count_is_near_the_bound(case):
    lengths, capacity = case
    packs = pack(lengths, capacity)
    fullness = sorted(item.tokens for item in packs)
    assert len(fullness) < 2 or fullness[0] + fullness[1] > capacity
    fewest = -(-sum(lengths) // capacity)
    assert len(packs) <= max(2 * fewest, fewest + 1)


def test_gsm8k_like_rows_fill_packs_to_98_percent():
    chooser = random.Random(0)  # about 200 tokens a row, as GSM8K with its template
    lengths = [min(1024, max(60, int(chooser.lognormvariate(5.25, 0.35)))) for _ in range(7_473)]
    for capacity in (1024, 2048):
        assert efficiency(pack(lengths, capacity), capacity) >= 0.98


def test_a_hundred_thousand_rows_take_a_moment():
    chooser = random.Random(1)
    lengths = [chooser.randint(1, 4096) for _ in range(100_000)]
    started = time.process_time()
    pack(lengths, 4096)
    assert time.process_time() - started < 3.0  # 0.2 s here; quadratic code would take minutes


@pytest.mark.parametrize("length", [0, -1, 11])
def test_a_row_that_fits_no_pack_is_an_error_with_its_number(length):
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens"):
        pack([5, length], 10)


def test_without_packing_each_row_is_its_own_sequence_in_order():
    assert [item.examples for item in one_by_one([5, 9, 1])] == [(0,), (1,), (2,)]
    assert [item.tokens for item in one_by_one([5, 9, 1])] == [5, 9, 1]


def test_nothing_packs_to_nothing():
    assert pack([], 10) == [] and efficiency([], 10) == 0.0


def test_one_row_that_fills_the_room_is_taken_before_a_pair():
    assert _next_size({4: [0], 3: [1], 1: [2]}, [1, 3, 4], 4) == 4
    assert _next_size({3: [1], 1: [2]}, [1, 3], 4) == 3
    assert _next_size({3: [1], 1: [2]}, [1, 3], 0) is None
