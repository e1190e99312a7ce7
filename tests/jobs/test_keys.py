"""Keys, limits in time, the audit log."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from luthier.jobs.errors import Conflict, Forbidden, Invalid, NotFound, TooMany
from luthier.jobs.keys import require
from luthier.jobs.store import Store
from luthier.jobs.throttle import RequestRate, WrongKeys, network_of
from tests.jobs.making import Clock, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def test_the_text_of_a_key_is_kept_nowhere(store: Store) -> None:
    record, text = store.new_key("laptop", "ann", {"jobs", "files"}, {"max_queued": 3})
    assert text.startswith("lk-") and len(text) == 46
    assert store.key_of(text) == record and record.scopes == {"jobs", "files"} and record.limits == {"max_queued": 3}
    assert text not in repr(record) and record.hash not in repr(record)
    store.close()
    everything = b"".join(path.read_bytes() for path in store.home.iterdir() if path.is_file())
    assert text.encode() not in everything and text[3:].encode() not in everything
    assert store.new_key("other", "ann", {"read"})[1] != text


@pytest.mark.parametrize("text", ["", "lk-", "lk-" + "A" * 43, "\ud800", "x" * 100_000])
def test_wrong_keys(store: Store, text: str) -> None:
    _, right = store.new_key("a", "ann", {"read"})
    assert store.key_of(text) is None
    assert (
        store.key_of(right + " ") is None and store.key_of(right[:-1]) is None and store.key_of(right.lower()) is None
    )


def test_revoked_keys_are_wrong_at_once(store: Store) -> None:
    record, text = store.new_key("a", "ann", {"read"})
    with pytest.raises(NotFound):
        store.revoke(record.id, "bob")
    assert store.key_of(text) is not None
    first = store.revoke(record.id, "ann")
    assert first.revoked_at is not None and store.key_of(text) is None
    assert store.revoke(record.id) == first
    assert [key.id for key in store.keys("ann")] == [record.id] and store.keys("bob") == []
    assert store.new_key("a", "ann", {"read"})[0].id != record.id, "a revoked key's name is free"


def test_all_that_is_wrong_with_a_key_at_once(store: Store) -> None:
    with pytest.raises(Invalid) as caught:
        store.new_key("", "a b", {"root"}, {"max_jobs": 1, "max_queued": 0})
    assert [problem.param for problem in caught.value.problems] == [  # type: ignore[attr-defined]
        "name", "owner", "scopes", "limits", "limits"
    ]  # fmt: skip
    with pytest.raises(Invalid, match="needs a scope"):
        store.new_key("a", "ann", set())
    with pytest.raises(Invalid, match="scope admin"):
        store.new_key("a", "*", {"jobs"})
    store.new_key("a", "ann", {"read"})
    with pytest.raises(Conflict, match="ann has a key `a` already"):
        store.new_key("a", "ann", {"read"})


def test_scopes(store: Store) -> None:
    jobs, _ = store.new_key("a", "ann", {"jobs"})
    admin, _ = store.new_key("b", "*", {"admin"})
    require(jobs, "jobs")
    require(admin, "files")
    with pytest.raises(Forbidden, match="lacks the scope `files`") as caught:
        require(jobs, "files")
    assert caught.value.status == 403


def test_the_sixth_wrong_key_waits() -> None:
    clock = Clock(0.0)
    wrong = WrongKeys(clock=clock)
    for _ in range(5):
        wrong.wrong("10.0.0.1")
        clock.now += 1
    assert wrong.waits("10.0.0.1") == 0
    for _ in range(3):
        with pytest.raises(TooMany, match="6 wrong API keys") as caught:
            wrong.wrong("10.0.0.1")
    assert caught.value.status == 429 and caught.value.retry_after == 55
    wrong.wrong("10.0.0.2")
    clock.now = 60.0
    assert wrong.waits("10.0.0.1") == 0
    with pytest.raises(TooMany):
        wrong.wrong("10.0.0.1")


def test_an_address_is_a_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::2") and network_of("testclient") == "testclient"


def test_memory_of_addresses_is_bounded() -> None:
    wrong = WrongKeys()
    for index in range(10_050):
        wrong.wrong(f"host{index}")
    assert len(wrong._windows._times) == 10_000


def test_requests_a_minute() -> None:
    clock = Clock(0.0)
    rate = RequestRate(clock=clock)
    for _ in range(3):
        rate.take("k", 3)
        clock.now += 10
    with pytest.raises(TooMany, match="3 requests a minute") as caught:
        rate.take("k", 3)
    assert caught.value.retry_after == 30
    rate.take("other", 3)
    for _ in range(100):
        rate.take("free", None)
    clock.now = 60.0
    rate.take("k", 3)
    with pytest.raises(TooMany):
        rate.take("k", 3)


def test_the_audit_log_is_append_only_and_harmless(store: Store) -> None:
    text = store.new_key("a", "ann", {"read"})[1]
    store.audit("ann", "job.create", 'x\n{"fake": 1}\x1b[31m\u202e', f"key {text} refused", "10.0.0.1")
    store.audit("bob", "file.delete", "file-1", "ok" * 1_000, "\ud800")
    first, second = store.audit_lines()
    assert first["subject"] == 'x\\n{"fake": 1}\\x1b[31m\\u202e'
    assert first["outcome"] == "key lk-... refused" and len(second["outcome"]) == 503
    assert all(str(value).isprintable() for line in (first, second) for value in line.values())
    assert [line["owner"] for line in store.audit_lines("bob")] == ["bob"]
    assert store.audit_lines(after=first["seq"]) == [second]
    for change in ("UPDATE audit SET owner = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), store.database.writing() as connection:
            connection.execute(change)
    assert len(store.audit_lines()) == 2
