"""Several processes give what one gives, in order; a worker's error is told, a dead worker's rows are done here."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from luthier.data import workers
from luthier.data.prepare import prepare
from luthier.data.tokenize import tokenize_all
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError
from tests.data.test_prepare import contents, run, write
from tests.data.test_streaming import comparable, contents_of
from tests.support.tiny import conversations, tiny_tokenizer

_reader = os.getpid()
pytestmark = pytest.mark.skipif(workers.worker_count() == 0, reason="one core, or no fork")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "rows.jsonl", conversations(300, turns=2))


@pytest.fixture
def early(monkeypatch):
    """Workers from the second chunk of twenty rows on."""
    for module in ("workers", "prepare", "row_cache"):
        monkeypatch.setattr(f"luthier.data.{module}.CHUNK_ROWS", 20)
    monkeypatch.setattr(workers, "_ALONE_CHUNKS", 1)
    monkeypatch.setattr(workers, "worker_count", lambda: 2)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_rows_are_those_of_one_process(source, early, monkeypatch, streaming):
    before = dict(os.environ)
    several = run(source, streaming=streaming)
    assert dict(os.environ) == before
    monkeypatch.setattr(workers, "worker_count", lambda: 0)
    one = run(source, streaming=streaming)
    assert contents_of(several) == contents_of(one)
    assert comparable(several.manifest) == comparable(one.manifest)


def test_preferences_go_to_workers_too(tmp_path, early, monkeypatch):
    rows = [{"prompt": f"Q {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(90)]
    section = DataSection(train=[write(tmp_path / "p.jsonl", rows)], max_length=128)
    several = prepare(section, tiny_tokenizer(), seed=0, kind="pairs").manifest
    monkeypatch.setattr(workers, "worker_count", lambda: 0)
    assert prepare(section, tiny_tokenizer(), seed=0, kind="pairs").manifest == several


def _refuses(rows, template, *, section):
    if rows[0].ref.line > 200:
        raise DataError(code="D242", message="stopped")
    return tokenize_all(rows, template, section=section)


def _dies(rows, template, *, section):
    if os.getpid() != _reader and rows[0].ref.line > 60:  # the fourth chunk: the reader leaves the first six to workers
        os._exit(9)
    return tokenize_all(rows, template, section=section)


def test_an_error_in_a_worker_is_the_error_of_the_run(source, early, monkeypatch):
    monkeypatch.setattr("luthier.data.prepare.tokenize_all", _refuses)
    with pytest.raises(DataError, match=r"D242.*stopped"):
        run(source)


def test_the_rows_of_a_worker_that_dies_are_done_here(source, early, monkeypatch, capsys):
    expected = contents(run(source))
    monkeypatch.setattr("luthier.data.prepare.tokenize_all", _dies)
    assert contents(run(source)) == expected
    assert "a worker process died" in capsys.readouterr().err


_own = multiprocessing.get_context("fork").Value("i", 0)


def _held_elsewhere(rows, template, *, section):
    """Workers wait until the process that reads has done six rows, and see whether it does more meanwhile."""
    here = os.getpid() == _reader
    with _own.get_lock():
        _own.value += here
    if rows[0].ref.line == 1:
        until = time.monotonic() + 60
        while _own.value < 7 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
    return [(row.ref.line, here, _own.value) for row in rows]


def test_the_reading_process_does_rows_while_workers_are_behind(early):
    _own.value = 0
    chunks = [[Conversation(kind="chat", messages=(), ref=RowRef("f", line))] for line in range(40)]
    found = list(workers.tokenize_chunks(iter(chunks), _held_elsewhere, None, None))
    assert [line for ((line, _, _),) in found] == list(range(40)), "in order"
    own = [line for ((line, here, _),) in found if here]
    # The first is done before there are workers. The next six wait for them; then this process helps, but does not run
    # ahead by more than six: that is what it has done when the first worker lets go.
    assert own[:7] == [0, 7, 8, 9, 10, 11, 12]
    assert found[1] == [(1, False, 7)]
