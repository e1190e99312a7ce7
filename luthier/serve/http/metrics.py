"""Counts and times in Prometheus' text format, kept without a client library: three kinds of number."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Mapping

__all__ = ["CONTENT_TYPE", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """How often a time fell into each bucket."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Record one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> Iterable[str]:
        """Cumulated buckets, sum and count."""
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            label = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{name}_bucket{{le="{label}"}} {seen}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {seen}"


class Metrics:
    """Numbers of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: Counts[tuple[str, int]] = Counts()
        """(route, status)."""
        self.finished: Counts[str] = Counts()
        """Answers by finish reason; `cancelled` are clients that went away."""
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.whole = Histogram()

    def request(self, route: str, status: int) -> None:
        """A request was answered (or its stream was begun)."""
        with self._lock:
            self.requests[route, status] += 1

    def render(self, gauges: Mapping[str, tuple[str, str, float]]) -> str:
        """The page.

        Args:
            gauges: Name -> (kind, help, value), read from the engines now.
        """
        lines: list[str] = []

        def head(name: str, kind: str, text: str) -> None:
            lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))

        head("luthier_requests_total", "counter", "Requests by route and HTTP status.")
        with self._lock:
            for (route, status), count in sorted(self.requests.items()):
                lines.append(f'luthier_requests_total{{route="{route}",status="{status}"}} {count}')
        head("luthier_answers_total", "counter", "Answers by finish reason.")
        lines += [f'luthier_answers_total{{reason="{reason}"}} {n}' for reason, n in sorted(self.finished.items())]
        for name, (kind, text, value) in gauges.items():
            head(name, kind, text)
            lines.append(f"{name} {value:g}")
        for name, text, histogram in (
            ("luthier_time_to_first_token_seconds", "From the request to its first token.", self.first_token),
            ("luthier_time_between_tokens_seconds", "Between two tokens of an answer.", self.between_tokens),
            ("luthier_request_seconds", "From the request to the end of its answer.", self.whole),
        ):
            head(name, "histogram", text)
            lines.extend(histogram.lines(name))
        return "\n".join(lines) + "\n"
