"""Contract: a `python` grader cannot harm the process that asked, and every wall that is said to stand does."""

import functools
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from luthier.scoring.graders.sandbox import Limits, run_python

FAST = Limits(seconds=8.0)


def run(body, *, limits=FAST, **spaces):
    source = "def grade(sample, item):\n" + "\n".join(f"    {line}" for line in body.splitlines())
    return run_python(source, sample=spaces.get("sample", {}), item=spaces.get("item", {}), limits=limits)


def test_grade_gets_sample_and_item_and_gives_a_number():
    outcome = run("return len(sample['output_text']) / item['most']", sample={"output_text": "abc"}, item={"most": 4})
    assert (outcome.value, outcome.error) == (0.75, None)
    assert run("return True").value == 1.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        ("return 'x'", "not a finite number"),
        ("return float('nan')", "not a finite number"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "without an answer"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\nreturn 1", ""),
    ],
)
def test_what_goes_wrong_is_told(body, said):
    outcome = run(body)
    if "SIGSEGV" in body and outcome.value is not None:
        return  # process 1 of a namespace ignores signals of its own
    assert outcome.value is None and said in outcome.error


def test_time_is_up():
    started = time.monotonic()
    outcome = run("while True: pass", limits=Limits(seconds=0.7))
    assert "longer than 0.7 s" in outcome.error and time.monotonic() - started < 60


def test_memory_is_limited():
    outcome = run("return len(bytearray(3 << 30))", limits=Limits(seconds=8.0, memory_bytes=512 << 20))
    assert outcome.value is None and "Memory" in outcome.error


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "abc")
    assert run("import os\nreturn float('SECRET_KEY' in os.environ)").value == 0.0


def walls():
    return run("return 1.0").walls


@functools.cache
def machine_has():
    """Asked without the code under test: what this kernel offers."""
    import ctypes
    import subprocess

    has = {"files"} if ctypes.CDLL(None).syscall(444, None, 0, 1) > 0 else set()
    unshare = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000 | 0x20000000) != 0)"
    return has | (
        {"network", "processes"} if subprocess.run([sys.executable, "-c", unshare]).returncode == 0 else set()
    )


def test_every_wall_that_the_machine_offers_stands_and_no_other_is_claimed():
    assert machine_has() <= set(walls()) <= machine_has() | {"tcp", "signals"}


def test_the_network_is_out_of_reach():
    if "network" not in machine_has():
        pytest.skip("this machine allows no user namespaces")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)\nreturn 1.0")
    assert outcome.value is None and "Error" in outcome.error
    # Landlock knows TCP only; UDP is stopped by the namespace.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.3)
        send = (
            f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {server.getsockname()[1]}))"
        )
        run(f"import socket\n{send}\nreturn 1.0")
        with pytest.raises(TimeoutError):
            server.recv(1)


def test_files_of_others_are_out_of_reach(tmp_path):
    if "files" not in machine_has():
        pytest.skip("this machine has no Landlock")
    secret = tmp_path / "secret"
    secret.write_text("abc")
    assert "PermissionError" in run(f"return len(open({str(secret)!r}).read())").error
    assert "PermissionError" in run(f"open({str(tmp_path / 'new')!r}, 'w')\nreturn 1").error
    assert "PermissionError" in run("return len(open('/etc/passwd').read())").error
    assert run("open('mine', 'w').write('abc')\nreturn len(open('mine').read())").value == 3.0
    assert run("import json, statistics\nreturn statistics.mean([1, 2])").value == 1.5


def test_files_have_a_largest_size():
    outcome = run("open('big', 'wb').write(b'x' * (1 << 20))\nreturn 1", limits=Limits(seconds=8, file_bytes=1 << 16))
    assert outcome.value is None


def test_what_it_starts_ends_with_it():
    if "processes" not in machine_has():
        pytest.skip("this machine allows no user namespaces")
    mark = f"luthier-left-{os.getpid()}"
    body = (
        "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)  # {mark}'])\nreturn 1.0"
    )
    assert run(body).value == 1.0

    def left():
        found = []
        for pid in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
            try:
                found += [pid] if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() else []
            except OSError:
                continue
        return found

    until = time.monotonic() + 30  # of the minute that it would sleep
    while left() and time.monotonic() < until:
        time.sleep(0.02)
    assert left() == []
