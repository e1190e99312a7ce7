"""Contract: work is done once, is asked for again until it is there, fails once, and does not hold up the end.

Planted and seen to fail: threads of concurrent.futures (the program waits for them); what waits is begun after `close`.
"""

import subprocess
import sys
import threading
import time

import pytest

from luthier.studio.work import Unfinished, Work


def settled(work, key, do):
    """The result, however long the machine takes."""
    until = time.monotonic() + 60
    while True:
        try:
            return work.get(key, do, what="adding up")
        except Unfinished:
            assert time.monotonic() < until


def test_done_once_and_there_when_it_is():
    work, go, calls = Work(), threading.Event(), []

    def do():
        calls.append(threading.current_thread().daemon)
        assert go.wait(60)
        return 7

    with pytest.raises(Unfinished):
        work.get("a", do, what="adding up", wait=0.0)
    assert work.state("a") == "working" and work.state("b") == "none"
    go.set()
    assert settled(work, "a", do) == settled(work, "a", do) == 7
    assert calls == [True] and work.state("a") == "done"


def test_what_fails_fails_once_and_begins_anew():
    work, calls = Work(), []

    def do():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("no")
        return len(calls)

    with pytest.raises(ValueError, match="no"):
        settled(work, "a", do)
    assert settled(work, "a", do) == 2


def test_nothing_begins_after_the_end():
    work, go, begun = Work(threads=1), threading.Event(), []
    for key in "ab":
        with pytest.raises(Unfinished):
            work.get(key, lambda: (begun.append(1), go.wait(60)), what="waiting", wait=0.0)
    until = time.monotonic() + 60
    while not begun:
        assert time.monotonic() < until
    work.close()
    go.set()
    assert settled(work, "a", lambda: None) and begun == [1]


def test_the_end_of_the_program_does_not_wait():
    program = (
        "import time\nfrom luthier.studio.work import Unfinished, Work\nwork = Work()\n"
        "try:\n    work.get('a', lambda: time.sleep(300), what='long', wait=0.0)\n"
        "except Unfinished:\n    work.close()\nprint('closed')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "closed\n"), ended.stderr
