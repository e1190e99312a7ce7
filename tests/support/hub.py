"""A stand-in of the Hub's HTTP interface, on this machine and in memory: what `huggingface_hub` calls to push and pull.

Repositories, branches, commits, git's and LFS's names of contents, multipart uploads, tokens, and faults by script. No
xet: the client is told to use LFS (HF_HUB_DISABLE_XET).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_" + "w" * 30, "hf_" + "r" * 30
PART = 1 << 16
"""Larger objects come in parts of this size."""


@dataclass
class Entry:
    """A file of a commit: its own bytes, or the sha256 of an LFS object."""

    data: bytes | None = None
    sha256: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        data = self.data if self.data is not None else self.pointer()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass
class Repo:
    """Branch -> commits, the newest last; commit -> files."""

    private: bool
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Entry]) -> str:
        listed = sorted((name, entry.oid) for name, entry in files.items())
        number = sum(len(commits) for commits in self.branches.values())
        oid = hashlib.sha1(json.dumps([number, branch, listed]).encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        self.branches.setdefault(branch, []).append(oid)
        return oid

    def find(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return revision if revision in self.commits else None


class Hub:
    """`with Hub() as hub`: serves at `hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.received: Counter[str] = Counter()
        """Bytes of LFS objects that came in, by sha256."""
        self.calls: list[str] = []
        self.ignored: set[str] = set()
        """Names that a .gitignore in the repositories keeps out."""
        self.faults: list[tuple[str, int, dict[str, str], str]] = []
        """(pattern over `METHOD path`, status, headers, message): the first that matches answers, once."""
        self.first_done, self.hold = threading.Event(), False
        """`hold`: only one object is taken whole; the others are read half, and never answered."""
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        poll = {"poll_interval": 0.02}
        threading.Thread(target=self._server.serve_forever, kwargs=poll, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, *, private: bool = True, files: dict[str, bytes] | None = None) -> Repo:
        """A repository that was there before."""
        repo = self.repos[repo_id] = Repo(private)
        first = {name: Entry(data=data, size=len(data)) for name, data in (files or {}).items()}
        repo.commit("main", {".gitattributes": Entry(data=b"*.safetensors filter=lfs\n", size=25), **first})
        return repo

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Name -> bytes at the head of a branch."""
        repo = self.repos[repo_id]
        head = repo.commits[repo.branches[branch][-1]]
        return {name: self.bytes_of(entry) for name, entry in head.items()}

    def bytes_of(self, entry: Entry) -> bytes:
        return entry.data if entry.data is not None else self.objects[entry.sha256 or ""]

    def commits(self, repo_id: str, branch: str = "main") -> int:
        return len(self.repos[repo_id].branches[branch])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._read())

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        oid, part = url.path.rsplit("/", 1)[-1], parse_qs(url.query).get("part")
        length = int(self.headers["Content-Length"])
        if self.hub.hold and self.hub.first_done.is_set():
            half = self.rfile.read(length // 2)
            self.hub.received[oid] += len(half)
            threading.Event().wait(60)
        data = self.rfile.read(length)
        with self.hub.lock:
            self.hub.received[oid] += len(data)
            if part:
                self.hub.parts.setdefault(oid, {})[int(part[0])] = data
            else:
                self.hub.objects[oid] = data
                self.hub.first_done.set()
        self._send(200, {}, {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        blocks = []
        while size := int(self.rfile.readline(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        sent = {"Content-Length": str(len(data)), "X-Request-Id": "1", **(headers or {})}
        for name, text in sent.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, {"error": message}, headers)

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        call = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.calls.append(call)
            fault = next((item for item in self.hub.faults if re.search(item[0], call)), None)
            if fault is not None:
                self.hub.faults.remove(fault)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if fault is not None:
            self._send(fault[1], {"error": fault[3]}, {**fault[2], "X-Error-Message": fault[3]})
            return
        if token and token not in (WRITE, READ):
            self._fail(401, "Invalid credentials in Authorization header")
            return
        for pattern, act in ROUTES:
            match = re.fullmatch(pattern, call)
            if match:
                with self.hub.lock if "/lfs" not in path else contextlib.nullcontext():
                    act(self, token, body, **match.groupdict())
                return
        self._fail(404, f"the stand-in knows no {call}")

    # -- what is called

    def create(self, token: str, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if token != WRITE or asked["organization"] != "me":
            self._fail(
                403, f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"'
            )
        elif repo_id in self.hub.repos:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"})
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.add(repo_id, private=private)
            self._send(200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def info(self, token: str, body: bytes, repo: str, revision: str = "main") -> None:
        found = self._found(token, repo, revision)
        if found:
            kept, oid = found
            names = [{"rfilename": name} for name in kept.commits[oid]]
            self._send(200, {"id": repo, "sha": oid, "private": kept.private, "siblings": names, "tags": []})

    def tree(self, token: str, body: bytes, repo: str, revision: str) -> None:
        found = self._found(token, repo, revision)
        if found:
            kept, oid = found
            self._send(200, [_described(name, entry) for name, entry in kept.commits[oid].items()])

    def preupload(self, token: str, body: bytes, repo: str, revision: str) -> None:
        found = self._found(token, repo, revision, write=True)
        if not found:
            return
        there = found[0].commits[found[1]]
        answers = []
        for file in json.loads(body)["files"]:
            old = there.get(file["path"])
            large = file["path"].endswith((".safetensors", ".gguf")) or file["size"] > 10 << 20
            oid = (old.sha256 or old.oid) if old else None
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "oid": oid,
                            "shouldIgnore": file["path"] in self.hub.ignored})  # fmt: skip
        self._send(200, {"files": answers})

    def batch(self, token: str, body: bytes, repo: str) -> None:
        if not self._found(token, repo, "main", write=True):
            return
        objects = []
        for item in json.loads(body)["objects"]:
            oid, size = item["oid"], item["size"]
            if oid in self.hub.objects:
                objects.append({"oid": oid, "size": size})
                continue
            place = f"{self.hub.url}/lfs/{oid}"
            upload: dict[str, Any] = {"href": place, "header": {}}
            if size > PART:
                count = -(-size // PART)
                header = {f"{number:05d}": f"{place}?part={number}" for number in range(1, count + 1)}
                upload = {"href": f"{self.hub.url}/lfs-done/{oid}", "header": {"chunk_size": str(PART), **header}}
            verify = {"href": f"{self.hub.url}/lfs-verify/{oid}", "header": {}}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self._send(200, {"transfer": "basic", "objects": objects})

    def parts_done(self, token: str, body: bytes, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        self.hub.objects[oid] = b"".join(parts[number] for number in sorted(parts))
        self.hub.first_done.set()
        self._send(200, {})

    def verify(self, token: str, body: bytes, oid: str) -> None:
        data = self.hub.objects.get(oid, b"")
        good = hashlib.sha256(data).hexdigest() == oid and len(data) == json.loads(body)["size"]
        self._send(200 if good else 400, {})

    def commit(self, token: str, body: bytes, repo: str, revision: str) -> None:
        found = self._found(token, repo, revision, write=True)
        if not found:
            return
        kept, head = found
        lines = [json.loads(line) for line in body.splitlines() if line]
        parent = lines[0]["value"].get("parentCommit")
        if parent and parent != head:
            self._fail(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(kept.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = Entry(data=data, size=len(data))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self._fail(400, f"LFS object {value['oid']} is not there")
                    return
                files[value["path"]] = Entry(sha256=value["oid"], size=value["size"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = kept.commit(revision, files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""})

    def branch(self, token: str, body: bytes, repo: str, revision: str) -> None:
        found = self._found(token, repo, "main", write=True)
        if found and revision in found[0].branches:
            self._fail(409, "Reference already exists")
        elif found:
            found[0].branches[revision] = list(found[0].branches["main"])
            self._send(200, {})

    def check_yaml(self, token: str, body: bytes) -> None:
        from ruamel.yaml import YAML

        text = json.loads(body)["content"]
        front = text.split("---\n")[1] if text.startswith("---\n") else ""
        value = YAML(typ="safe", pure=True).load(front) or {}
        bad = [] if isinstance(value.get("tags", []), list) else [{"message": '"tags" must be an array'}]
        self._send(400 if bad else 200, {"errors": bad, "warnings": []})

    def resolve(self, token: str, body: bytes, repo: str, revision: str, file: str) -> None:
        found = self._found(token, repo, revision)
        if not found:
            return
        entry = found[0].commits[found[1]].get(file)
        if entry is None:
            self._fail(404, "Entry not found", "EntryNotFound")
            return
        headers = {"X-Repo-Commit": found[1], "ETag": f'"{entry.sha256 or entry.oid}"'}
        self._send(200, self.hub.bytes_of(entry), headers)

    def _found(self, token: str, repo_id: str, revision: str, *, write: bool = False) -> tuple[Repo, str] | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and token not in (WRITE, READ)):
            self._fail(401 if not token else 404, "Repository not found", "RepoNotFound")
            return None
        if write and token != WRITE:
            self._fail(403, "you must use a write token to upload to a repository.")
            return None
        oid = repo.find(revision)
        if oid is None:
            self._fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repo, oid


def _described(name: str, entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "file", "path": name, "size": entry.size, "oid": entry.oid}
    if entry.sha256:
        value["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer())}
    return value


_REPO, _REV = r"(?P<repo>[^/]+/[^/]+?)", r"(?P<revision>[^/]+)"
ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.check_yaml),
    (rf"GET /api/models/{_REPO}", Handler.info),
    (rf"GET /api/models/{_REPO}/revision/{_REV}", Handler.info),
    (rf"GET /api/models/{_REPO}/tree/{_REV}", Handler.tree),
    (rf"POST /api/models/{_REPO}/preupload/{_REV}", Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/{_REV}", Handler.commit),
    (rf"POST /api/models/{_REPO}/branch/{_REV}", Handler.branch),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"POST /lfs-done/(?P<oid>\w+)", Handler.parts_done),
    (r"POST /lfs-verify/(?P<oid>\w+)", Handler.verify),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REV}/(?P<file>.+)", Handler.resolve),
]
