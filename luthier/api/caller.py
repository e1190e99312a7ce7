"""Who asks: an owner with scopes, found by the key; and which scopes a route needs.

`admin` may do everything and sees everybody's; `read` may look at what its owner has. The others name what they
open: `files`, `jobs`, `models`, `chat`. A route that no rule names is the admin's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

__all__ = ["LOCAL", "RULES", "Caller", "Rule", "caller_of", "rule_for", "scopes_for", "tightest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner of a key, or the user of this machine where there are no keys."""

    owner: str
    scopes: frozenset[str]
    key_id: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Of the key: `max_queued`, `requests_per_minute`."""

    @property
    def admin(self) -> bool:
        """Whether everything is open."""
        return "admin" in self.scopes

    @property
    def sees(self) -> str:
        """Whose records are shown: `*` for everybody's."""
        return "*" if self.admin else self.owner

    def may(self, needed: frozenset[str]) -> bool:
        """Whether one of the scopes is held."""
        return self.admin or bool(self.scopes & needed)


LOCAL = Caller(owner="local", scopes=frozenset({"admin"}))
"""Whoever asks a server on loopback that has no keys."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Scopes for a path and everything below it; one of them suffices. `read` is added for looking."""

    prefix: str
    scopes: frozenset[str]
    look: frozenset[str] = frozenset()
    """Further scopes for GET."""
    writes: bool = True
    """Whether anything but GET changes something: such requests are audited, and `read` does not open them."""

    def covers(self, path: str) -> bool:
        """Whether the path is this one or below it."""
        return path == self.prefix or path.startswith(self.prefix + "/")


RULES: tuple[Rule, ...] = (
    Rule("/v1/files", frozenset({"files"}), look=frozenset({"jobs"})),
    Rule("/v1/uploads", frozenset({"files"})),
    Rule("/v1/fine_tuning/alpha/graders", frozenset({"jobs"}), writes=False),
    Rule("/v1/fine_tuning", frozenset({"jobs"})),
    Rule("/v1/models", frozenset({"models"}), look=frozenset({"jobs", "chat"})),
    Rule("/v1/chat/completions", frozenset({"chat"}), writes=False),
    Rule("/v1/completions", frozenset({"chat"}), writes=False),
    Rule("/health/details", frozenset({"admin"}), look=frozenset({"read"})),
    Rule("/metrics", frozenset({"admin"}), look=frozenset({"read"})),
    Rule("/admin", frozenset({"admin"})),
)
_UNNAMED = Rule("", frozenset({"admin"}))


def rule_for(path: str, rules: Sequence[Rule]) -> Rule:
    """The first rule that covers a path; the admin's where none does."""
    return next((rule for rule in rules if rule.covers(path)), _UNNAMED)


def scopes_for(path: str, method: str, rules: Sequence[Rule] = RULES) -> frozenset[str]:
    """The scopes of which a request needs one."""
    rule = rule_for(path, rules)
    if method in ("GET", "HEAD") and rule is not _UNNAMED and not rule.prefix.startswith("/admin"):
        return rule.scopes | rule.look | {"read"}
    return rule.scopes


def tightest(*limits: int | None) -> int | None:
    """The lowest of several bounds; None is no bound."""
    return min((one for one in limits if one is not None), default=None)


def caller_of(request: Request) -> Caller:
    """Who sent a request that the guard let pass."""
    found = request.scope["luthier.caller"]
    assert isinstance(found, Caller)
    return found
