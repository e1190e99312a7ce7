"""Values as Markdown: nothing a value holds can become markup, a link, a mention or a marker of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from luthier.report.read import printable
from luthier.runtime.scrub import scrub

__all__ = ["bullets", "code", "fence", "number", "percent", "plain", "table"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")
_SPACES = re.compile(r"\s+")


def plain(value: object) -> str:
    """One line of text: secrets out, HTML and Markdown escaped, no address becomes a link."""
    text = _line(value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    text = _SPECIAL.sub(r"\\\1", text)
    text = text.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"\bwww\.", "www&#46;", text, flags=re.IGNORECASE)


def code(value: object) -> str:
    """One line of code. Inside a table a `|` is escaped, as GFM wants it."""
    text = _line(value).replace("<!--", "< !--").replace("|", "\\|")
    if not text:
        return ""
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "") -> str:
    """A block of code; a fence in the text cannot end it."""
    clean = printable(text).replace("<!--", "< !--").rstrip("\n")
    ticks = "`" * max(3, _longest_run(clean) + 1)
    return f"{ticks}{language}\n{clean}\n{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]) if lines else ""


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def percent(value: float) -> str:
    """A share as `75.0%`."""
    return f"{value * 100:.1f}%"


def number(value: object) -> str:
    """A number as people read it; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _line(value: object) -> str:
    return _SPACES.sub(" ", scrub(printable(str(value)))).strip()


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
