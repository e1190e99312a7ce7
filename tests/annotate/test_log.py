"""Nothing acknowledged is lost: torn lines, killed writers, two writers, a full disk."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.annotate.edits import Edit
from luthier.annotate.log import Log, read_log
from luthier.annotate.record import Record, record_from, record_line
from luthier.data.strict_json import parse
from luthier.runtime.errors import DataError, EnvironmentProblem
from tests.annotate.support import chats, write
from tests.support.often import often


def record(number: int, **keys: object) -> Record:
    return Record(
        id=f"{number:03d}", time="t", annotator="ann", action="accept", hash="h", file="f", line=number, **keys
    )  # type: ignore[arg-type]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    text=st.none() | texts, edits=st.lists(st.builds(Edit, st.integers(0, 1), st.integers(-1, 9), texts), max_size=3),
    seconds=st.none() | st.floats(0, 1e6), choice=st.sampled_from([None, "first", "second"]),
)  # fmt: skip
def test_a_record_reads_back_as_it_was(text, edits, seconds, choice) -> None:
    own = record(1, text=text, edits=tuple(edits), seconds=seconds, choice=choice)
    line = record_line(own)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert record_from(parse(line.decode())) == own


@settings(max_examples=often(40), deadline=None)
@given(data=st.data())
def test_a_log_cut_anywhere_loses_only_what_was_cut(data, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("log") / "a.labels"
    lines = [record_line(record(number, text="ü\u2028")) for number in range(4)]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0", b"\0\0\n"])))
    left = sum(len(b"".join(lines[: n + 1])) <= cut for n in range(4))
    before = path.read_bytes()
    assert len(read_log(path)[0]) == left
    assert path.read_bytes() == before, "reading changes nothing"
    log = Log(path)
    assert [own.line for own in log.records] == list(range(left))
    torn = before != b"".join(lines[:left])
    assert bool(log.told) == torn
    log.append(record(9))
    log.close()
    records, told = read_log(path)
    assert [own.line for own in records] == [*range(left), 9] and told == []


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.labels"
    good = record_line(record(1))
    path.write_bytes(good + b'{"messages": []}\n' + good + b"not json\n" + good.replace(b'"v": 1', b'"v": 2'))
    with pytest.raises(DataError) as caught:
        Log(path)
    assert [(p.code, p.line) for p in caught.value.problems] == [("D290", 2), ("D290", 4), ("D290", 5)]
    assert path.read_bytes().count(b"\n") == 5


def test_two_writers_see_each_other_and_mend_what_the_other_left(tmp_path: Path) -> None:
    path = tmp_path / "a.labels"
    first, second = Log(path), Log(path)
    first.append(record(1))
    with path.open("ab") as stream:
        stream.write(b'{"v": 1, "id": "to')  # a third one is killed here
    assert [own.line for own in second.append(record(2))] == [1, 2]
    assert [own.line for own in first.refresh()] == [2]
    assert len(second.told) == 1 and first.told == []
    assert [own.line for own in read_log(path)[0]] == [1, 2]


def test_a_failed_write_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.labels"
    log = Log(path)
    log.append(record(1))
    real, before = os.write, path.read_bytes()

    def short(file: int, data: bytes) -> int:
        return real(file, data[:10])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(EnvironmentProblem) as caught:
        log.append(record(2))
    assert caught.value.problems[0].code == "D291" and "No space" in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before
    log.append(record(3))
    assert [own.line for own in read_log(path)[0]] == [1, 3]


def test_an_empty_log_is_taken_away_and_a_writer_that_had_it_open_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.labels"
    first, second = Log(path), Log(path)
    first.close()
    assert not path.exists()
    second.append(record(1))
    second.close()
    assert [own.line for own in read_log(path)[0]] == [1]


def test_a_log_removed_with_entries_in_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.labels"
    log = Log(path)
    log.append(record(1))
    path.unlink()
    with pytest.raises(DataError, match="removed while it was open"):
        log.append(record(2))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="D291"):
        Log(tmp_path / "file" / "a.labels")


_WORKER = """
import sys
from luthier.annotate.items import read_items
from luthier.annotate.log import Log
from luthier.annotate.session import Desk, Session
from luthier.annotate.terminal import run_lines
items = read_items([sys.argv[1]])
desk = Desk(items, Log(__import__("pathlib").Path(sys.argv[1] + ".labels")), items.distinct)
run_lines(Session(desk, "ann"), sys.stdin, sys.stdout)
"""


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_at_most_the_decision_in_flight(tmp_path: Path, seed: int) -> None:
    rows = write(tmp_path / "a.jsonl", chats(400))
    chance = random.Random(seed)
    acknowledged = 0
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, str(rows)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, bufsize=1)  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("a\n" * 400)
        worker.stdin.flush()
        for _ in range(chance.randint(1, 40)):
            assert worker.stdout.readline().startswith("accept")
            acknowledged += 1
        time.sleep(chance.random() * 0.003)
        worker.send_signal(signal.SIGKILL)
        acknowledged += worker.stdout.read().count("accept ")
        worker.wait()
        log = Log(Path(f"{rows}.labels"))
        assert acknowledged <= len(log.records) <= acknowledged + 1
        assert [own.line for own in log.records] == list(range(1, len(log.records) + 1)), "none twice, none lost"
        acknowledged = len(log.records)
        log.close()
