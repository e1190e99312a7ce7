"""Take secrets and places of this machine out of text that leaves it (model cards, pushed files).

Secrets are recognised by the form their issuer gives them, by the name they stand beside (`token: ...`), and by value:
whatever an environment variable named like a secret holds. A path becomes its last part, an address loses its
user, password and signature. What has no known form, stands beside no telling name and is in no variable is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from luthier.runtime.env import secret_values

__all__ = ["HIDDEN", "find_secrets", "is_machine_path", "scrub", "scrub_path"]

HIDDEN = "[removed]"
_FORMS = (
    r"\bhf_[A-Za-z0-9]{16,}",
    r"\bapi_org_[A-Za-z0-9]{16,}",
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}",
    r"\bsk_(?:live|test)_[A-Za-z0-9]{10,}",
    r"\bgh[pousr]_[A-Za-z0-9]{20,}",
    r"\bgithub_pat_[A-Za-z0-9_]{20,}",
    r"\bglpat-[A-Za-z0-9_-]{16,}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\bAIza[0-9A-Za-z_-]{30,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\bnpm_[A-Za-z0-9]{30,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
_FORM = re.compile("|".join(_FORMS), re.DOTALL)
# `api_key: ...`, `PASSWORD=...`, `Authorization: Bearer ...`; names as words of an identifier, values of 6 and more.
_NAMED = re.compile(
    r"(?P<name>\b(?:[A-Za-z0-9]+[_-])*(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|password|passwd|auth[_-]?token"
    r"|access[_-]?token|hf[_-]?token|bearer|credentials?)\b[\"']?\s*[:=]?\s*(?:bearer\s+)?)"
    r"(?P<quote>[\"']?)(?P<value>[^\s\"',;(){}\[\]]{6,})(?P=quote)",
    re.IGNORECASE,
)
_SEPARATED = re.compile(r"[:=]|\bbearer\s", re.IGNORECASE)
_URL_USER = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"<>]+@")
_URL_QUERY = re.compile(r"(?P<address>\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]+)\?[^\s'\"<>]+")
_URL_FILE = re.compile(r"\bfile://(?=/)")
_PATH = re.compile(
    r"(?<![\w.:/&\\<])(?:~[\w.-]*)?/(?:[^\s/'\"<>|:,;()\[\]{}`]+/)+(?P<last>[^\s/'\"<>|:,;()\[\]{}`]*)"
    r"|(?<!\w)[A-Za-z]:[\\/](?:[^\\/\s'\"<>|:]+[\\/])*(?P<windows>[^\\/\s'\"<>|:]*)"
    r"|(?<!\w)\\\\[^\\\s]+\\(?:[^\\\s'\"<>|:]+\\)*(?P<share>[^\\\s'\"<>|:]*)"
)
_WHOLE = re.compile(r"(?:~[\w.-]*)?/.+|[A-Za-z]:[\\/].*|\\\\.+|~\w*|file://.*", re.DOTALL)


def find_secrets(text: str) -> list[str]:
    """Names of the kinds of secrets in a text, never the secrets: `a token of the form hf_...`."""
    found = [f"a secret of the form {match[0][:4]}..." for match in _FORM.finditer(text)]
    found += [f"the value of the environment variable {name}" for name, value in secret_values() if value in text]
    found += ["an address with a password" for match in _URL_USER.finditer(text) if ":" in match[0].split("://", 1)[1]]
    return list(dict.fromkeys(found))


def scrub(text: str, *, places: Iterable[str] = ()) -> str:
    """The text without secrets, passwords in addresses and absolute paths.

    Args:
        text: anything.
        places: further folders of this machine to take out, with what has spaces in it.
    """
    for _, value in secret_values():
        text = text.replace(value, HIDDEN)
    text = _FORM.sub(HIDDEN, text)
    text = _URL_USER.sub(lambda match: match["scheme"], text)
    text = _URL_QUERY.sub(lambda match: match["address"], text)
    text = _NAMED.sub(_hide_named, text)
    text = _URL_FILE.sub("", text)
    for place in sorted({str(Path.home()), *places}, key=len, reverse=True):
        if len(place) > 3 and place in text:
            text = re.sub(re.escape(place.rstrip("/")) + r"(?:/|(?=[\s'\"`,;)]|$))", "", text)
    return _PATH.sub(_last_part, text)


def is_machine_path(text: str) -> bool:
    """Whether a value is, as a whole, an absolute path (or one below a home folder)."""
    return _WHOLE.fullmatch(text.strip()) is not None


def scrub_path(text: str) -> str:
    """A value that is a path, a hub id or an address: a path of this machine becomes its last part."""
    if is_machine_path(text) or text.startswith("../"):
        parts = [part for part in re.split(r"[\\/]", text.strip()) if part not in ("", "..", "~")]
        text = parts[-1] if parts else HIDDEN
    return scrub(text)


def _hide_named(match: re.Match[str]) -> str:
    if not _SEPARATED.search(match["name"]) or match["value"] == HIDDEN or match["value"].lower() in _WORDS:
        return match[0]
    return f"{match['name']}{match['quote']}{HIDDEN}{match['quote']}"


_WORDS = {"null", "none", "false", "bearer", "unknown"}


def _last_part(match: re.Match[str]) -> str:
    return match["last"] or match["windows"] or match["share"] or HIDDEN
