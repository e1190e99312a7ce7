"""Files and uploads: whole or absent, under ids only, within limits, kept while a live job needs them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.jobs.blobs import blob_path, check_filename
from luthier.jobs.errors import Conflict, Invalid, NotFound, ServiceError, TooLarge
from luthier.jobs.store import Store
from tests.jobs.making import ROW, Clock, add_file, add_job, open_store
from tests.support.often import often


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    return open_store(tmp_path / "home", clock)


def on_disk(store: Store) -> list[str]:
    return sorted(path.name for folder in ("files", "parts") for path in (store.home / folder).glob("*"))


def test_a_file_from_a_stream_a_path_and_pieces(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    for source in (io.BytesIO(data), tmp_path / "x", [data[:10], data[10:]]):
        record = store.add_file("ann", "täst .jsonl", "fine-tune", source)
        assert store.file_path(record).read_bytes() == data
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert store.file(record.id, "ann") == record
        assert (record.status, record.filename) == ("processed", "täst .jsonl")
    assert len(on_disk(store)) == 3


def test_too_large_empty_and_broken_streams_leave_nothing(store: Store) -> None:
    def breaking():  # type: ignore[no-untyped-def]
        yield b"x" * 10
        raise ConnectionError("gone")

    taken = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 1_000

    with pytest.raises(TooLarge, match="larger than 10,000 bytes") as caught:
        store.add_file("ann", "a", "fine-tune", endless(), max_bytes=10_000)
    assert (taken, caught.value.status, caught.value.problems[0].code) == (11, 413, "J105")
    with pytest.raises(Invalid, match="empty"):
        store.add_file("ann", "a", "fine-tune", [b""])
    with pytest.raises(ConnectionError):
        store.add_file("ann", "a", "fine-tune", breaking())
    assert on_disk(store) == [] and store.files("ann") == ([], False)


HOSTILE = [
    "../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "..\\x", "C:\\x", "%2e%2e%2fx", "%2e%2e", "..%5cx", "%2Fetc",
    "a\0b", "a%00b", "a\nb", "a\rb", "\x1b[31m", "a\x7f", "", " ", "...", " . ", "con", "NUL", "com1.jsonl", "LPT9.txt",
    "aux.", "x" * 256, "é" * 128, "a\u202eb", "\u2028", "file:///etc/passwd", "\\\\host\\share", "a\tb", "~/x",
    "\ud800", "%0d%0aSet-Cookie", "safe_media/../../safe_media_x/f", "./a", "prn.json",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_write_nothing(store: Store, tmp_path: Path, name: str) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(Invalid) as caught:
        store.add_file("ann", name, "fine-tune", [ROW])
    assert caught.value.problems[0].code == "J106"
    with pytest.raises(Invalid):
        store.create_upload("ann", name, "fine-tune", 5, "text/plain")
    assert sorted(path for path in tmp_path.rglob("*")) == before


@given(st.text(max_size=300))
@settings(max_examples=often(300))
def test_a_name_that_passes_is_one_part_of_a_path(name: str) -> None:
    try:
        check_filename(name)
    except Invalid:
        return
    assert Path(name).name == name and name.isprintable() and len(name.encode()) <= 255
    assert os.path.normpath(f"/root/{name}").startswith("/root/")


@pytest.mark.parametrize("id_", ["../x", "file-../../etc", "file-" + "a" * 23, "file-" + "A" * 24, "", "x/file-"])
def test_only_our_own_ids_have_a_path(tmp_path: Path, id_: str) -> None:
    with pytest.raises(ValueError, match="no id"):
        blob_path(tmp_path, id_)


def test_names_that_run_commands_are_only_names(store: Store, tmp_path: Path) -> None:
    for name in ("$(touch x).jsonl", "; rm -rf ~", "`id`", "-rf", "<script>alert(1)</script>"[:8]):
        record = store.add_file("ann", name, "fine-tune", [ROW])
        assert record.filename == name and store.file_path(record).name == f"{record.id}.jsonl"


def test_purposes_and_expiry(store: Store, clock: Clock) -> None:
    with pytest.raises(Invalid, match="allowed are fine-tune, batch, assistants, vision, user_data, evals"):
        store.add_file("ann", "a", "training", [ROW])
    for seconds in (3_599, 2_592_001, True, -1):
        with pytest.raises(Invalid, match="expires_after"):
            store.add_file("ann", "a", "fine-tune", [ROW], seconds)
    record = store.add_file("ann", "a", "fine-tune", [ROW], 3_600)
    assert record.expires_at == record.created_at + 3_600
    clock.now += 3_599
    assert store.file(record.id, "ann") == record and store.expire_files() == []
    clock.now += 1
    with pytest.raises(NotFound):
        store.file(record.id, "ann")
    assert store.files("ann")[0] == []
    assert store.expire_files() == [record.id] and on_disk(store) == []


def test_a_live_job_keeps_its_files(store: Store, clock: Clock) -> None:
    train = store.add_file("ann", "a", "fine-tune", [ROW], 3_600)
    held_out = store.add_file("ann", "b", "fine-tune", [ROW], 3_600)
    job = add_job(store, train.id, validation_file=held_out.id)
    for file in (train, held_out):
        with pytest.raises(Conflict, match=f"needed by job {job.id}, which is validating_files"):
            store.delete_file(file.id, "ann")
    clock.now += 4_000
    assert store.expire_files() == []
    assert store.file(train.id, "ann") == train
    store.want(job.id, "cancel")
    assert sorted(store.expire_files()) == sorted([train.id, held_out.id])


def test_owners_see_their_own(store: Store) -> None:
    mine, other = add_file(store, "ann"), add_file(store, "bob")
    assert [file.id for file in store.files("ann")[0]] == [mine]
    assert [file.id for file in store.files("*")[0]] == [other, mine]
    for call in (store.file, store.delete_file):
        with pytest.raises(NotFound) as foreign:
            call(other, "ann")
        with pytest.raises(NotFound) as unknown:
            call("file-" + "0" * 24, "ann")
        assert str(foreign.value).replace(other, "") == str(unknown.value).replace("file-" + "0" * 24, "")
    assert store.delete_file(other, "*").id == other


def test_pages_go_on_after_a_deleted_file(store: Store) -> None:
    ids = [add_file(store) for _ in range(7)]
    seen, after = [], None
    while True:
        found, more = store.files("ann", after=after, limit=3)
        seen += [file.id for file in found]
        after = found[-1].id
        for file in found:
            store.delete_file(file.id, "ann")
        if not more:
            break
    assert seen == ids[::-1] and store.files("ann")[0] == []
    with pytest.raises(NotFound):
        store.delete_file(ids[0], "ann")


def test_pages_filter_order_and_refuse(store: Store) -> None:
    ids = [store.add_file("ann", "a", purpose, [ROW]).id for purpose in ("batch", "fine-tune", "batch")]
    assert [file.id for file in store.files("ann", order="asc")[0]] == ids
    assert [file.id for file in store.files("ann", purpose="batch", limit=1)[0]] == [ids[2]]
    assert store.files("ann", purpose="batch", limit=1)[1] is True
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"limit": True}):
        with pytest.raises(Invalid):
            store.files("ann", **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="after"):
        store.files("bob", after=ids[0])


def test_leftovers_are_swept_when_they_are_old(store: Store, clock: Clock) -> None:
    kept = store.add_file("ann", "a", "fine-tune", [ROW])
    folder = store.files_folder
    for name in (".tmp-abc", "file-" + "0" * 24, "file-" + "1" * 24 + ".jsonl", "notes.txt"):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (clock.now, clock.now))
    os.utime(store.file_path(kept), (clock.now, clock.now))
    store.sweep()
    assert len(on_disk(store)) == 5
    clock.now += 3_700
    store.sweep()
    assert on_disk(store) == [f"{kept.id}.jsonl", "notes.txt"]


def test_bytes_that_are_gone(store: Store) -> None:
    record = store.add_file("ann", "a", "fine-tune", [ROW])
    store.file_path(record).unlink()
    with pytest.raises(ServiceError, match="gone from the disk") as caught:
        store.file_path(record)
    assert caught.value.status == 500


def test_the_folder_is_for_its_user_alone(store: Store) -> None:
    add_file(store)
    assert store.home.stat().st_mode & 0o077 == 0
    assert (store.home / "service.db").stat().st_mode & 0o077 == 0
    assert (store.home / "files").stat().st_mode & 0o077 == 0


# -- uploads


def start(store: Store, size: int, owner: str = "ann") -> str:
    return store.create_upload(owner, "big.jsonl", "fine-tune", size, "text/jsonl").id


def test_parts_in_the_order_of_complete(store: Store) -> None:
    data = os.urandom(100_000)
    upload = start(store, len(data))
    second = store.add_part(upload, "ann", io.BytesIO(data[40_000:]))
    first = store.add_part(upload, "ann", [data[:40_000]])
    md5 = hashlib.md5(data).hexdigest()
    done, file = store.complete_upload(upload, "ann", [first.id, second.id], md5)
    assert (done.status, done.file_id) == ("completed", file.id)
    assert store.file_path(file).read_bytes() == data and file.filename == "big.jsonl"
    assert list((store.home / "parts").iterdir()) == []
    # The client sends a request again whose answer it has not seen.
    assert store.complete_upload(upload, "ann", [first.id, second.id], md5) == (done, file)
    with pytest.raises(Conflict, match="is completed"):
        store.cancel_upload(upload, "ann")
    with pytest.raises(Conflict, match="is completed"):
        store.add_part(upload, "ann", [b"x"])


def test_complete_checks_everything(store: Store) -> None:
    upload = start(store, 6)
    one, two = (store.add_part(upload, "ann", [text]).id for text in (b"abc", b"def"))
    other = store.add_part(start(store, 3), "ann", [b"xyz"]).id
    for parts, md5, words in (
        ([one], None, "1 parts are 3 bytes, announced were 6"),
        ([one, two], "0" * 32, "MD5"),
        ([one, one], None, "twice"),
        ([one, other], None, "no part"),
        ([], None, "empty"),
        (["../x", one], None, "no part"),
    ):
        with pytest.raises(Invalid, match=words):
            store.complete_upload(upload, "ann", parts, md5)
    assert store.files("ann")[0] == []
    assert store.complete_upload(upload, "ann", [two, one])[1].bytes == 6


def test_a_part_sent_twice_does_no_harm(store: Store) -> None:
    upload = start(store, 3)
    parts = [store.add_part(upload, "ann", [b"abc"]).id for _ in range(2)]
    with pytest.raises(Invalid, match="more than the 3 bytes announced"):
        store.add_part(upload, "ann", [b"abc"])
    assert store.complete_upload(upload, "ann", parts[1:])[1].bytes == 3


def test_cancel_expiry_and_owners(store: Store, clock: Clock) -> None:
    upload, late = start(store, 3), start(store, 3)
    store.add_part(upload, "ann", [b"abc"])
    part = store.add_part(late, "ann", [b"abc"])
    for call in (store.upload, store.cancel_upload):
        with pytest.raises(NotFound):
            call(upload, "bob")
    with pytest.raises(NotFound):
        store.add_part(upload, "bob", [b"x"])
    assert store.cancel_upload(upload, "ann").status == "cancelled"
    assert store.cancel_upload(upload, "ann").status == "cancelled"
    assert [path.name for path in store.parts_folder.iterdir()] == [part.id]
    clock.now += 3_600
    with pytest.raises(Conflict, match="is expired"):
        store.add_part(late, "ann", [b"x"])
    assert store.expire_uploads() == [late] and list(store.parts_folder.iterdir()) == []
    assert store.upload(late, "ann").status == "expired"


@pytest.mark.parametrize("size", [0, -1, True, 10**12])
def test_sizes_that_cannot_be(store: Store, size: int) -> None:
    with pytest.raises(Invalid, match="bytes"):
        start(store, size)
