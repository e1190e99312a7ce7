"""Routes of runs: the list, one run, its logs, its stream, what can be asked of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from luthier.runtime.errors import Problem, RecipeError
from luthier.studio.context import Studio
from luthier.studio.evals import AskedAnswers, answer_rows, evaluations
from luthier.studio.http.asked import body_of, field, number, page_of, word
from luthier.studio.http.errors import JsonAnswer, StudioError
from luthier.studio.http.sse import NamedEvents
from luthier.studio.runs.actions import act
from luthier.studio.runs.details import details
from luthier.studio.runs.listing import Asked, listing
from luthier.studio.runs.live import RunStream, list_stream
from luthier.studio.runs.logs import event_record, metric_record, read_all, sample_record, thin
from luthier.studio.store import Notes

__all__ = ["RunRoutes"]

_TAGS, _TAG, _NOTES = 20, 40, 10_000
_LEVELS = ("info", "warn", "error")
_REPORT_POLICY = "sandbox; default-src 'none'"


class RunRoutes:
    """The routes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    async def list(self, request: Request) -> Response:
        """`GET /studio/api/runs`."""
        query = request.query_params
        offset, limit = page_of(query)
        asked = Asked(
            offset=offset, limit=limit, q=word(query, "q"), sort=word(query, "sort", "-updated_at"),
            status=tuple(filter(None, word(query, "status").split(","))), pinned=query.get("pinned") == "1",
            tag=word(query, "tag"),
        )  # fmt: skip
        return JsonAnswer(await asyncio.to_thread(listing, self.studio.index, asked))

    async def list_stream(self, request: Request) -> Response:
        """`GET /studio/api/runs/stream`."""
        return NamedEvents(list_stream(self.studio.index))

    async def one(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN`."""
        ident = request.path_params["run"]

        def look() -> JsonAnswer:
            line = self.studio.index.one(ident)
            return JsonAnswer(details(self.studio.folder(ident), line, runs=self.studio.settings.runs))

        return await asyncio.to_thread(look)

    async def change(self, request: Request) -> Response:
        """`PATCH /studio/api/runs/RUN`."""
        ident = request.path_params["run"]
        body = await body_of(request, {"pinned": bool, "tags": list, "notes": str})
        tags = body.get("tags", [])
        problems = []
        if len(tags) > _TAGS or any(not isinstance(tag, str) or not 0 < len(tag.strip()) <= _TAG for tag in tags):
            problems.append(Problem(code="W103", message=f"tags: at most {_TAGS} texts of 1 to {_TAG} characters"))
        if len(body.get("notes", "")) > _NOTES:
            problems.append(Problem(code="W103", message=f"notes: at most {_NOTES:,} characters"))
        if problems:
            raise RecipeError(problems=problems)
        if "tags" in body:
            body["tags"] = tuple(dict.fromkeys(tag.strip() for tag in tags))

        def write() -> JsonAnswer:
            self.studio.index.one(ident)  # it must be there
            notes = self.studio.store.all_notes().get(ident, Notes())
            self.studio.store.put_notes(ident, replace(notes, **body))
            return JsonAnswer({"run": self.studio.index.one(ident)})

        return await asyncio.to_thread(write)

    async def act(self, request: Request) -> Response:
        """`POST /studio/api/runs/RUN/actions`."""
        ident = request.path_params["run"]
        action = field(await body_of(request, {"action": str}), "action")

        def do() -> JsonAnswer:
            said = act(self.studio.index, ident, action)
            return JsonAnswer({"run": self.studio.index.one(ident), "said": said}, 202)

        return await asyncio.to_thread(do)

    # -- logs

    async def metrics(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/metrics`."""
        since = number(request.query_params, "since", 0, least=0, most=1 << 40)
        points = number(request.query_params, "points", 2_000, least=10, most=100_000)
        file = self.studio.folder(request.path_params["run"]) / "metrics.jsonl"

        def read() -> JsonAnswer:
            found, place = read_all(file)
            rows = [metric_record(line, value) for line, value in found if line >= since]
            kept, thinned = thin(rows, points)
            return JsonAnswer({"rows": kept, "next": place.line, "total": place.line, "thinned": thinned})

        return await asyncio.to_thread(read)

    async def log(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/log`: events, newest first."""
        offset, limit = page_of(request.query_params)
        level = word(request.query_params, "level")
        if level and level not in _LEVELS:
            raise RecipeError(code="W103", message=f"level must be one of {', '.join(_LEVELS)}")
        file = self.studio.folder(request.path_params["run"]) / "events.jsonl"

        def read() -> JsonAnswer:
            found, _ = read_all(file)
            events = [event_record(line, value) for line, value in reversed(found)]
            events = [event for event in events if not level or event["level"] == level]
            return JsonAnswer(
                {"total": len(events), "offset": offset, "limit": limit, "events": events[offset : offset + limit]}
            )

        return await asyncio.to_thread(read)

    async def samples(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/samples`: newest first."""
        offset, limit = page_of(request.query_params)
        file = self.studio.folder(request.path_params["run"]) / "samples.jsonl"

        def read() -> JsonAnswer:
            found, _ = read_all(file)
            page = list(reversed(found))[offset : offset + limit]
            samples = [sample_record(line, value) for line, value in page]
            return JsonAnswer({"total": len(found), "offset": offset, "limit": limit, "samples": samples})

        return await asyncio.to_thread(read)

    async def stream(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/stream`."""
        ident = request.path_params["run"]
        stream = RunStream(self.studio.index, self.studio.system, ident, self.studio.folder(ident))
        stream.begin(request.headers.get("last-event-id"))
        return NamedEvents(stream.events())

    async def report(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/report`: report.html as a download; it never runs under our address."""
        ident = request.path_params["run"]
        file = self.studio.folder(ident) / "report.html"
        if file.is_symlink() or not file.is_file():
            raise StudioError(404, "this run has no report yet", code="W106")
        data = await asyncio.to_thread(file.read_bytes)
        name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in ident)[:80]
        headers = {
            "Content-Disposition": f'attachment; filename="{name}-report.html"', "Cache-Control": "no-store",
            "Content-Security-Policy": _REPORT_POLICY,
        }  # fmt: skip
        return Response(data, media_type="text/html", headers=headers)

    # -- scores

    async def evals(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/evals`."""
        ident = request.path_params["run"]

        def look() -> JsonAnswer:
            line = self.studio.index.one(ident)
            return JsonAnswer(evaluations(self.studio.folder(ident), line, self.studio.scores))

        return await asyncio.to_thread(look)

    async def eval_rows(self, request: Request) -> Response:
        """`GET /studio/api/runs/RUN/evals/TASK/rows`."""
        query = request.query_params
        offset, limit = page_of(query)
        asked = AskedAnswers(
            offset=offset, limit=limit, sort=word(query, "sort", "change"), only=word(query, "only", "all"),
            q=word(query, "q"),
        )  # fmt: skip
        folder = self.studio.folder(request.path_params["run"])
        return JsonAnswer(
            await asyncio.to_thread(answer_rows, folder, request.path_params["task"], asked, self.studio.scores)
        )

    async def system(self, request: Request) -> Response:
        """`GET /studio/api/system`."""
        return JsonAnswer(await asyncio.to_thread(self.studio.system.now))
