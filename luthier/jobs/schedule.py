"""When the jobs in line will be done, by their plans: workers take them in the order in which `claim` would."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Waiting", "finish_times"]


class Waiting(NamedTuple):
    """A job in line."""

    id: str
    owner: str
    priority: int
    seq: int
    seconds: float | None
    """How long it takes by the plan; None: not known."""


def finish_times(
    line: Sequence[Waiting],
    running: Sequence[tuple[str, int | None]],
    served: Mapping[str, int],
    *,
    workers: int,
    now: int,
) -> dict[str, int | None]:
    """Expected end of each job in line; None where a plan of it, or of one before it, is missing.

    Each worker is free when its job ends; it then takes the first in line (priority, the owner with the fewest jobs
    at work, the owner served longest ago, age).

    Args:
        line: the jobs.
        running: owner and expected end of the jobs at work.
        served: the number of each owner's last claim.
        workers: how many there are; those over the jobs at work are free now.
        now: seconds since 1970.
    """
    times: dict[str, int | None] = {job.id: None for job in line}
    ends = [(max(end, now), owner) for owner, end in running if end is not None]
    free = [(float(now), "")] * max(0, workers - len(running)) + [(float(end), owner) for end, owner in ends]
    heapq.heapify(free)
    at_work: dict[str, int] = defaultdict(int)
    for owner, _ in running:
        at_work[owner] += 1
    last = dict(served)
    count = max(last.values(), default=0)
    for queues in _by_priority(line):
        while queues and free:
            start, done = heapq.heappop(free)
            if done:
                at_work[done] -= 1
            owner = min(queues, key=lambda name: (at_work[name], last.get(name, 0), queues[name][0].seq))
            job = queues[owner].popleft()
            if not queues[owner]:
                del queues[owner]
            at_work[owner] += 1
            count += 1
            last[owner] = count
            if job.seconds is None:
                continue  # its worker is busy for an unknown time
            times[job.id] = round(start + job.seconds)
            heapq.heappush(free, (start + job.seconds, owner))
    return times


def _by_priority(line: Sequence[Waiting]) -> list[dict[str, deque[Waiting]]]:
    """Per priority, highest first: per owner, oldest first."""
    groups: dict[int, dict[str, deque[Waiting]]] = {}
    for job in sorted(line, key=lambda job: (-job.priority, job.seq)):
        groups.setdefault(job.priority, {}).setdefault(job.owner, deque()).append(job)
    return list(groups.values())
