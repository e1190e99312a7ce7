"""How a server listens, and what it refuses."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["ServeSettings", "is_loopback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Bounds of a server. The defaults are for one machine and its user."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    api_key: str | None = None
    """Every request but `GET /health` must carry it."""
    admin_key: str | None = None
    """Loading and dropping models needs this one; without it, the API key and a loopback address."""
    max_body_bytes: int = 4 << 20
    max_new_tokens: int = 4_096
    """Most tokens of one answer; also what a request without `max_tokens` gets, if the model holds as many."""
    max_choices: int = 16
    """Most answers (prompts times `n`) of one request."""
    request_seconds: float = 600.0
    """Longest time for one request, waiting included."""
    drain_seconds: float = 30.0
    """At shutdown, how long answers under way may go on."""

    def check(self) -> None:
        """All settings that cannot be right.

        Raises:
            RecipeError: every one of them.
        """
        problems = []
        if not is_loopback(self.host) and not self.api_key:
            problems.append(
                Problem(
                    code="S605", message=f"{self.host} can be reached by others, and there is no API key",
                    hint="set LUTHIER_API_KEY (or --api-key), or leave --host at 127.0.0.1",
                )
            )  # fmt: skip
        for name, key in (("API", self.api_key), ("admin", self.admin_key)):
            if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key):
                message = f"the {name} key must have at least 8 printable ASCII characters and no spaces"
                problems.append(Problem(code="S606", message=message, hint="for instance `openssl rand -hex 24`"))
        if problems:
            raise RecipeError(problems=problems)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
