"""API keys with scopes and limits, and the audit log."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.jobs.core import Core, as_record, dump, new_id, storable
from luthier.jobs.errors import Conflict, Forbidden, Invalid, NotFound, escaped, problem
from luthier.jobs.records import ALL_OWNERS, KeyRecord

__all__ = ["LIMITS", "PREFIX", "SCOPES", "KeyStore", "require"]

PREFIX = "lk-"
SCOPES = ("files", "jobs", "models", "chat", "admin", "read")
"""`read`: look at everything of the owner's; `admin`: keys, audit and all owners. Every scope includes no other, but
`admin`, which includes all."""
LIMITS = ("max_queued", "requests_per_minute")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SECRET = re.compile(r"\b(?:lk|sk|hf|ghp|whsec)[-_][A-Za-z0-9_-]{8,}")
_MAX_TEXT = 500


class KeyStore(Core):
    """Make, look up, revoke; write and read the audit log."""

    def new_key(
        self, name: str, owner: str, scopes: Iterable[str], limits: Mapping[str, int] | None = None
    ) -> tuple[KeyRecord, str]:
        """Make a key. Its text (256 random bits) is returned here once; the database keeps only the SHA-256.

        A slow hash would gain nothing: nobody can try 2^256 texts.

        Raises:
            Invalid: J120, with all problems: name, owner, scopes, limits.
        """
        scopes, limits = frozenset(scopes), dict(limits or {})
        _check_key(name, owner, scopes, limits)
        text = PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id=new_id("key_"), name=name, owner=owner, scopes=scopes, created_at=self.now(), limits=limits,
            hash=_hash(text),
        )  # fmt: skip
        with self.database.writing() as connection:
            taken = connection.execute(
                "SELECT 1 FROM keys WHERE owner = ? AND name = ? AND revoked_at IS NULL", (owner, name)
            ).fetchone()
            if taken:
                raise Conflict(code="J120", message=f"{owner} has a key `{name}` already", hint="another name")
            connection.execute(
                "INSERT INTO keys (id, name, owner, scopes, created_at, limits, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (record.id, name, owner, dump(scopes), record.created_at, dump(limits), record.hash),
            )
        return record, text

    def key_of(self, text: str) -> KeyRecord | None:
        """The key with this text; None: there is none, or it was revoked.

        The look-up is by hash: how long it takes says nothing about the text of any key.
        """
        digest = _hash(text)
        with self.database.reading() as connection:
            row = connection.execute("SELECT * FROM keys WHERE hash = ?", (digest,)).fetchone()
        if row is None or row["revoked_at"] is not None or not hmac.compare_digest(row["hash"], digest):
            return None
        return as_record(KeyRecord, row)

    def keys(self, owner: str = ALL_OWNERS) -> list[KeyRecord]:
        """All keys of an owner, revoked ones too, oldest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM keys WHERE :owner IN (owner, '*') ORDER BY seq", {"owner": owner}
            ).fetchall()
        return [as_record(KeyRecord, row) for row in rows]

    def revoke(self, key_id: str, owner: str = ALL_OWNERS) -> KeyRecord:
        """End a key at once; asked again, it answers the same.

        Raises:
            NotFound: J102.
        """
        with self.database.writing() as connection:
            connection.execute(
                "UPDATE keys SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL AND :owner IN (owner, '*')",
                {"now": self.now(), "id": storable(key_id), "owner": owner},
            )
            row = connection.execute(
                "SELECT * FROM keys WHERE id = :id AND :owner IN (owner, '*')", {"id": storable(key_id), "owner": owner}
            ).fetchone()
        if row is None:
            raise NotFound(code="J102", message=f"no key `{key_id[:100]}`")
        return as_record(KeyRecord, row)

    def audit(self, owner: str, action: str, subject: str, outcome: str, address: str) -> None:
        """Write a line that nobody can change. Control characters are escaped, texts that look like keys left out."""
        values = [audit_text(text) for text in (owner, action, subject, outcome, address)]
        with self.database.writing() as connection:
            connection.execute(
                "INSERT INTO audit (at, owner, action, subject, outcome, address) VALUES (?, ?, ?, ?, ?, ?)",
                (self.clock(), *values),
            )

    def audit_lines(self, owner: str = ALL_OWNERS, *, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Lines after number `after`, oldest first: seq, at, owner, action, subject, outcome, address."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM audit WHERE seq > :after AND :owner IN (owner, '*') ORDER BY seq LIMIT :limit",
                {"after": after, "owner": owner, "limit": limit},
            ).fetchall()
        return [dict(row) for row in rows]


def require(key: KeyRecord, scope: str) -> None:
    """Let only keys with this scope pass; `admin` has all.

    Raises:
        Forbidden: J121.
    """
    if not {scope, "admin"} & key.scopes:
        raise Forbidden(code="J121", message=f"the key `{key.name}` lacks the scope `{scope}`")


def audit_text(text: str) -> str:
    """A text as one harmless line."""
    shown = escaped(_SECRET.sub(lambda match: match.group()[:3] + "...", text))
    return shown if len(shown) <= _MAX_TEXT else shown[:_MAX_TEXT] + "..."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _check_key(name: str, owner: str, scopes: frozenset[str], limits: Mapping[str, int]) -> None:
    problems = []
    if not name.strip() or not name.isprintable() or len(name) > 100:
        problems.append(problem("J120", "a key has a name of 1 to 100 printable characters", param="name"))
    if owner != ALL_OWNERS and not _OWNER.fullmatch(owner):
        message = f"owner {owner[:70]!r}: letters, digits and . _ @ -, at most 64"
        problems.append(problem("J120", message, param="owner"))
    if owner == ALL_OWNERS and "admin" not in scopes:
        problems.append(problem("J120", "owner `*` is for keys with the scope admin", param="owner"))
    unknown = ", ".join(sorted(scopes - set(SCOPES)))
    if unknown or not scopes:
        message = f"no such scope: {unknown}" if unknown else "a key needs a scope"
        problems.append(problem("J120", f"{message}; scopes are {', '.join(SCOPES)}", param="scopes"))
    for limit, value in limits.items():
        if limit not in LIMITS:
            problems.append(problem("J120", f"no such limit: {limit}; limits are {', '.join(LIMITS)}", param="limits"))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(problem("J120", f"`{limit}` is a whole number from 1, got {value!r}", param="limits"))
    if problems:
        raise Invalid(problems=problems)
