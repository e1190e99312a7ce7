"""Times as text."""

from __future__ import annotations

import calendar
import time

__all__ = ["iso", "seconds_of"]


def iso(seconds: float) -> str:
    """UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds_of(text: str | None) -> float | None:
    """Seconds since 1970; None for anything but `iso`'s form."""
    try:
        return float(calendar.timegm(time.strptime(text or "", "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return None
