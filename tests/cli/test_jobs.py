"""Contract: `luthier jobs` shows and steers the same jobs in a home and through a server's API."""

import http.server
import json
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from luthier.jobs.errors import ServiceError
from luthier.jobs.records import JobRecord
from luthier.jobs.store import Store
from tests.cli.calling import caller

KEY = "lk-a-key-for-tests"


@pytest.fixture
def call(monkeypatch, capfd):
    for name in ("LUTHIER_HOME", "LUTHIER_API_URL", "LUTHIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return caller(monkeypatch, capfd)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "home")


def _job(store, number, *, status="queued", **changes):
    file = store.add_file("me", "rows.jsonl", "fine-tune", [b"x"])
    id_ = f"ftjob-{number:024d}"
    store.create_job(JobRecord(**{
        "id": id_, "owner": "me", "created_at": store.now(), "model": "tiny", "base": "b",
        "method": {"type": "supervised"}, "hyperparameters": {}, "training_file": file.id, "seed": number,
        "run_name": id_, **changes,
    }))  # fmt: skip
    order = ["queued", "running", status]
    for state in order[: order.index(status) + 1]:
        store.move(id_, to=state)
    return id_


class Api:
    """Just enough of the routes, over a store; the real ones have tests of their own."""

    def __init__(self, store):
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer()

            def do_POST(self):
                self._answer()

            def _answer(self):
                parts = urlsplit(self.path)
                outer.asked.append((self.command, self.path))
                query = {key: value[0] for key, value in parse_qs(parts.query).items()}
                status, value = 200, None
                if self.headers.get("authorization") != f"Bearer {KEY}":
                    status, value = 401, {"error": {"message": "wrong key"}}
                else:
                    status, value = outer.route(store, self.command, parts.path, query)
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def route(self, store, method, path, query):
        names = path.removeprefix("/v1/fine_tuning/jobs").strip("/").split("/")
        limit, after = int(query.get("limit", 20)), query.get("after")
        assert limit <= 100
        if names == [""]:
            jobs, more = store.jobs("me", after, limit)
            return 200, {"object": "list", "data": [_wire(one) for one in jobs], "has_more": more}
        try:
            if names[1:] == ["events"]:
                events, more = store.events(names[0], after, limit)
                data = [{"id": e.id, "created_at": e.created_at, "level": e.level, "message": e.message, "type": e.type,
                         "data": dict(e.data)} for e in events]  # fmt: skip
                return 200, {"data": data, "has_more": more}
            if names[1:] == ["checkpoints"]:
                return 200, {"data": [], "has_more": False}
            if method == "POST":
                return 200, _wire(store.want(names[0], {"resume": "run"}.get(names[1], names[1])))
            return 200, _wire(store.job(names[0]))
        except ServiceError as error:
            return 404, {"error": {"message": str(error)}}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def _wire(record):
    return {"id": record.id, "object": "fine_tuning.job", "status": record.status, "model": record.model,
            "method": dict(record.method), "created_at": record.created_at, "finished_at": record.finished_at,
            "estimated_finish": None, "fine_tuned_model": record.fine_tuned_model}  # fmt: skip


@pytest.fixture(params=["home", "url"])
def where(request, store):
    """Options that lead to the same jobs on two ways."""
    if request.param == "home":
        yield ["--home", store.home]
        return
    api = Api(store)
    yield ["--url", api.url, "--api-key", KEY]
    api.close()


def test_ls_shows_newest_first_and_filters(call, store, where):
    ids = [_job(store, number, status=status) for number, status in enumerate(("succeeded", "queued", "running"))]
    said = call("jobs", "ls", "--json", *where)
    assert said.code == 0 and [job["id"] for job in said.json] == ids[::-1]
    assert [job["id"] for job in call("jobs", "ls", "--status", "queued", "--json", *where).json] == [ids[1]]
    table = call("jobs", "ls", *where)
    assert table.code == 0 and all(id_ in table.out for id_ in ids) and "succeeded" in table.out


def test_show_by_id_by_its_end_and_the_last(call, store, where):
    first, last = _job(store, 1), _job(store, 2, status="succeeded")
    for text, id_ in ((first, first), (first[-6:], first), ("last", last)):
        assert call("jobs", "show", text, "--json", *where).json["job"]["id"] == id_
    said = call("jobs", "show", "last", *where)
    assert said.code == 0 and "The job has successfully completed" in said.out


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 130)])
def test_tail_follows_to_the_end_and_its_exit_code_tells_how(call, store, where, status, code):
    id_ = _job(store, 1, status="running")
    for number in range(150):
        store.add_event(id_, "info", f"Step {number}", type="metrics", data={"step": number})

    def end():
        store.add_event(id_, "info", "late")
        store.move(
            id_, to=status, **({"error": {"code": "x", "message": "why", "param": None}} if status == "failed" else {})
        )

    timer = threading.Timer(0.5, end)
    timer.start()
    said = call("jobs", "tail", id_, "--seconds", "0.1", "--json", *where)
    timer.join()
    events = [json.loads(line) for line in said.out.splitlines()]
    messages = [event["message"] for event in events]
    assert said.code == code
    assert messages == [event.message for event in store.events_since(id_)], "each once, in order, to the last"


def test_cancel_pause_and_resume(call, store, where):
    id_ = _job(store, 1, status="running")
    assert call("jobs", "pause", id_, "--json", *where).json["status"] == "paused"
    said = call("jobs", "resume", id_, *where)
    assert said.code == 0 and "as you want it" in said.out
    assert store.job(id_).wanted == "run"
    assert call("jobs", "cancel", id_, "--json", *where).json["status"] == "cancelled"
    again = call("jobs", "resume", id_, *where)
    assert again.code == 2 and "cancelled" in again.err


def test_what_is_not_there_is_one_clear_error(call, store, where, tmp_path):
    said = call("jobs", "show", "nothing", *where)
    assert said.code == 2 and "J161" in said.err
    missing = call("jobs", "show", "ftjob-none", *where)
    assert missing.code == 2 and "ftjob-none" in missing.err
    said = call("jobs", "ls", "--home", tmp_path / "elsewhere")
    assert said.code == 2 and "J160" in said.err and not (tmp_path / "elsewhere").exists()


def test_two_jobs_of_one_end_are_not_guessed_at(call, store):
    _job(store, 1), _job(store, 100001)
    said = call("jobs", "cancel", "0001", "--home", store.home)
    assert said.code == 2 and "2 jobs end in `0001`" in said.err


def test_servers_that_are_not_there_or_refuse(call, store):
    said = call("jobs", "ls", "--url", "http://127.0.0.1:1", "--json")
    assert said.code == 6 and said.json["problems"][0]["code"] == "J163"
    said = call("jobs", "ls", "--url", "ftp://x")
    assert said.code == 2 and "J162" in said.err
    api = Api(store)
    try:
        said = call("jobs", "ls", "--url", api.url + "/v1/", "--api-key", "lk-another")
        assert said.code == 6 and "wrong key" in said.err and "lk-another" not in said.err
        call("jobs", "show", "ftjob-x/../../files", "--url", api.url, "--api-key", KEY)
        assert api.asked[-1] == ("GET", "/v1/fine_tuning/jobs/ftjob-x%2F..%2F..%2Ffiles"), "a name is never a path"
    finally:
        api.close()


def test_nothing_in_a_message_reaches_the_terminal_as_a_command(call, store):
    id_ = _job(store, 1)
    store.add_event(id_, "info", "\x1b]0;owned\x07\x1b[31m[red]x[/red]")
    said = call("jobs", "show", id_, "--home", store.home)
    assert "\x1b" not in said.out and "\x07" not in said.out and "[red]x[/red]" in said.out
