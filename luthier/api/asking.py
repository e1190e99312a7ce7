"""What requests ask with besides JSON: query parameters, and no body at all. All of it is checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import Request

from luthier.serve.http.errors import invalid, unsupported

__all__ = ["Paging", "empty_body", "no_query", "paging"]


@dataclass(frozen=True, slots=True)
class Paging:
    """Where a page begins, and how long it is."""

    after: str | None
    limit: int


def paging(request: Request, *, limit: int, most: int = 100, others: Collection[str] = ()) -> Paging:
    """`after` and `limit` of a list.

    Args:
        request: Its query may hold these two and `others`, each at most once.
        limit: Without one asked for.
        most: What may be asked for.
        others: Further parameters the route reads itself.

    Raises:
        ApiError: 400.
    """
    no_query(request, {"after", "limit", *others})
    asked = request.query_params.get("limit")
    if asked is not None and not (asked.isascii() and asked.isdigit() and len(asked) < 9 and 1 <= int(asked) <= most):
        raise invalid("limit", f"`limit` must be a whole number from 1 to {most:,}, not {asked[:40]!r}")
    after = request.query_params.get("after")
    if after is not None and (not after or len(after) > 200):
        raise invalid("after", "`after` is the id of the last object of the page before")
    return Paging(after, limit if asked is None else int(asked))


def no_query(request: Request, known: Collection[str] = ()) -> None:
    """Refuse parameters that would be ignored.

    Raises:
        ApiError: 400 that names one.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known and not (name.startswith("metadata[") and "metadata" in known):
            raise unsupported(name[:80])
        if names.count(name) > 1:
            raise invalid(name[:80], f"`{name[:80]}` stands twice")


async def empty_body(request: Request) -> None:
    """The client sends no body here, or an empty object.

    Raises:
        ApiError: 400: something else was sent, which would be ignored.
    """
    if (await request.body()).strip() not in (b"", b"{}", b"null"):
        raise invalid(None, "this route takes no body", code="unexpected_body")
