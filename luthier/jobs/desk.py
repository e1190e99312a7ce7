"""Jobs as `luthier jobs` sees them: in a home on this machine, or through the API of a server. OpenAI's field names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from luthier.endpoint.transport import Answer, Fault, get_json, post_bytes
from luthier.jobs.records import ALL_OWNERS, JobRecord
from luthier.jobs.store import Store
from luthier.runtime.errors import AccessError, Problem, RecipeError

__all__ = ["Desk", "LocalDesk", "RemoteDesk", "find_job"]

ENDED = ("succeeded", "failed", "cancelled")
VERBS = {"cancel": "cancel", "pause": "pause", "resume": "run"}
PAGE = 100
TIMEOUT = 30.0
Json = dict[str, Any]


class Desk(Protocol):
    """Where jobs are."""

    def jobs(self, *, limit: int) -> list[Json]:
        """The newest, newest first."""

    def job(self, id_: str) -> Json:
        """One job."""

    def events(self, id_: str, *, after: str | None, limit: int) -> list[Json]:
        """Events behind the one named, oldest first; None: the newest `limit`."""

    def checkpoints(self, id_: str) -> list[Json]:
        """Latest step first."""

    def ask(self, id_: str, verb: str) -> Json:
        """`cancel`, `pause` or `resume`; the job as it is then."""


def find_job(desk: Desk, text: str) -> Json:
    """A job by its id, by the end of its id (four characters and more), or `last`.

    Raises:
        RecipeError: J161 none, or several.
    """
    if text.startswith("ftjob-"):
        return desk.job(text)
    newest = desk.jobs(limit=PAGE)
    ends = [job for job in newest if len(text) >= 4 and job["id"].endswith(text)]
    found = newest[:1] if text == "last" else ends
    if len(found) == 1:
        return found[0]
    message = f"{len(found)} jobs end in `{text}`" if found else f"no job `{text}` among the newest {len(newest)}"
    raise RecipeError(code="J161", message=message, hint="`luthier jobs ls` lists them; `last` is the newest")


class LocalDesk:
    """A home on this machine: whoever may read it sees the jobs of all."""

    def __init__(self, home: Path) -> None:
        if not (home / "service.db").is_file():
            raise RecipeError(
                code="J160", message=f"{home} is no home of a service: it has no service.db",
                hint="--home names the folder of `luthier api`, --url a server",
            )  # fmt: skip
        self.store = Store.open(home)

    def jobs(self, *, limit: int) -> list[Json]:
        """The newest, newest first."""
        return [_job(one) for one in self.store.jobs(ALL_OWNERS, limit=limit)[0]]

    def job(self, id_: str) -> Json:
        """One job."""
        return _job(self.store.job(id_))

    def events(self, id_: str, *, after: str | None, limit: int) -> list[Json]:
        """Events behind the one named, oldest first; None: the newest `limit`."""
        return _collect(lambda place: [asdict(one) for one in self.store.events(id_, place, PAGE)[0]], after, limit)

    def checkpoints(self, id_: str) -> list[Json]:
        """Latest step first."""
        return [
            {"fine_tuned_model_checkpoint": one.name, "step_number": one.step, "metrics": dict(one.metrics)}
            for one in self.store.checkpoints(id_, limit=PAGE)[0]
        ]

    def ask(self, id_: str, verb: str) -> Json:
        """`cancel`, `pause` or `resume`; the job as it is then."""
        record = self.store.want(id_, VERBS[verb])  # type: ignore[arg-type]
        self.store.audit("*", verb, id_, "ok", "command line")
        return _job(record)


class RemoteDesk:
    """A server's API: the jobs of a key."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise RecipeError(
                code="J162",
                message=f"`{url}` is no http or https address",
                hint="for instance http://127.0.0.1:8000/v1",
            )
        base = url.rstrip("/")
        self._base = base if base.endswith("/v1") else base + "/v1"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def jobs(self, *, limit: int) -> list[Json]:
        """The newest, newest first."""
        found: list[Json] = []
        while len(found) < limit:
            query = {"limit": min(PAGE, limit - len(found)), **({"after": found[-1]["id"]} if found else {})}
            page = self._get(f"/fine_tuning/jobs?{urlencode(query)}")
            found += page["data"]
            if not page["has_more"]:
                break
        return found

    def job(self, id_: str) -> Json:
        """One job."""
        return self._get(f"/fine_tuning/jobs/{quote(id_, safe='')}")

    def events(self, id_: str, *, after: str | None, limit: int) -> list[Json]:
        """Events behind the one named, oldest first; None: the newest `limit`."""

        def page(place: str | None) -> list[Json]:
            query = {"limit": PAGE, **({"after": place} if place else {})}
            data: list[Json] = self._get(f"/fine_tuning/jobs/{quote(id_, safe='')}/events?{urlencode(query)}")["data"]
            return data

        return _collect(page, after, limit)

    def checkpoints(self, id_: str) -> list[Json]:
        """Latest step first."""
        data: list[Json] = self._get(f"/fine_tuning/jobs/{quote(id_, safe='')}/checkpoints?limit={PAGE}")["data"]
        return data

    def ask(self, id_: str, verb: str) -> Json:
        """`cancel`, `pause` or `resume`; the job as it is then."""
        url = f"{self._base}/fine_tuning/jobs/{quote(id_, safe='')}/{verb}"
        return self._read(lambda: post_bytes(url, b"", headers=self._headers, timeout=TIMEOUT))

    def _get(self, path: str) -> Json:
        return self._read(lambda: get_json(self._base + path, headers=self._headers, timeout=TIMEOUT))

    def _read(self, send: Any) -> Json:
        try:
            answer: Answer = send()
        except Fault as fault:
            raise AccessError(
                code="J163",
                message=f"{self._base} gives no answer: {fault.reason}",
                hint="is `luthier api` running there?",
            ) from fault
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if answer.status == 200 and isinstance(value, dict):
            return value
        raise _refusal(self._base, answer.status, value)


def _refusal(base: str, status: int, value: Any) -> RecipeError | AccessError:
    error = value.get("error") if isinstance(value, dict) else None
    said = error.get("message") if isinstance(error, dict) else None
    problem = Problem(
        code="J164", message=f"{base} answers {status}: {said or 'no explanation'}",
        hint="--api-key, or LUTHIER_API_KEY" if status in (401, 403) else None,
    )  # fmt: skip
    return AccessError(problems=[problem]) if status in (401, 403) or status >= 500 else RecipeError(problems=[problem])


def _collect(page: Any, after: str | None, limit: int) -> list[Json]:
    """From pages that come newest first."""
    found: list[Json] = []
    place: str | None = None
    while True:
        events = page(place)
        for event in events:
            if event["id"] == after or (after is None and len(found) >= limit):
                return found[::-1]
            found.append(event)
        if len(events) < PAGE:
            return found[::-1]
        place = events[-1]["id"]


def _job(record: JobRecord) -> Json:
    value = asdict(record)
    for name in ("base", "lease_until", "planned_seconds", "run_name"):
        del value[name]
    return {**value, "run": record.run_name}
