"""What was asked and what it cost; a budget that is not exceeded.

Cost = (prompt tokens x input price + completion tokens x output price) / 1e6, tokens as the server reports them.
Before a request is sent, the most it can cost is set aside: its text has at most as many tokens as bytes, and the
answer at most `max_tokens`. So requests in flight together cannot overrun the budget, and the last few dollars of a
budget may stay unused. An answer without a token count is charged what was set aside. An attempt that failed midway
may have been billed by the server; that is not known here, and only counted under `retries`. A budget of
tokens works in the same way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luthier.endpoint.settings import EndpointSettings
from luthier.runtime.errors import RunFailed

__all__ = ["Meter", "Spent", "Usage", "body_bytes", "spent_by"]

_MILLION = 1e6


@dataclass(slots=True)
class Usage:
    """Counts of one client."""

    requests: int = 0
    """Answered by the server."""
    cached: int = 0
    """Answered from the disk, or by an equal request in flight."""
    retries: int = 0
    """Attempts after the first."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of answered requests, as the server reports them."""
    unreported: int = 0
    """Answers without a token count."""
    cost_usd: float | None = None
    """None: no prices are known."""

    def since(self, before: Usage) -> Usage:
        """What was added after an earlier copy."""
        cost = None if self.cost_usd is None else self.cost_usd - (before.cost_usd or 0.0)
        counts = {name: value - getattr(before, name) for name, value in asdict(self).items() if name != "cost_usd"}
        return Usage(**counts, cost_usd=cost)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that were used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Of both kinds."""
        return self.prompt_tokens + self.completion_tokens


class Meter:
    """Counts, and holds the budget. Safe for threads.

    Args:
        settings: prices and budgets.
        earlier: what an earlier session of the same work has used of the budgets; not counted in `usage`.
    """

    def __init__(self, settings: EndpointSettings, *, earlier: Spent | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._set_aside = 0.0
        self._tokens_set_aside = 0
        earlier = earlier or Spent()
        self._tokens = earlier.tokens
        self._earlier_cost = self._price(earlier.prompt_tokens, earlier.completion_tokens) or 0.0
        self._usage = Usage(cost_usd=None if self._price(0, 0) is None else 0.0)

    def usage(self) -> Usage:
        """A copy of the counts so far."""
        with self._lock:
            return Usage(**asdict(self._usage))

    def reserve(self, *, request_bytes: int, max_tokens: int) -> tuple[float, int]:
        """Set aside the most that a request can cost (US dollars, tokens); `settle` or `release` it afterwards.

        Raises:
            RunFailed: a budget does not allow it.
        """
        most, tokens = self._price(request_bytes, max_tokens) or 0.0, request_bytes + max_tokens
        limit, token_limit = self._settings.budget_usd, self._settings.budget_tokens
        with self._lock:
            spent = self._earlier_cost + (self._usage.cost_usd or 0.0)
            if limit is not None and spent + self._set_aside + most > limit:
                raise RunFailed(
                    code="R764",
                    message=(
                        f"the budget of ${limit:g} for {self._settings.host} is used up: ${spent:.4f} spent, "
                        f"${self._set_aside:.4f} set aside for requests in flight, the next may cost ${most:.4f}"
                    ),
                    hint="raise budget_usd; answers so far are kept in the cache and cost nothing the next time",
                )
            if token_limit is not None and self._tokens + self._tokens_set_aside + tokens > token_limit:
                raise RunFailed(
                    code="R764",
                    message=(
                        f"the budget of {token_limit:,} tokens for {self._settings.host} is used up: {self._tokens:,} "
                        f"used, {self._tokens_set_aside:,} set aside for requests in flight, the next may take "
                        f"{tokens:,}"
                    ),
                    hint="raise budget_tokens; answers so far are kept in the cache and cost nothing the next time",
                )
            self._set_aside += most
            self._tokens_set_aside += tokens
        return most, tokens

    def settle(self, reserved: tuple[float, int], usage: dict[str, Any] | None) -> None:
        """Replace what was set aside by what the server reports."""
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        with self._lock:
            self._set_aside -= reserved[0]
            self._tokens_set_aside -= reserved[1]
            self._usage.requests += 1
            cost: float | None = reserved[0]
            if prompt is None or completion is None:
                self._usage.unreported += 1
                self._tokens += reserved[1]
            else:
                self._usage.prompt_tokens += prompt
                self._usage.completion_tokens += completion
                self._tokens += prompt + completion
                cost = self._price(prompt, completion)
            if self._usage.cost_usd is not None:
                self._usage.cost_usd += cost or 0.0

    def release(self, reserved: tuple[float, int]) -> None:
        """The request came to nothing."""
        with self._lock:
            self._set_aside -= reserved[0]
            self._tokens_set_aside -= reserved[1]

    def count_cached(self) -> None:
        """A request that was not sent."""
        with self._lock:
            self._usage.cached += 1

    def count_retry(self) -> None:
        """Another attempt."""
        with self._lock:
            self._usage.retries += 1

    def _price(self, prompt: int, completion: int) -> float | None:
        inputs, outputs = self._settings.input_price, self._settings.output_price
        if inputs is None or outputs is None:
            return None
        return (prompt * inputs + completion * outputs) / _MILLION


def spent_by(request: Mapping[str, Any], usage: Any) -> Spent:
    """What an answer is charged with: the tokens the server reports, else the most the request can have used."""
    usage = usage if isinstance(usage, dict) else None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is not None and completion is not None:
        return Spent(prompt, completion)
    longest = request.get("max_tokens") or request.get("max_completion_tokens") or 0
    return Spent(body_bytes(request), int(longest))


def body_bytes(body: Mapping[str, Any]) -> int:
    """Size of a request: it has at most so many tokens."""
    return len(json.dumps(body, ensure_ascii=False).encode("utf-8"))


def _count(usage: dict[str, Any] | None, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
