"""API keys, tokens and private keys in a text.

By form: prefixes that the services document for their keys. By name: a value behind `password=`, `api_key:` and the
like, if it looks drawn at random: at least 16 characters, letters and digits, Shannon entropy of its characters of at
least 3.5 bits (hexadecimal: 3; upper and lower case without digits: 4). detect-secrets has limits of 3 and 4.5.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

__all__ = ["KEYS", "LEAST_ENTROPY", "entropy", "private_keys", "secrets"]

LEAST_ENTROPY = 3.5
"""Bits a character."""
_LEAST_OF_HEX = 3.0
_LEAST_OF_LETTERS = 4.0

KEYS = {
    "AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    "GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
    "GitLab token": r"glpat-[\w-]{20,}",
    "Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Slack webhook": r"https://hooks\.slack\.com/services/T\w+/B\w+/\w{20,}",
    "Stripe key": r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "Anthropic key": r"sk-ant-[\w-]{20,}",
    "OpenAI key": r"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9][\w-]{30,}",
    "Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "Google key": r"AIza[\w-]{35}",
    "npm token": r"npm_[A-Za-z0-9]{36}",
    "PyPI token": r"pypi-AgE[\w-]{50,}",
    "SendGrid key": r"SG\.[\w-]{16,}\.[\w-]{16,}",
    "DigitalOcean token": r"do[opr]_v1_[a-f0-9]{64}",
    "Telegram token": r"\d{8,10}:AA[\w-]{33}",
    "JSON web token": r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}",
}
"""Name -> form of the key."""

_BY_FORM = re.compile(rf"(?<![\w-])(?:{'|'.join(KEYS.values())})(?![\w-])")
_BY_NAME = re.compile(
    r"(?i)(?:api[_-]?key|apikey|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|access[_-]?token|token|passw(?:or)?d|pwd|"
    r"client[_-]?secret|bearer)[\"']?(?:\s*[:=]\s*|\s+is\s+|\s+)[\"']?([A-Za-z0-9+/_.~=-]{16,})"
)
_PRIVATE = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:.*?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\:,-]*)",
    re.DOTALL,
)


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """Private key blocks; one without an end goes as far as its characters do."""
    if "PRIVATE KEY" in text:
        yield from (found.span() for found in _PRIVATE.finditer(text))


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """Keys by form, and values by name."""
    for found in _BY_FORM.finditer(text):
        if entropy(found[0]) >= LEAST_ENTROPY - 0.5:  # `sk-xxxxxxxx...` and `AKIAAAAA...` stand for keys, and are none
            yield found.span()
    for found in _BY_NAME.finditer(text):
        value = found[1].rstrip(".")
        if _random(value):
            yield found.start(1), found.start(1) + len(value)


def _random(value: str) -> bool:
    """Whether a value looks drawn at random; 16 hexadecimal digits hold 4 bits a character at most."""
    found = entropy(value)
    if not any(map(str.isdigit, value)):
        return not value.islower() and not value.isupper() and found >= _LEAST_OF_LETTERS
    least = _LEAST_OF_HEX if re.fullmatch(r"[0-9a-fA-F-]+", value) else LEAST_ENTROPY
    return any(map(str.isalpha, value)) and found >= least


def entropy(text: str) -> float:
    """Shannon entropy of the characters of a text, in bits a character."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
