"""The end of jobs, told by webhook: signed as OpenAI's are, at least once, also after a restart.

    body        {"id": "evt_...", "object": "event", "created_at": N, "type": "fine_tuning.job.succeeded",
                 "data": {"id": "ftjob-..."}}
    signature   base64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")) behind `v1,` (standardwebhooks.com)

A trigger of the database writes the notice in the transaction that ends the job. Here it becomes a delivery for each
address of the configuration, which is tried until it is answered by 2xx, at most for three days. Addresses come from
the configuration alone, never from a request, and no redirect is followed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from luthier.endpoint.transport import Fault, post_bytes
from luthier.jobs.store import Store
from luthier.recipe.section import Section

__all__ = ["DELAYS", "WebhookSettings", "deliver_due", "headers_of", "signature", "spread"]

Kind = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
KINDS: tuple[Kind, ...] = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
DELAYS = (5, 30, 300, 1_800, 7_200, 18_000, 36_000, 36_000, 72_000, 72_000)
"""Seconds after each failed attempt; after the last one it is given up. Together 2.8 days."""
TIMEOUT = 15.0
PREFIX = "whsec_"


class WebhookSettings(Section):
    """Who is told."""

    url: str
    """http or https address; of this machine's network, too: it is the operator who writes it."""
    secret: str
    """`whsec_` and base64 of at least 16 bytes; the receiver checks the signature with it."""
    events: list[Kind] = Field(default_factory=lambda: list(KINDS))
    """What is told."""
    timeout_seconds: Annotated[float, Field(gt=0.0, le=60.0)] = TIMEOUT
    """For an answer."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not value.isprintable():
            raise ValueError("must be an http or https address without user name")
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: str) -> str:
        _key(value)
        return value


def _key(secret: str) -> bytes:
    """The bytes of a secret.

    Raises:
        ValueError: it is none. The secret is not in the message.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True) if secret.startswith(PREFIX) else b""
    except binascii.Error:
        key = b""
    if len(key) < 16:
        raise ValueError("must be `whsec_` and base64 of at least 16 bytes: `whsec_$(openssl rand -base64 32)`")
    return key


def signature(secret: str, id_: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the signature of a body."""
    signed = f"{id_}.{timestamp}.".encode("ascii") + body
    return "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode("ascii")


def headers_of(secret: str, id_: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed webhook."""
    signed = signature(secret, id_, timestamp, body)
    return {"webhook-id": id_, "webhook-timestamp": str(timestamp), "webhook-signature": signed}


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery whose time has come."""

    seq: int
    notice_id: str
    url: str
    attempts: int
    body: bytes


def spread(store: Store, settings: Sequence[WebhookSettings]) -> int:
    """Make deliveries of new notices; returns how many."""
    with store.database.writing() as connection:
        new = connection.execute("SELECT * FROM notices WHERE spread = 0 ORDER BY seq").fetchall()
        made = 0
        for notice in new:
            for one in settings:
                if notice["type"] in one.events:
                    connection.execute(
                        "INSERT INTO deliveries (notice_id, url, next_at) VALUES (?, ?, ?)"
                        " ON CONFLICT (notice_id, url) DO NOTHING",
                        (notice["id"], one.url, store.clock()),
                    )
                    made += 1
            connection.execute("UPDATE notices SET spread = 1 WHERE seq = ?", (notice["seq"],))
        return made


def deliver_due(store: Store, settings: Sequence[WebhookSettings]) -> int:
    """Try every delivery that is due, once; returns how many were answered by 2xx.

    What goes to an address that is no longer in the configuration is given up.
    """
    known = {one.url: one for one in settings}
    delivered = 0
    for due in _due(store):
        one = known.get(due.url)
        if one is None:
            _settle(store, due, "given_up", "no longer in the configuration")
            continue
        timestamp = store.now()
        try:
            answer = post_bytes(
                due.url, due.body, headers=headers_of(one.secret, due.notice_id, timestamp, due.body),
                timeout=one.timeout_seconds,
            )  # fmt: skip
        except Fault as fault:
            _again(store, due, fault.reason)
            continue
        if 200 <= answer.status < 300:
            _settle(store, due, "delivered", str(answer.status))
            delivered += 1
        elif answer.status == 410:  # the receiver wants no more of them
            _settle(store, due, "given_up", "410")
        else:
            _again(store, due, str(answer.status))
    return delivered


def _due(store: Store) -> list[Due]:
    with store.database.reading() as connection:
        rows = connection.execute(
            "SELECT deliveries.*, notices.type, notices.created_at, notices.job_id FROM deliveries"
            " JOIN notices ON notices.id = notice_id"
            " WHERE state = 'waiting' AND next_at <= ? ORDER BY next_at LIMIT 100",
            (store.clock(),),
        ).fetchall()
    return [Due(row["seq"], row["notice_id"], row["url"], row["attempts"], _body(row)) for row in rows]


def _body(row: sqlite3.Row) -> bytes:
    value = {
        "id": row["notice_id"], "object": "event", "created_at": row["created_at"], "type": row["type"],
        "data": {"id": row["job_id"]},
    }  # fmt: skip
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _settle(store: Store, due: Due, state: str, answer: str) -> None:
    with store.database.writing() as connection:
        connection.execute(
            "UPDATE deliveries SET state = ?, answer = ?, attempts = attempts + 1 WHERE seq = ?",
            (state, answer, due.seq),
        )


def _again(store: Store, due: Due, answer: str) -> None:
    if due.attempts >= len(DELAYS):
        _settle(store, due, "given_up", answer[:500])
        return
    with store.database.writing() as connection:
        connection.execute(
            "UPDATE deliveries SET attempts = attempts + 1, next_at = ?, answer = ? WHERE seq = ?",
            (store.clock() + DELAYS[due.attempts], answer[:500], due.seq),
        )
