"""Contract: files and uploads as the official client sends and reads them; names never become places (F17)."""

import hashlib
import io
import json
import select
import socket
from pathlib import Path

import openai
import pytest

from tests.api.serving import api

ROWS = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}\n' * 12


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "root" / "home"


@pytest.fixture(scope="module")
def server(home):
    with api(home, limits={"file_bytes": 1 << 20}) as running:
        yield running


@pytest.fixture(params=["sync", "strict"])
def client(server, request):
    with server.client(_strict_response_validation=request.param == "strict") as one:
        yield one


def test_upload_wait_read_list_delete(client):
    made = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    assert made.id.startswith("file-") and (made.bytes, made.filename) == (len(ROWS), "train.jsonl")
    assert made.purpose == "fine-tune" and made.expires_at is None
    done = client.files.wait_for_processing(made.id, poll_interval=0.01)
    assert done.status == "processed"
    assert client.files.content(made.id).read() == ROWS
    assert client.files.retrieve(made.id) == done
    assert made.id in [one.id for one in client.files.list()]
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError) as missing:
            call(made.id)
        assert missing.value.body["message"] and missing.value.type == "not_found_error"


def test_pages_follow_each_other_and_end(client):
    made = [client.files.create(file=(f"{n}.jsonl", ROWS), purpose="batch").id for n in range(5)]
    listed = [one.id for one in client.files.list(purpose="batch", limit=2)]
    assert listed[:5] == made[::-1]
    assert [one.id for one in client.files.list(purpose="batch", limit=2, order="asc")][-5:] == made
    page = client.files.list(purpose="batch", limit=2)
    assert page.has_more is True and len(page.data) == 2 and page.last_id == page.data[-1].id
    assert list(client.files.list(purpose="vision")) == []
    assert client.files.list(purpose="batch").has_more is False, "or the client asks for ever"
    for bad in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-none"}, {"extra_query": {"x": 1}}):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            client.files.list(**bad)
        assert refused.value.param == next(iter(bad)).replace("extra_query", "x")


def test_expiry_is_kept_and_bounded(client):
    made = client.files.create(
        file=("a.jsonl", ROWS), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    for seconds in (3599, 2592001, -1):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            client.files.create(
                file=("a.jsonl", ROWS), purpose="user_data", expires_after={"anchor": "created_at", "seconds": seconds}
            )


def test_what_is_no_file_is_refused(server, client):
    cases = [
        ({"file": ("a.jsonl", b""), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.jsonl", ROWS), "purpose": "nonsense"}, "purpose"),
    ]
    for asked, param in cases:
        with pytest.raises(openai.BadRequestError) as refused:
            client.files.create(**asked)
        assert refused.value.param == param
    part = b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    whole = part % (b"purpose", b"", b"fine-tune") + part % (b"file", b'; filename="a"', b"x") + b"--B--\r\n"
    broken = {
        "no boundary": ("multipart/form-data", whole),
        "cut off": ("multipart/form-data; boundary=B", whole[:-12]),
        "no file": ("multipart/form-data; boundary=B", part % (b"purpose", b"", b"x") + b"--B--\r\n"),
        "file without a name": ("multipart/form-data; boundary=B", part % (b"file", b"", b"x") + b"--B--\r\n"),
        "unknown part": ("multipart/form-data; boundary=B", part % (b"other", b"", b"x") + b"--B--\r\n"),
        "twice": ("multipart/form-data; boundary=B", part % (b"purpose", b"", b"x") * 2 + b"--B--\r\n"),
        "long field": ("multipart/form-data; boundary=B", part % (b"purpose", b"", b"x" * 5000) + b"--B--\r\n"),
        "long header": ("multipart/form-data; boundary=B", part % (b"f" * 9000, b"", b"x") + b"--B--\r\n"),
        "no name": ("multipart/form-data; boundary=B", b"--B\r\nX: y\r\n\r\nx\r\n--B--\r\n"),
        "other boundary": ("multipart/form-data; boundary=C", whole),
        "empty": ("multipart/form-data; boundary=B", b""),
    }
    import http.client

    for what, (kind, body) in broken.items():
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/files", body=body, headers={"Content-Type": kind})
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        assert answer.status == 400 and error["message"] and error["type"] == "invalid_request_error", what
        connection.close()
    assert not [path for path in server.store.files_folder.iterdir() if not path.name.startswith("file-")], "leftovers"


def test_files_that_are_too_large_are_refused_early(server, client):
    with pytest.raises(openai.APIStatusError) as large:
        client.files.create(file=("a.jsonl", b"x" * (40 << 20)), purpose="fine-tune")
    assert large.value.status_code == 413
    # 600 MB of which nobody said how many they are: the answer comes long before their end.
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    )
    begun = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    piece = b"x" * (1 << 20)
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as plain:
        plain.sendall(head + b"%x\r\n%s\r\n" % (len(begun), begun))
        sent = 0
        while not select.select([plain], [], [], 0)[0]:
            assert sent < 100 << 20, "no answer"
            plain.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent += len(piece)
        assert plain.recv(100).startswith(b"HTTP/1.1 413")
    assert not [path for path in server.store.files_folder.iterdir() if not path.name.startswith("file-")], "leftovers"


def test_uploads_in_parts(client):
    done = client.uploads.upload_file_chunked(
        file=ROWS, filename="big.jsonl", bytes=len(ROWS), mime_type="application/jsonl", purpose="fine-tune",
        part_size=200, md5=hashlib.md5(ROWS).hexdigest(),
    )  # fmt: skip
    assert done.status == "completed" and done.file is not None and done.file.bytes == len(ROWS)
    assert client.files.content(done.file.id).read() == ROWS
    assert client.files.retrieve(done.file.id).status == "processed"


def test_uploads_by_hand_in_any_order_and_their_mistakes(client):
    upload = client.uploads.create(bytes=6, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert (upload.status, upload.file, upload.object) == ("pending", None, "upload")
    second = client.uploads.parts.create(upload.id, data=io.BytesIO(b"def"))
    first = client.uploads.parts.create(upload.id, data=b"abc")
    assert first.upload_id == upload.id and first.object == "upload.part"
    for ids, md5 in (([first.id], None), ([first.id, "part_x"], None), ([], None), ([first.id, second.id], "0" * 32)):
        with pytest.raises(openai.BadRequestError):
            client.uploads.complete(upload.id, part_ids=ids, **({"md5": md5} if md5 else {}))
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
    assert client.files.content(done.file.id).read() == b"abcdef"
    for call in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x")):
        with pytest.raises(openai.ConflictError) as ended:
            call()
        assert ended.value.response.headers["x-should-retry"] == "false"
    other = client.uploads.create(bytes=6, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert client.uploads.cancel(other.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel("upload_none")
    with pytest.raises(openai.BadRequestError):
        client.uploads.create(bytes=0, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")


HOSTILE = [
    "../x", "..", ".", "../../etc/passwd", "/etc/passwd", "//x", "a/b", "a/../b", "./x", "x/..", "%2e%2e/x",
    "%2e%2e%2fx", "..%2fx", "%2fetc%2fpasswd", "..%5cx", "a%00b", "..\\x", "C:\\x", "c:x/y", "\\\\host\\share",
    "a\\b", "a\x00b", "\x00", "a\nb", "a\rb", "a\x1bb", "a\tb", "\x7f", "x" * 300, "é" * 200, "CON", "nul",
    "COM1.txt", "aux.jsonl", "lpt9", "..;/x", "..%c0%afx", "../home_x/a", "~/x/y", " /x",
]  # fmt: skip


# The reader of multipart bodies cuts what looks like a browser's whole path; the last one leads nowhere.
ONLY_NAMES = {"C:\\x": "x", "\\\\host\\share": "share", "..%c0%afx": "..%c0%afx"}


def _tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_no_place(server, home, name):
    root = home.parent.parent
    before = _tree(root)
    body = (
        b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--B\r\nContent-Disposition: '
        b'form-data; name="file"; filename="%s"\r\n\r\nx\r\n--B--\r\n' % name.encode().replace(b"\\", b"\\\\")
    )  # fmt: skip
    import http.client

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/v1/files", body=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    if name in ONLY_NAMES:
        assert answer.status == 200 and told["filename"] == ONLY_NAMES[name]
        server.store.delete_file(told["id"], "local")
    else:
        assert 400 <= answer.status < 500 and told["error"]["message"], answer.status
    connection.close()
    if name == "..%c0%afx":
        return
    upload = {"bytes": 3, "filename": name, "mime_type": "x", "purpose": "fine-tune"}
    status, told = server.ask("/v1/uploads", method="POST", body=upload)
    assert 400 <= status < 500, told
    from urllib.parse import quote

    for path in ("/v1/files/{}", "/v1/files/{}/content", "/v1/fine_tuning/jobs/{}", "/v1/models/{}"):
        status, told = server.ask(path.format(quote(name, safe="")))
        assert status in (400, 404, 405) and told["error"]["message"], (path, status)
        assert str(root) not in json.dumps(told)
    own = {str((home / name).relative_to(root)) for name in ("files", "service.db-wal", "service.db-shm")}
    assert _tree(root) - before <= own


def test_a_file_that_was_swapped_for_a_link_is_not_followed(server, client, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    made = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    blob = server.store.file_path(server.store.file(made.id))
    blob.unlink()
    blob.symlink_to(secret)
    status, _, body = server.get(f"/v1/files/{made.id}/content")
    assert b"the secret" not in body and status >= 400
    blob.unlink()
