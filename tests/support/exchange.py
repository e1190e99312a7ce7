"""Threads in the place of the processes that share work."""

import threading
from concurrent.futures import ThreadPoolExecutor

from luthier.runtime.spread import Spread

__all__ = ["Exchange", "together"]


class Exchange:
    """What the store of a group does, for threads: values by name and rank; waits for the slowest."""

    def __init__(self, size: int) -> None:
        self.size, self._found, self._news = size, {}, threading.Condition()

    def spread(self, rank: int) -> Spread:
        def exchange(name, value):
            with self._news:
                assert (name, rank) not in self._found, f"{name} is used twice"
                self._found[name, rank] = value
                self._news.notify_all()
                names = [(name, other) for other in range(self.size)]
                assert self._news.wait_for(lambda: all(one in self._found for one in names), timeout=10)
                return [self._found[one] for one in names]

        return Spread(rank=rank, size=self.size, exchange=exchange)


def together(size: int, action):
    """Results of `action(spread)` in `size` threads, by rank."""
    exchange = Exchange(size)
    with ThreadPoolExecutor(size) as pool:
        return [one.result() for one in [pool.submit(action, exchange.spread(rank)) for rank in range(size)]]
