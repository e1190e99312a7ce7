"""The server answers its own page and nobody else."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.annotate.server import MAX_BODY, Page, _json, serve
from luthier.runtime.errors import EnvironmentProblem
from tests.annotate.support import chats, desk, pairs, says, user


class Client:
    def __init__(self, address: str) -> None:
        self.host, _, rest = address.removeprefix("http://").partition("/")
        self.token = rest.strip("/")

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and value; a header of `-` is not sent."""
        link = http.client.HTTPConnection(self.host, timeout=60)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"Host": self.host}
        if method == "POST":
            sent |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        link.putrequest(method, path, skip_host=True)
        for name, value in sent.items():
            if value != "-":
                link.putheader(name, value)
        if data is not None and "Content_Length" not in headers:
            link.putheader("Content-Length", str(len(data)))
        link.endheaders(data)
        reply = link.getresponse()
        text = reply.read().decode()
        link.close()
        kind = reply.headers.get_content_type()
        return reply.status, reply.headers, json.loads(text) if kind == "application/json" else text

    def act(self, action: str, hash_: str | None = None, name: str = "ann", **keys: Any) -> tuple[int, Any]:
        body = {"annotator": name, "action": action, "hash": hash_, **keys}
        status, _, value = self.ask("POST", f"/{self.token}/act", body)
        return status, value

    def state(self, name: str = "ann") -> Any:
        return self.ask("GET", f"/{self.token}/state?annotator={name}")[2]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Client, Page]]:
    page = Page(desk(tmp_path / "a.jsonl", [*chats(3), *pairs(0)]), annotator="ann")
    server, address = serve(page)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield Client(address), page
    server.shutdown()
    server.server_close()


def test_a_whole_session_over_the_wire(world: tuple[Client, Page]) -> None:
    client, page = world
    state = client.state()
    assert state["row"]["number"] == 1 and state["counts"] == {"rows": 3, "decided": 0, "skipped": 0}
    _, state = client.act("accept", state["row"]["hash"])
    _, state = client.act("tag", state["row"]["hash"], text="odd")
    assert state["row"]["tags"] == ["odd"]
    _, state = client.act("edit", state["row"]["hash"], edits={"0": "better"})
    _, state = client.act("skip", state["row"]["hash"])
    assert state["row"] is None and state["counts"] == {"rows": 3, "decided": 2, "skipped": 1}
    _, state = client.act("show_skipped")
    assert state["row"]["number"] == 3
    _, state = client.act("jump", number=2)
    assert state["row"]["decision"] == "edit"
    _, state = client.act("undo")
    assert state["row"]["number"] == 3, "the skip is taken back first"
    _, state = client.act("back")
    assert state["row"]["number"] == 2
    assert [record.action for record in page.desk.log.records] == ["accept", "tag", "edit", "skip", "undo"]
    assert all(record.seconds is not None for record in page.desk.log.records if record.action in {"accept", "edit"})


def test_annotators_are_kept_apart(world: tuple[Client, Page]) -> None:
    client, page = world
    first, second = client.state("ann"), client.state("B%C3%B6")
    assert second["annotator"] == "Bö"
    client.act("accept", first["row"]["hash"])
    client.act("reject", second["row"]["hash"], "Bö")
    assert [(record.annotator, record.action, record.line) for record in page.desk.log.records] == [
        ("ann", "accept", 1), ("Bö", "reject", 1),
    ]  # fmt: skip


def test_a_decision_about_another_row_is_refused(world: tuple[Client, Page]) -> None:
    client, page = world
    old = client.state()["row"]["hash"]
    client.act("accept", old)
    status, value = client.act("accept", old)  # a second window, or a double click
    assert status == 400 and "another window" in value["error"]
    assert len(page.desk.log.records) == 1


def test_only_the_address_with_the_secret_opens(world: tuple[Client, Page]) -> None:
    client, _ = world
    for path in ("/", "/state", "/x/state", f"/{client.token[:-1]}/", f"/{client.token}x/", "/%2e%2e/etc/passwd", "//"):
        status, headers, value = client.ask("GET", path)
        assert status == 403 and "secret" in value["error"]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path in ("nothing", "../items.py", "page.html"):
        assert client.ask("GET", f"/{client.token}/{path}")[0] == 404
    assert client.ask("GET", f"/{client.token}/")[0] == 200
    assert len(client.token) >= 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "-"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "-"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": str(MAX_BODY + 1)}, 413),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "-"}, 411),
    ],
)
def test_what_another_page_could_send_is_refused(
    world: tuple[Client, Page], headers: dict[str, str], status: int
) -> None:
    client, page = world
    body = {"annotator": "ann", "action": "accept", "hash": client.state()["row"]["hash"]}
    assert client.ask("POST", f"/{client.token}/act", body, **headers)[0] == status
    assert page.desk.log.records == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"action": "accept"}', b'{"annotator": 7}', b'{"annotator": "a", "action": "rm"}',
     b'{"annotator": "a", "action": "jump", "number": "1"}', b'{"annotator": "a", "annotator": "b"}',
     b'{"annotator": "a\\u001b", "action": "accept"}', b'{"annotator": "ann", "action": "accept", "edits": [1]}'],
)  # fmt: skip
def test_nonsense_is_refused_with_a_reason(world: tuple[Client, Page], body: bytes) -> None:
    client, page = world
    status, _, value = client.ask("POST", f"/{client.token}/act", body)
    assert status == 400 and value["error"]
    assert page.desk.log.records == []


def test_a_page_of_a_blind_pair_cannot_tell(tmp_path: Path) -> None:
    page = Page(desk(tmp_path / "a.jsonl", [{**pairs(1)[0], "chosen_score": 5}]))
    text = json.dumps(page.state("ann"))
    assert "chosen" not in text and "rejected" not in text and "first" not in text


def test_characters_that_cannot_be_seen_are_shown_by_number(tmp_path: Path) -> None:
    page = Page(desk(tmp_path / "a.jsonl", [{"messages": [user("a\u202eb\x1b[31m"), says("x\u202e")]}]))
    row = json.loads(_json(page.state("ann"))[0])["row"]
    assert row["blocks"][0]["text"] == "a<U+202E>b<U+001B>[31m"
    assert row["slots"] == ["x\u202e"], "a text to edit comes as it is"


def test_it_listens_on_this_machine_alone_and_says_when_a_port_is_taken(world: tuple[Client, Page]) -> None:
    client, page = world
    port = int(client.host.rpartition(":")[2])
    with pytest.raises(EnvironmentProblem, match="D299"):
        serve(page, port=port)
    with socket.socket() as other:
        other.settimeout(0.5)
        assert other.connect_ex((socket.gethostbyname(socket.gethostname()), port)) != 0 or (
            socket.gethostbyname(socket.gethostname()).startswith("127.")
        )
