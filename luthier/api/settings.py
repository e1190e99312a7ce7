"""How the API listens, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.serve.settings import ServeSettings, is_loopback

__all__ = ["ApiSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Address and bounds. The defaults are for one machine and its users."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    allowed_hosts: frozenset[str] = frozenset()
    """Names, besides this machine's own, under which requests may come (a reverse proxy's)."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of pages, besides the server's own, that may send requests: `https://tools.example`."""
    max_body_bytes: int = 8 << 20
    """JSON bodies."""
    max_file_bytes: int = 512 << 20
    """One file; also one part of an upload. The hosted service's limit."""
    body_idle_seconds: float = 30.0
    """Longest wait for the next bytes of a body."""
    requests_per_minute: int = 600
    """For keys that have no limit of their own."""
    wrong_keys_per_minute: int = 5
    python_graders: bool = False
    """Whether `python` graders may be run: their code runs on this machine, in a sandbox."""
    grader_seconds: float = 10.0
    """Longest time of one call of a `python` grader."""
    parallel_graders: int = 2
    max_loaded_models: int = 8
    """Tuned models and checkpoints in memory at once; the one used least recently goes first."""
    max_loaded_bases: int = 1
    """Sets of base weights in memory at once."""
    max_new_tokens: int = 4_096
    request_seconds: float = 600.0
    drain_seconds: float = 30.0

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def max_upload_bytes(self) -> int:
        """A body with a file in it: the file, and 64 KiB for what stands around it."""
        return self.max_file_bytes + (64 << 10)

    def serving(self) -> ServeSettings:
        """The part of it that the serving layer reads. Keys are the guard's."""
        return ServeSettings(
            host=self.host, port=self.port, max_body_bytes=self.max_body_bytes, max_new_tokens=self.max_new_tokens,
            request_seconds=self.request_seconds, drain_seconds=self.drain_seconds,
        )  # fmt: skip
