"""Which server is asked, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from luthier.runtime.errors import Problem, RecipeError

__all__ = ["EndpointSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """One model behind one OpenAI-compatible base URL."""

    base_url: str
    """Up to and with the version, for instance `http://localhost:8000/v1`; `/chat/completions` is appended."""
    model: str
    """Name the server knows the model by."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; None: no key is sent."""
    timeout_seconds: float = 120.0
    """Longest time of one attempt, from connecting to the last byte."""
    max_retries: int = 6
    """Further attempts of a request after 408, 409, 425, 429, 5xx, a broken connection or a broken answer."""
    first_wait_seconds: float = 0.5
    """Wait before the first retry; doubled for each further one, with jitter."""
    max_wait_seconds: float = 60.0
    """Longest wait before a retry; a server that asks for more (`Retry-After`) ends the request."""
    concurrency: int = 8
    """Requests in flight at once."""
    input_price: float | None = None
    """US dollars a million prompt tokens; None: cost is not counted."""
    output_price: float | None = None
    """US dollars a million completion tokens."""
    budget_usd: float | None = None
    """Most that may be spent by this client; needs both prices."""
    budget_tokens: int | None = None
    """Most tokens, of prompts and answers together, that may be used by this client."""
    requests_per_minute: float | None = None
    """Attempts sent in any minute; None: any number."""
    tokens_per_minute: float | None = None
    """Tokens, of prompts and answers together, in any minute; None: any number."""

    @property
    def url(self) -> str:
        """Where chats are sent."""
        return self.base_url.rstrip("/") + "/chat/completions"

    @property
    def host(self) -> str:
        """For messages."""
        return urlsplit(self.base_url).netloc

    def require_valid(self) -> None:
        """Check what types cannot say.

        Raises:
            RecipeError: all that is wrong.
        """
        problems = [Problem(code="R766", message=message, hint=hint) for message, hint in self._faults()]
        if problems:
            raise RecipeError(problems=problems)

    def _faults(self) -> list[tuple[str, str | None]]:
        faults: list[tuple[str, str | None]] = []
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            faults.append((f"base_url {self.base_url!r} is no http(s) URL", "for instance http://localhost:8000/v1"))
        if parts.query or parts.fragment or parts.username or parts.password:
            faults.append(("base_url holds a query or a password", "name a variable in api_key_env for the key"))
        if not self.model:
            faults.append(("the model of the endpoint is empty", None))
        for name in ("timeout_seconds", "first_wait_seconds", "max_wait_seconds", "concurrency"):
            if getattr(self, name) <= 0:
                faults.append((f"{name} must be above 0, got {getattr(self, name)}", None))
        for name in ("budget_tokens", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append((f"{name} must be 1 or more, got {value}", None))
        if self.max_retries < 0:
            faults.append((f"max_retries must be 0 or more, got {self.max_retries}", None))
        if self.budget_usd is not None and (self.input_price is None or self.output_price is None):
            faults.append(("a budget needs the prices it is counted with", "add input_price and output_price"))
        return faults
