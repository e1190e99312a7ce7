"""What all parts of the store share: the database, the folder, the clock, ids, and lists in pages."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from luthier.jobs.database import Database
from luthier.jobs.errors import Invalid, NotFound
from luthier.jobs.records import ALL_OWNERS

__all__ = ["Core", "as_record", "dump", "new_id", "owned", "page", "storable"]

Record = TypeVar("Record")
_JSON = {
    "data", "error", "hyperparameters", "integrations", "limits", "luthier", "metadata", "method", "metrics",
    "result_files", "scopes",
}  # fmt: skip
_TUPLES = {"integrations", "result_files"}


class Core:
    """A folder with `service.db` and blobs beside it."""

    def __init__(self, home: Path, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.home, self.database, self.clock = home, database, clock

    def now(self) -> int:
        """Whole seconds since 1970."""
        return int(self.clock())

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()


def new_id(prefix: str) -> str:
    """`prefix` and 24 random hexadecimal digits."""
    return prefix + secrets.token_hex(12)


def storable(text: str) -> str:
    """A text as SQLite can hold it: halves of surrogate pairs become `?`. No id or name has one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def dump(value: Any) -> str:
    """JSON as it is stored: one line, NaN refused, lone surrogates escaped."""
    if isinstance(value, frozenset | set):
        value = sorted(value)
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def as_record(kind: type[Record], row: sqlite3.Row) -> Record:
    """The record in a row; columns that are no field of it are left out."""
    values: dict[str, Any] = {}
    there = set(row.keys())
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in there:
            continue
        value = row[field.name]
        if field.name in _JSON and value is not None:
            value = json.loads(value)
            if field.name in _TUPLES:
                value = tuple(value)
            elif field.name == "scopes":
                value = frozenset(value)
        values[field.name] = value
    return kind(**values)


def owned(row: sqlite3.Row | None, owner: str, what: str, id_: str, *, param: str | None = None) -> sqlite3.Row:
    """The row, if the asker may see it.

    Raises:
        NotFound: J102; the same words whether it is not there or another's.
    """
    if row is None or owner not in (row["owner"], ALL_OWNERS):
        shown = id_ if len(id_) <= 100 else id_[:100] + "..."
        raise NotFound(code="J102", message=f"no {what} `{shown}`", param=param)
    return row


def page(
    connection: sqlite3.Connection,
    table: str,
    kind: type[Record],
    *,
    where: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    after: str | None = None,
    limit: int = 20,
    most: int = 10_000,
    order: str = "desc",
    key: str = "id",
    by: str = "seq",
) -> tuple[list[Record], bool]:
    """One page of a list, and whether more follow.

    Args:
        connection: in a transaction.
        table: name of the table; like `where`, `key` and `by` never from a request.
        kind: record of its rows.
        where: conditions, all of which must hold.
        values: for their named parameters.
        after: id of the last item of the page before; it may have been deleted meanwhile.
        limit: items of the page.
        most: largest limit allowed.
        order: `asc` or `desc`.
        key: column that `after` is in.
        by: column of the order.

    Raises:
        Invalid: J115 `limit` or `order` out of range.
        NotFound: J102 `after` is no item of the list.
    """
    if isinstance(limit, bool) or not 1 <= limit <= most:
        raise Invalid(code="J115", message=f"`limit` is {limit}; allowed is 1 to {most:,}", param="limit")
    if order not in ("asc", "desc"):
        raise Invalid(code="J115", message=f"`order` is `{order[:40]}`; allowed are asc and desc", param="order")
    conditions, bound = list(where), dict(values or {})
    if after is not None:
        alive = [condition for condition in conditions if "deleted_at" not in condition]
        clause = " AND ".join([*alive, f"{key} = :after"])
        place = {**bound, "after": storable(after)}
        found = connection.execute(f"SELECT {by} FROM {table} WHERE {clause}", place).fetchone()
        if found is None:
            raise NotFound(code="J102", message=f"`after` is no item of this list: `{after[:100]}`", param="after")
        conditions.append(f"{by} {'<' if order == 'desc' else '>'} :place")
        bound["place"] = found[0]
    clause = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = connection.execute(
        f"SELECT * FROM {table} {clause} ORDER BY {by} {order} LIMIT :count", {**bound, "count": limit + 1}
    ).fetchall()
    return [as_record(kind, row) for row in rows[:limit]], len(rows) > limit
