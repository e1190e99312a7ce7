"""What process 0 hands to the others."""

from __future__ import annotations

import threading
import time

import pytest

from luthier.runtime.errors import DataError, RunFailed
from luthier.train.distributed.group import Group


class Store(dict):
    """The calls of torch's store that a group makes."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]

    def set(self, key: str, value: bytes) -> None:
        self[key] = value

    def delete_key(self, key: str) -> bool:
        return self.pop(key, None) is not None


def both(action, store=None):
    """What `action(group)` gives in process 0 and in process 1, which comes first."""
    store, found = Store() if store is None else store, {}

    def run(rank: int) -> None:
        try:
            found[rank] = action(Group(rank=rank, size=2, store=store))
        except Exception as error:  # noqa: BLE001
            found[rank] = error

    other = threading.Thread(target=run, args=(1,))
    other.start()
    run(0)
    other.join(20)
    return found[0], found[1]


def test_only_process_0_acts_and_all_have_the_value():
    acted = []

    def action(group: Group):
        return group.from_main("rows", lambda: acted.append(group.rank) or {"rows": 13})

    assert both(action) == ({"rows": 13}, {"rows": 13})
    assert acted == [0]


def test_an_error_of_process_0_ends_all_and_stays_what_it_is():
    def fail():
        raise DataError(code="D200", message="no such file")

    first, second = both(lambda group: group.from_main("rows", fail))
    assert isinstance(first, DataError)
    assert isinstance(second, RunFailed)
    assert second.problems[0].code == "T462"
    assert "no such file" in str(second)


def test_what_is_asked_for_inside_process_0s_work_needs_no_turn():
    """A value that process 0 makes on the way is there for the others whenever they ask."""

    def action(group: Group):
        inside = lambda: group.from_main("inner", lambda: 7)  # noqa: E731
        outer = group.from_main("outer", lambda: inside() + 1)
        return outer, inside() if group.rank else 7

    assert both(action) == ((8, 7), (8, 7))


@pytest.mark.parametrize("count", [0, 1, 2, 13])
def test_rows_are_dealt_and_come_back_in_their_order(count):
    """Each row once, on one process; one without rows does nothing."""
    done: list[tuple[int, int]] = []

    def action(group: Group):
        def work(rows):
            assert rows
            done.extend((group.rank, row) for row in rows)
            return [f"answer {row}" for row in rows]

        return group.spread("tuned").map("task", list(range(count)), work)

    whole = [f"answer {row}" for row in range(count)]
    assert both(action) == (whole, whole)
    assert sorted(row for _, row in done) == list(range(count))
    assert {rank for rank, row in done if row % 2} <= {1}


def test_the_same_task_of_two_models_is_two_exchanges():
    def action(group: Group):
        return [group.spread(label).map("task", [1, 2], lambda rows, label=label: [f"{label} {r}" for r in rows])
                 for label in ("base", "tuned")]  # fmt: skip

    assert both(action)[0] == [["base 1", "base 2"], ["tuned 1", "tuned 2"]]


def test_the_store_forgets_what_all_have_read_and_nothing_before():
    store = Store()

    def action(group: Group):
        spread = group.spread("synth")
        found = []
        for number in range(30):
            if group.rank and number % 7 == 0:
                time.sleep(0.02)
            found += spread.exchange(f"batch {number}", (number, group.rank))
        return found

    expected = [(number, rank) for number in range(30) for rank in range(2)]
    assert both(action, store) == (expected, expected)
    assert sorted(store) == [f"luthier/synth: batch 29/{rank}" for rank in range(2)]


def test_a_group_of_one_acts_itself():
    with pytest.raises(ZeroDivisionError):
        Group().from_main("x", lambda: 1 / 0)
    assert Group().from_main("x", lambda: 5) == 5
