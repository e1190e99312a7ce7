"""Session, addresses, proofs of writes, headers; pages and their files (F17, F19 to F23)."""

import json
import re

import pytest

from luthier.serve.http.errors import ApiError
from luthier.studio.http.routes import routes
from luthier.studio.http.session import COOKIE, Sessions, cookie_of
from tests.studio.asking import Desk
from tests.studio.folders import make_run


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path, static=built(tmp_path)) as made:
        make_run(tmp_path / "runs" / "a")
        yield made


def built(root):
    static = root / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>studio</title>")
    (static / "assets" / "index-BX12cd9_.js").write_text("export {}")
    (static / "assets" / "plain.js").write_text("1")
    (static / "favicon.svg").write_text("<svg/>")
    (static / "assets" / "leak-BX12cd9_.js").symlink_to("/etc/passwd")
    (root / "secret.js").write_text("secret")
    return static


def test_a_link_works_once_and_leaves_no_word_in_the_address(desk):
    word = desk.sessions.new_link()
    answer = desk.ask(f"/studio/login?once={word}", session=False)
    assert answer.status == 303 and answer.headers["location"] == "/studio/" and word not in str(answer.headers)
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    value = cookie.partition("=")[2].partition(";")[0]
    assert value != word and len(value) > 40
    with_it = {"cookie": f"other=1; {COOKIE}={value}"}
    assert desk.ask("/studio/api/session", session=False, headers=with_it).json["ok"] is True
    again = desk.ask(f"/studio/login?once={word}", session=False)
    assert again.status == 410 and "set-cookie" not in again.headers
    for wrong in ("", "x", word + "x", "%00"):
        assert desk.ask(f"/studio/login?once={wrong}", session=False).status == 410


def test_ending_a_session(desk):
    assert desk.ask("/studio/api/session/end", method="POST").status == 204
    assert desk.ask("/studio/api/session").status == 401


def all_routes(desk):
    found = []
    for route in routes(desk.studio, desk.sessions, chat=False):
        path = re.sub(
            r"\{(\w+)(:path)?\}",
            lambda match: {"run": "a", "task": "t", "row": "0", "pack": "0"}.get(match[1], "x"),
            route.path,
        )
        found += [(method, path) for method in route.methods if method != "HEAD"]
    return [(method, path) for method, path in found if path.startswith("/studio/api/")]


def test_every_route_wants_a_session(desk):
    table = all_routes(desk)
    assert len(table) > 35
    for method, path in table:
        answer = desk.ask(path, method=method, session=False, headers={"cookie": f"{COOKIE}=wrong"})
        assert answer.status == 401 and answer.error["code"] == "W101" and answer.error["hint"], path


def test_every_write_wants_proof_that_it_is_ours(desk):
    for method, path in all_routes(desk):
        if method == "GET":
            continue
        for headers in (
            {"x-luthier-studio": ""},
            {"x-luthier-studio": "0"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            answer = desk.ask(path, method=method, body={}, headers=headers)
            assert answer.status == 403 and answer.error["code"] == "W102", (path, headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": ""},
    ],
)
def test_foreign_addresses_are_refused(desk, headers):
    for path in ("/studio/api/runs", "/studio/", "/studio/login?once=x"):
        answer = desk.ask(path, headers=headers)
        assert answer.status == 403 and answer.error["code"] == "W102"
        assert "access-control-allow-origin" not in answer.headers


def test_our_own_origin_is_let_through(desk):
    headers = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert desk.ask("/studio/api/runs/a", method="PATCH", body={"pinned": True}, headers=headers).status == 200


def test_bodies_are_json_of_a_reasonable_size(desk):
    path = "/studio/api/recipe/check"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert desk.ask(path, method="POST", body={"text": ""}, headers={"content-type": kind}).status == 415
    assert desk.ask(path, method="POST", body=b"x" * (9 << 20)).status == 413
    assert desk.ask(path, method="POST", body=b"{}", headers={"content-length": "9" * 14}).status == 413
    for body in (
        b"{",
        b"[]",
        b"3",
        b'{"text": NaN}',
        b"\xff\xfe",
        b'{"text": 3}',
        b'{"text": "", "more": 1}',
        b"[" * 100_000,
    ):
        answer = desk.ask(path, method="POST", body=body)
        assert answer.status == 400 and answer.error["code"] == "W103" and answer.error["problems"], body[:40]


def test_keys_of_the_api_open_the_routes_but_not_by_guessing(tmp_path):
    tries = []

    async def check(key, address):
        tries.append(key)
        if len(tries) > 3:
            raise ApiError(429, "too many", code="too_many_wrong_keys", headers={"Retry-After": "9"})
        return key == "lk-right"

    with Desk(tmp_path, key_is_admin=check) as desk:
        bearer = lambda key: {"authorization": f"Bearer {key}", "x-luthier-studio": ""}  # noqa: E731
        assert desk.ask("/studio/api/runs", session=False, headers=bearer("lk-right")).status == 200
        assert desk.ask("/studio/api/runs", session=False, headers=bearer("lk-wrong")).status == 401
        assert desk.ask("/studio/api/runs", session=False, headers={"authorization": "Basic lk-right"}).status == 401
        desk.ask("/studio/api/runs", session=False, headers=bearer("x"))
        answer = desk.ask("/studio/api/runs", session=False, headers=bearer("y"))
        assert (
            answer.status == 429
            and answer.headers["retry-after"] == "9"
            and answer.error["code"] == "too_many_wrong_keys"
        )


def test_headers_of_every_answer(desk):
    for path in (
        "/studio/",
        "/studio/runs/a/live",
        "/studio/assets/index-BX12cd9_.js",
        "/studio/api/runs",
        "/studio/api/nope",
    ):
        headers = desk.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_pages(desk):
    assert desk.ask("/", session=False).headers["location"] == "/studio/"
    for path in ("/studio/", "/studio/runs/a", "/studio/compare", "/studio/no/such.page/x"):
        answer = desk.ask(path, session=False)
        assert (
            answer.status == 200 and b"<title>studio" in answer.body and answer.headers["cache-control"] == "no-cache"
        )
    script = desk.ask("/studio/assets/index-BX12cd9_.js", session=False)
    assert (
        script.headers["content-type"].startswith("text/javascript") and "immutable" in script.headers["cache-control"]
    )
    assert desk.ask("/studio/assets/plain.js").headers["cache-control"] == "no-cache"
    assert desk.ask("/studio/favicon.svg").headers["content-type"] == "image/svg+xml"
    assert desk.ask("/studio/", method="POST", session=False).status == 405


@pytest.mark.parametrize(
    "name",
    [
        "../secret.js",
        "..%2fsecret.js",
        "%2e%2e/secret.js",
        "..%5csecret.js",
        "leak-BX12cd9_.js",
        "absent.js",
        ".hidden",
        "%00",
        "a%0ab",
        "x" * 300,
        "-rf",
        "assets/../../secret.js",
    ],
)
def test_no_file_but_the_built_ones(desk, name):
    for base in ("/studio/assets/", "/studio/"):
        answer = desk.ask(f"{base}{name}")
        assert b"secret" not in answer.body and b"root:" not in answer.body
        assert answer.status in (404, 200) and (answer.status == 404 or b"<title>studio" in answer.body)


def test_a_report_is_a_download_that_runs_nothing(desk):
    answer = desk.ask("/studio/api/runs/a/report")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


def test_paths_of_the_api_go_to_it_with_the_same_proof(tmp_path):
    seen = []

    async def other(scope, receive, send):
        seen.append((scope["path"], scope.get("luthier.session")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with Desk(tmp_path, other=other) as desk:
        assert desk.ask("/v1/models").status == 200
        assert desk.ask("/v1/chat/completions", method="POST", body={}).status == 200
        assert desk.ask("/v1/chat/completions", method="POST", body={}, headers={"x-luthier-studio": ""}).status == 403
        # Without a session it is the other's guard that decides.
        assert (
            desk.ask(
                "/v1/chat/completions", method="POST", body={}, session=False, headers={"x-luthier-studio": ""}
            ).status
            == 200
        )
        assert desk.ask("/studios").status == 200
        assert seen == [
            ("/v1/models", True),
            ("/v1/chat/completions", True),
            ("/v1/chat/completions", False),
            ("/studios", True),
        ]
        assert desk.ask("/studio/api/session").json["features"]["chat"] is True


def test_without_an_api_other_paths_are_not_found(desk):
    answer = desk.ask("/v1/models")
    assert answer.status == 404 and json.loads(answer.body)["error"]["message"]


def test_sessions_are_few_and_end():
    sessions = Sessions()
    cookies = [sessions.enter(sessions.new_link()) for _ in range(201)]
    assert not sessions.knows(cookies[0]) and sessions.knows(cookies[-1])
    assert not sessions.knows(None) and not sessions.knows("") and not sessions.knows("\ud800")
    assert cookie_of(f"a=1; {COOKIE}=x; b=2") == "x" and cookie_of("") is None and cookie_of("\x00;=;;") is None
