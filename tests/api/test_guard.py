"""Contract: who may do what, from where, how often, with how large a body; what is written down of it (F19 to F23)."""

import json
import logging
import select
import socket

import openai
import pytest
from starlette.routing import Route

from luthier.api.caller import RULES, Rule, rule_for, scopes_for
from luthier.jobs.store import Store
from tests.api.serving import api, until
from tests.support.tiny import save_tiny

ROWS = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}\n' * 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with keys, and one base."""
    folder = tmp_path_factory.mktemp("guard")
    store = Store.open(folder / "home")
    store.new_key("first", "root", {"admin"})
    models = {"tiny": save_tiny(folder / "tiny")}
    with api(folder / "home", store=store, models=models, wrong_keys_per_minute=1000) as running:
        yield running


def requests_of(app):
    """(method, path) of every route, with something in its places."""
    for route in app.routes:
        assert isinstance(route, Route)
        path = route.path
        for name in ("file_id", "upload_id", "job_id", "permission_id", "name:path", "name"):
            path = path.replace("{" + name + "}", "x")
        yield from ((method, path) for method in route.methods if method != "HEAD")


def test_every_route_needs_a_key(server):
    asked = [*requests_of(server.app), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/no"), ("POST", "/")]
    assert len(asked) > 30
    for method, path in asked:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp4"}, {"Authorization": "x"}):
            status, answered, body = server.get(
                path, method=method, headers=headers, body=b"{}" if method == "POST" else None
            )
            if path == "/health":
                assert status == 200 and json.loads(body) == {"status": "ok"}
                continue
            assert status == 401, (method, path, status)
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
            assert answered["WWW-Authenticate"] == "Bearer"
    assert server.get("/v1/models?api_key=" + server.key())[0] == 401, "keys in addresses end up in logs"


def test_every_route_has_a_rule(server):
    for _, path in requests_of(server.app):
        assert path == "/health" or rule_for(path, RULES).prefix, f"no rule for {path}: only the admin could use it"
    assert scopes_for("/something/new", "GET") == {"admin"}, "what nobody thought of is the admin's"
    assert scopes_for("/v1/files_x", "GET") == {"admin"}, "a sibling of a path is not below it"


SCOPED = [
    ("files", "GET", "/v1/files", 200), ("files", "POST", "/v1/uploads", 400), ("files", "GET", "/v1/models", 403),
    ("files", "GET", "/v1/fine_tuning/jobs", 403), ("files", "POST", "/v1/chat/completions", 403),
    ("jobs", "GET", "/v1/fine_tuning/jobs", 200), ("jobs", "GET", "/v1/files", 200),
    ("jobs", "POST", "/v1/uploads", 403),
    ("jobs", "DELETE", "/v1/models/tiny", 403), ("jobs", "POST", "/v1/fine_tuning/alpha/graders/validate", 400),
    ("models", "GET", "/v1/models", 200), ("models", "DELETE", "/v1/models/none", 404),
    ("models", "POST", "/v1/fine_tuning/jobs", 403), ("chat", "GET", "/v1/models", 200),
    ("chat", "POST", "/v1/completions", 400), ("chat", "DELETE", "/v1/models/none", 403),
    ("read", "GET", "/v1/files", 200), ("read", "GET", "/v1/fine_tuning/jobs", 200), ("read", "GET", "/metrics", 200),
    ("read", "GET", "/health/details", 200), ("read", "POST", "/v1/uploads", 403),
    ("read", "DELETE", "/v1/files/x", 403),
    ("read", "POST", "/v1/chat/completions", 403), ("files", "GET", "/metrics", 403),
    ("models", "DELETE", "/admin/models/none", 403), ("read", "POST", "/admin/models", 403),
    ("admin", "POST", "/v1/chat/completions", 400), ("admin", "DELETE", "/admin/models/none", 404),
    ("admin", "GET", "/metrics", 200), ("admin", "POST", "/admin/models", 404), ("read", "GET", "/v1/none", 403),
]  # fmt: skip


def test_scopes_open_what_they_name_and_no_more(server):
    keys = {scope: server.key("sam", scope) for scope in ("files", "jobs", "models", "chat", "read", "admin")}
    for scope, method, path, expected in SCOPED:
        status, told = (
            server.ask(path, keys[scope], method=method, body={} if method == "POST" else None)
            if path != "/metrics"
            else (server.get(path, headers={"Authorization": f"Bearer {keys[scope]}"})[0], None)
        )
        assert status == expected, (scope, method, path, told)
        if expected == 403 and told:
            assert told["error"]["code"] == "missing_scope" and told["error"]["type"] == "permission_error"


def test_owners_see_their_own_and_admins_everybodys(server):
    ann, bob, admin = (
        server.client(server.key("ann")),
        server.client(server.key("bob")),
        server.client(server.key("root", "admin")),
    )
    hers = ann.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    his = bob.files.create(file=("b.jsonl", ROWS), purpose="fine-tune")
    assert [one.id for one in ann.files.list()] == [hers.id]
    assert {hers.id, his.id} <= {one.id for one in admin.files.list()}
    upload = ann.uploads.create(bytes=3, filename="a", mime_type="x", purpose="fine-tune")
    for call in (
        lambda: bob.files.retrieve(hers.id),
        lambda: bob.files.delete(hers.id),
        lambda: bob.files.content(hers.id),
        lambda: bob.files.list(after=hers.id),
        lambda: bob.uploads.parts.create(upload.id, data=b"abc"),
        lambda: bob.uploads.cancel(upload.id),
        lambda: bob.uploads.complete(upload.id, part_ids=["x"]),
        lambda: bob.fine_tuning.jobs.create(model="tiny", training_file=hers.id),
    ):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as refused:
            call()
        assert refused.value.code == "J102"
        # As for one that is not there: whether another has it is not told.
        assert "bob" not in refused.value.message and "ann" not in refused.value.message
    assert admin.files.retrieve(his.id).id == his.id


def test_a_revoked_key_ends_at_once_and_wrong_keys_are_told_apart_from_missing_scopes(server):
    text = server.key("eve", "files")
    client = server.client(text)
    assert client.files.list().data == []
    key = next(one for one in server.store.keys("eve"))
    server.store.revoke(key.id)
    with pytest.raises(openai.AuthenticationError):
        client.files.list()


def test_six_wrong_keys_in_a_minute_are_too_many(tmp_path):
    store = Store.open(tmp_path / "home")
    right = store.new_key("a", "ann", {"files"})[1]
    with api(tmp_path / "home", store=store) as server:
        assert server.ask("/v1/files", right)[0] == 200
        for _ in range(5):
            assert server.ask("/v1/files", "lk-wrong")[0] == 401
        status, headers, body = server.get("/v1/files", headers={"Authorization": "Bearer lk-wrong"})
        assert status == 429 and json.loads(body)["error"]["type"] == "rate_limit_error"
        assert 1 <= int(headers["Retry-After"]) <= 60 and headers["x-should-retry"] == "false"
        # Others behind the same address are not locked out: keys have 256 random bits.
        assert server.ask("/v1/files", right)[0] == 200
        with pytest.raises(openai.RateLimitError):
            server.client("lk-wrong", max_retries=2).files.list()
        assert len([line for line in store.audit_lines() if line["action"] == "wrong key"]) == 5


def test_requests_over_the_keys_limit_wait(server):
    client = server.client(server.key("tim", "files", requests_per_minute=3))
    for _ in range(3):
        client.files.list()
    with pytest.raises(openai.RateLimitError) as slow:
        client.files.list()
    assert 1 <= int(slow.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    "headers", [
        {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "[x"}, {"Host": ""},
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:1"}, {"Origin": "file://"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("keyed", [True, False])
def test_foreign_hosts_and_origins_reach_nothing(server, keyless, headers, keyed):
    to = server if keyed else keyless
    sent = {**headers, **({"Authorization": f"Bearer {server.key()}"} if keyed else {})}
    for path, method in (("/v1/models", "GET"), ("/v1/fine_tuning/jobs", "POST"), ("/health", "GET")):
        status, answered, body = to.get(path, method=method, headers=sent, body=b"{}" if method == "POST" else None)
        assert status == 403 and json.loads(body)["error"]["code"] in ("foreign_host", "foreign_origin")
        assert "Access-Control-Allow-Origin" not in answered


@pytest.fixture(scope="module")
def keyless(tmp_path_factory):
    with api(tmp_path_factory.mktemp("keyless") / "home", allowed_origins=["https://tools.example"]) as running:
        yield running


def test_its_own_pages_and_allowed_ones_may_ask(keyless):
    host = keyless.url.removeprefix("http://")
    for origin in (keyless.url, "https://tools.example"):
        status, answered, _ = keyless.get("/v1/models", headers={"Origin": origin})
        assert status == 200 and "Access-Control-Allow-Origin" not in answered
    port = host.rpartition(":")[2]
    assert (
        keyless.get("/v1/models", headers={"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"})[0] == 200
    )


def test_without_keys_this_machine_may_do_everything_until_there_is_one(tmp_path):
    with api(tmp_path / "home") as server:
        client = server.client("sk-anything")
        made = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
        assert server.ask("/v1/files")[1]["data"][0]["id"] == made.id
        key, text = server.store.new_key("first", "root", {"admin"})
        assert server.ask("/v1/files")[0] == 401 and server.ask("/v1/files", text)[0] == 200
        server.store.revoke(key.id)
        assert server.ask("/v1/files")[0] == 401, "revoking the last key does not open the server"
    with api(tmp_path / "home") as again:
        assert again.ask("/v1/files")[0] == 401, "nor does a restart"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=B", None]
)
def test_forms_of_pages_start_no_job(keyless, kind):
    import http.client

    for path in ("/v1/fine_tuning/jobs", "/v1/uploads", "/v1/chat/completions", "/v1/fine_tuning/jobs/x/cancel"):
        connection = http.client.HTTPConnection(keyless.url.removeprefix("http://"), timeout=60)
        connection.request("POST", path, body=b'{"model": "x"}', headers={"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        assert answer.status == 415 and json.loads(answer.read())["error"]["code"] == "unsupported_media_type"
        connection.close()


def test_security_headers_stand_on_every_answer(server):
    key = server.key("ann")
    for path, headers in (
        ("/v1/files", {"Authorization": f"Bearer {key}"}),
        ("/v1/files", {}),
        ("/health", {}),
        ("/x", {}),
    ):
        answered = server.get(path, headers=headers)[1]
        assert answered["X-Content-Type-Options"] == "nosniff" and answered["Cache-Control"] == "no-store"
        assert answered["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in answered


def test_large_headers_addresses_and_bodies_are_refused(server):
    key = server.key("ann")
    assert server.ask("/v1/files?after=" + "a" * 9000, key)[0] in (400, 414)
    # h11 itself refuses headers over 16 KiB; what is said then is its own.
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as plain:
        try:
            plain.sendall(b"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: " + b"a" * 200_000)
            said = plain.recv(100)
        except ConnectionError:
            said = b""
        assert said == b"" or said.startswith(b"HTTP/1.1 400")
    body = b'{"x": "' + b"a" * (9 << 20) + b'"}'
    status, told = server.ask("/v1/fine_tuning/jobs", key, method="POST", body=body)
    assert status == 413 and told["error"]["code"] == "body_too_large"
    import http.client

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    pieces = iter([b'{"x": "', *[b"a" * (1 << 20)] * 9, b'"}'])
    connection.request("POST", "/v1/fine_tuning/jobs", body=pieces, encode_chunked=True, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "body_too_large"
    connection.close()
    for length in ("-1", "x", "1e3", "9" * 30):
        with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as plain:
            plain.sendall(f"POST /v1/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode())
            assert plain.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 401"))


def test_header_twice_is_refused(server):
    key = server.key("ann")
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as plain:
        twice = f"Authorization: Bearer x\r\nAuthorization: Bearer {key}\r\n"
        plain.sendall(f"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\n{twice}\r\n".encode())
        assert plain.recv(100).startswith(b"HTTP/1.1 400")


def test_200_half_open_connections_do_not_hold_the_server_up(server, monkeypatch):
    from luthier.serve.connections import PatientProtocol

    address = server.url.removeprefix("http://").split(":")
    for patience in (120.0, 0.2):
        monkeypatch.setattr(PatientProtocol, "header_seconds", patience)
        half = [socket.create_connection(address, timeout=60) for _ in range(200)]
        try:
            for index, one in enumerate(half):
                one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0" if index % 2 else b"")
            assert server.get("/health")[0] == 200
            if patience > 60:
                assert select.select(half, [], [], 0)[0] == [], "answered while all of them are open"
            else:
                assert all(one.recv(1) == b"" for one in half), "it was not cut off"
        finally:
            for one in half:
                one.close()


def test_a_body_that_stops_coming_is_given_up(tmp_path):
    begun = (
        b"POST /v1/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    with api(tmp_path / "home", body_idle_seconds=0.3) as server:
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection(address, timeout=60) as slow:
            slow.sendall(begun)
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        with socket.create_connection(address, timeout=60) as gone:
            gone.sendall(begun)
        assert server.get("/health")[0] == 200


def test_writes_are_written_down_and_reads_are_not(server):
    key = server.key("una")
    key_id = server.store.keys("una")[0].id
    client = server.client(key)
    made = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    client.files.list()
    client.files.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete("file-\nfake line")
    lines = until(
        lambda: (
            [line for line in server.store.audit_lines("una") if "fake" in line["subject"]]
            and server.store.audit_lines("una")
        )
    )
    assert [(line["action"], line["outcome"]) for line in lines] == [
        ("POST /v1/files", "200"), ("DELETE /v1/files/{file_id}", "200"), ("DELETE /v1/files/{file_id}", "404"),
    ]  # fmt: skip
    assert all(line["address"] == "127.0.0.1" and key_id in line["subject"] for line in lines)
    assert made.id in lines[0]["subject"] and made.id in lines[1]["subject"]
    assert "\n" not in lines[2]["subject"] and key not in json.dumps(lines)


def test_a_fault_is_told_without_its_trace_and_logged_without_secrets(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("CANARY_API_KEY", "canary-value-1234567890")

    async def broken(request):
        raise RuntimeError(f"at {tmp_path}/x with canary-value-1234567890 and Bearer {request.headers.get('x-key')}")

    routes, rules = [Route("/v1/broken", broken)], [Rule("/v1/broken", frozenset({"files"}))]
    with caplog.at_level(logging.DEBUG), api(tmp_path / "home", routes=routes, rules=rules) as server:
        status, headers, body = server.get("/v1/broken", headers={"X-Key": "lk-canary-of-a-header-123456"})
        assert status == 500 and json.loads(body)["error"]["message"] == "the server met an unexpected fault"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert server.get("/health")[0] == 200
    shown = capfd.readouterr()
    logged = "\n".join(
        [
            *(record.getMessage() for record in caplog.records if record.name.startswith(("luthier", "uvicorn"))),
            shown.err,
            shown.out,
        ]
    )
    assert "RuntimeError" in logged
    for secret in ("canary-value-1234567890", "lk-canary-of-a-header-123456", str(tmp_path)):
        assert secret not in logged and secret.encode() not in body


def test_a_path_and_secrets_in_an_error_are_taken_out(monkeypatch):
    from luthier.api.problems import as_api_error
    from luthier.runtime.errors import EnvironmentProblem

    monkeypatch.setenv("SOME_TOKEN", "canary-value-1234567890")
    error = EnvironmentProblem(
        code="R710", message="/home/ann/secret/place is full; https://u:canarypass@h/x; canary-value-1234567890"
    )
    answer = as_api_error(error)
    assert answer.status == 503
    for secret in ("/home/ann", "canarypass", "canary-value"):
        assert secret not in json.dumps(answer.body())
