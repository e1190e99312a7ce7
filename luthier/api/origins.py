"""Which `Host` and `Origin` a request may have: against pages of other sites, and names pointed at this machine."""

from __future__ import annotations

import ipaddress
import socket
from functools import cache
from urllib.parse import urlsplit

from luthier.api.settings import ServerSection
from luthier.serve.http.errors import ApiError
from luthier.serve.settings import is_loopback

__all__ = ["check_addresses"]


def check_addresses(headers: dict[str, str], settings: ServerSection) -> None:
    """Refuse a foreign `Host` or `Origin`.

    On loopback the host must be loopback; elsewhere an address (a name cannot be pointed at it), this machine's
    own name, or one of `allowed_hosts`. An origin must be the host itself, or one of `allowed_origins`.

    Raises:
        ApiError: 403.
    """
    host, port = _split(f"//{headers.get('host', '')}")
    known = host in settings.allowed_hosts or is_loopback(host)
    if not known and not settings.loopback:
        known = _is_address(host) or host in _own_names()
    if not known:
        raise ApiError(403, "this server does not answer under that name (`allowed_hosts`)", code="foreign_host")
    origin = headers.get("origin")
    if origin is None or origin in settings.allowed_origins:
        return
    # The scheme is a proxy's matter; host and port are the page's.
    if _split(origin) != (host, port) or origin == "null":
        raise ApiError(403, "pages of other sites may not use this server (`allowed_origins`)", code="foreign_origin")


def _split(address: str) -> tuple[str, int | None]:
    """Host and port; nothing for an address that is none."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return "", None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (parts.hostname or "").rstrip("."), None if port in (default, 80, 443) else port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


@cache
def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], socket.getfqdn().lower()} - {""})
