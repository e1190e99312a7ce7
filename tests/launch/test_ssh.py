"""Contract: `--hosts` runs the same command on each host, shows whose line is whose, and one end ends all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.launch import ssh
from luthier.launch.ssh import hosts_of, remote_script, run_on_hosts
from luthier.runtime.errors import DataError, EnvironmentProblem, RecipeError, RunFailed
from tests.launch.support import start, wait_until

pytestmark = pytest.mark.slow  # `make test-processes`, which CI runs

FAKE = """#!/bin/bash
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
host=$1; shift
[ "$host" = unreachable ] && { echo "ssh: Could not resolve hostname $host" >&2; exit 255; }
export HERE=$host
exec bash -c "$*"
"""
"""An `ssh` whose hosts are all this machine."""


@pytest.fixture
def fake(tmp_path) -> str:
    file = tmp_path / "ssh"
    file.write_text(FAKE)
    file.chmod(0o755)
    return str(file)


def run(fake: str, folder: Path, **scripts: str) -> None:
    commands = {name: ["bash", "-c", script] for name, script in scripts.items()}
    run_on_hosts(commands, folder=str(folder), environment={"VALUE": "a'b $(x)"}, ssh=fake)


def test_each_line_has_its_host_and_the_result_has_none(fake, tmp_path, capfd):
    run(fake, tmp_path, host0='echo result; echo "$HERE $VALUE $PWD" >&2', host1="echo other; echo two >&2")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert f"host0 | host0 a'b $(x) {tmp_path}" in err
    assert {"host1 | other", "host1 | two"} <= set(err.splitlines())


@pytest.mark.parametrize("text", ["a b", "$(touch marker)", "'; touch marker; '", "`touch marker`", "a\nb", "-rf"])
def test_no_argument_and_no_value_becomes_a_command(fake, tmp_path, text, capfd):
    run_on_hosts({"h": ["printf", "%s|", "--", text]}, folder=str(tmp_path), environment={"V": text}, ssh=fake)
    assert text in capfd.readouterr().out
    assert not list(tmp_path.rglob("marker"))
    script = remote_script(["true"], folder="/x", environment={"TOKEN": text})
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_host_that_fails_ends_the_others_and_is_the_cause(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "END_SECONDS", 0.5)
    waits = "trap 'echo saved > saved; exit 130' TERM; for i in $(seq 400); do sleep 0.05; done"
    with pytest.raises(DataError) as caught:
        run(
            fake,
            tmp_path,
            host0=waits,
            host1='printf "%s\n" "error[D210]  row 7 is wrong" "        mend it" >&2; exit 3',
        )
    (problem,) = caught.value.problems
    assert (problem.code, problem.message, problem.hint) == ("D210", "host1: row 7 is wrong", "mend it")
    assert (tmp_path / "saved").exists(), "the other one was told to stop"


def test_a_host_that_cannot_be_reached_is_told_as_ssh_says_it(fake, tmp_path):
    with pytest.raises(EnvironmentProblem, match="ssh to unreachable failed: ssh: Could not resolve hostname"):
        run(fake, tmp_path, host0="sleep 100", unreachable="true")


def test_a_host_without_luthier_is_told_with_its_last_line(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "END_SECONDS", 0.2)
    with pytest.raises(RunFailed, match=r"host1 ended with exit code 127; it said: .*absent-program"):
        run(fake, tmp_path, host0="sleep 100", host1="absent-program")


def test_without_ssh_it_says_so(tmp_path):
    with pytest.raises(EnvironmentProblem, match="is not installed here"):
        run(str(tmp_path / "none"), tmp_path, host0="true")


@pytest.mark.parametrize("text", ["", "a,,b", "-oProxyCommand=x", "a,a", "a b", "$(x)"])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(RecipeError) as caught:
        hosts_of(text)
    assert caught.value.problems[0].code == "L219"
    assert hosts_of("me@host0, 10.0.0.2") == ["me@host0", "10.0.0.2"]


def test_remote_launchers_save_when_the_one_who_started_them_is_killed(fake, tmp_path):
    """Nothing of ours can tell them: their standard input ends."""
    code = (
        "from luthier.launch.ssh import run_on_hosts; import sys\n"
        "run_on_hosts({'h': ['bash', '-c', sys.argv[1]]}, folder=sys.argv[2], environment={}, ssh=sys.argv[3])"
    )
    waits = "trap 'echo saved > saved; exit 130' TERM; echo > ready; for i in $(seq 400); do sleep 0.05; done"
    ours = start(sys.executable, "-c", code, waits, str(tmp_path), fake)
    wait_until(lambda: (tmp_path / "ready").exists(), 60)
    os.kill(ours.pid, signal.SIGKILL)
    ours.communicate(timeout=10)
    wait_until(lambda: (tmp_path / "saved").exists(), 15, "the end of the remote command")
