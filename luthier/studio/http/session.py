"""A browser's session: a link that works once becomes a cookie that scripts cannot read and other sites cannot send."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie

__all__ = ["COOKIE", "Sessions", "cookie_of"]

COOKIE = "luthier_studio"
_LIFE_SECONDS = 30 * 24 * 3600
_LINK_SECONDS = 24 * 3600
_MOST = 200


class Sessions:
    """Links and cookies of one server; both end with it. Only hashes are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[bytes, float] = {}
        self._cookies: OrderedDict[bytes, float] = OrderedDict()

    def new_link(self) -> str:
        """A word that opens one session, within a day."""
        word = secrets.token_urlsafe(32)
        with self._lock:
            self._links[_hash(word)] = time.monotonic()
        return word

    def enter(self, word: str) -> str | None:
        """A cookie for a word that was not used yet; None for any other."""
        with self._lock:
            made = self._links.pop(_hash(word), None)
            if made is None or time.monotonic() - made > _LINK_SECONDS:
                return None
            cookie = secrets.token_urlsafe(32)
            self._cookies[_hash(cookie)] = time.monotonic()
            while len(self._cookies) > _MOST:
                self._cookies.popitem(last=False)
        return cookie

    def knows(self, cookie: str | None) -> bool:
        """Whether a cookie is one of a session."""
        if not cookie:
            return False
        digest = _hash(cookie)
        with self._lock:
            made = self._cookies.get(digest)
            known = made is not None and time.monotonic() - made < _LIFE_SECONDS
        return known and hmac.compare_digest(digest, _hash(cookie))

    def end(self, cookie: str | None) -> None:
        """The session is over."""
        with self._lock:
            self._cookies.pop(_hash(cookie or ""), None)


def cookie_of(header: str) -> str | None:
    """The session's cookie in a `Cookie` header."""
    try:
        found = SimpleCookie(header[:8_192])
    except CookieError:
        return None
    return found[COOKIE].value if COOKIE in found else None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
