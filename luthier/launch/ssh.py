"""`luthier launch RECIPE --hosts host0,host1`: the same command on each host, through OpenSSH's client.

What a host runs comes through ssh's standard input, so that no variable is seen in a list of processes. That input
stays open: when it ends, by us or because we are gone, the launcher there gets SIGTERM, saves with the others and ends.
The launchers agree among themselves on what ended the run (`attempts.py`); here their output is shown, each line after
the host's name, and hosts that do not end by themselves are told to.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from luthier.runtime.errors import (
    ERRORS_BY_EXIT_CODE,
    EnvironmentProblem,
    Interrupted,
    LuthierError,
    Problem,
    RecipeError,
    RunFailed,
)
from luthier.runtime.signals import stop_on_signals

__all__ = ["hosts_of", "remote_script", "run_on_hosts"]

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%\[\]-]*")
END_SECONDS = 75.0
"""For the others to end by themselves after one did: as long as launchers take to find that a machine is lost."""
SAVE_SECONDS = 120.0
SSH_FAILED = 255


def hosts_of(text: str) -> list[str]:
    """The hosts of `--hosts`.

    Raises:
        RecipeError: no host, one twice, or a text that ssh would take for an option.
    """
    hosts = [part.strip() for part in text.split(",")]
    wrong = [host for host in hosts if not HOST.fullmatch(host)]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if wrong or twice:
        what = f"{wrong[0]!r} is no host" if wrong else f"{twice[0]} stands there twice"
        raise RecipeError(
            code="L219",
            message=f"`--hosts {text}`: {what}",
            hint="host0,host1: names as ssh takes them, machine 0 first",
        )
    return hosts


def remote_script(command: Sequence[str], *, folder: str, environment: Mapping[str, str]) -> str:
    """Lines of bash that run a command and pass the end of standard input on to it as SIGTERM."""
    quote = shlex.quote
    return "\n".join([
        "{",  # read whole before any of it runs: what follows on standard input is not a script
        "exec 3<&0",
        f"cd -- {quote(folder)} || exit 4",
        *(f"export {name}={quote(value)}" for name, value in sorted(environment.items())),
        f"{shlex.join(command)} < /dev/null 3<&- &",
        "child=$!",
        '{ cat <&3 > /dev/null; kill -s TERM "$child" 2> /dev/null; } &',
        "watcher=$!",
        "code=0",
        'wait "$child" || code=$?',
        'kill "$watcher" 2> /dev/null',
        "exec 3<&-",
        'exit "$code"',
        "}",
    ]) + "\n"  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Host:
    """One host's ssh."""

    name: str
    process: subprocess.Popen[str]
    tail: list[str] = field(default_factory=list)
    """The last lines of its standard error."""
    ended: float | None = None

    def stop(self) -> None:
        """End its standard input."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except OSError:
                return


def run_on_hosts(
    commands: Mapping[str, Sequence[str]], *, folder: str, environment: Mapping[str, str], ssh: str = "ssh"
) -> None:
    """Run a command on each host until all have ended.

    Args:
        commands: By host, machine 0 first; its standard output is ours.
        folder: Working directory on each.
        environment: Variables for each.
        ssh: The program.

    Raises:
        EnvironmentProblem: no ssh here, or a host that cannot be reached.
        LuthierError: what ended the run, as the host that failed first tells it.
    """
    lock = threading.Lock()
    hosts: list[_Host] = []
    threads: list[threading.Thread] = []
    with stop_on_signals("the hosts save a checkpoint and stop") as stop:
        try:
            for number, (name, command) in enumerate(commands.items()):
                host = _start(name, remote_script(command, folder=folder, environment=environment), ssh)
                hosts.append(host)
                threads += _show(host, lock, main=number == 0)
            _wait(hosts, lambda: stop.requested)
        finally:
            for host in hosts:
                host.stop()
                if host.process.poll() is None:
                    host.process.kill()
                    host.process.wait()
            for thread in threads:
                thread.join(10.0)
    failed = sorted((host for host in hosts if host.process.returncode), key=lambda host: host.ended or 0.0)
    if failed:
        raise _cause(failed)
    if stop.requested:
        raise Interrupted(code="L144", message="stopped by a signal")


def _start(name: str, script: str, ssh: str) -> _Host:
    call = [ssh, "-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", name, "bash -s"]
    try:
        process = subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            code="L220", message=f"`{ssh}` is not installed here",
            hint="install OpenSSH's client, or start `luthier launch --node-rank` on each host",
        ) from error  # fmt: skip
    assert process.stdin is not None
    try:
        process.stdin.write(script)
        process.stdin.flush()
    except OSError:  # it has ended already, and says why on its standard error
        pass
    return _Host(name=name, process=process)


def _show(host: _Host, lock: threading.Lock, *, main: bool) -> list[threading.Thread]:
    """What a host prints, line by line: the result of machine 0 to our output, the rest with names to our errors."""

    def pump(stream: IO[str], *, plain: bool) -> None:
        for line in stream:
            with lock:
                if plain:
                    sys.stdout.write(line)
                    sys.stdout.flush()
                else:
                    host.tail = [*host.tail[-40:], line.rstrip("\n")]
                    sys.stderr.write(f"{host.name} | {line}")
                    sys.stderr.flush()

    out, err = host.process.stdout, host.process.stderr
    assert out is not None and err is not None
    threads = [threading.Thread(target=pump, args=(out,), kwargs={"plain": main}, daemon=True),
               threading.Thread(target=pump, args=(err,), kwargs={"plain": False}, daemon=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    return threads


def _wait(hosts: Sequence[_Host], stop: Callable[[], bool]) -> None:
    """Until all have ended, or were told to and did not."""
    told_at: float | None = None
    while any(host.process.poll() is None for host in hosts):
        now = time.monotonic()
        for host in hosts:
            if host.ended is None and host.process.poll() is not None:
                host.ended = now
        failed = [host.ended for host in hosts if host.ended is not None and host.process.returncode]
        if told_at is None and (stop() or (failed and now - min(failed) > _patience(hosts))):
            told_at = now
            for host in hosts:
                host.stop()
        if told_at is not None and now - told_at > SAVE_SECONDS:
            break
        time.sleep(0.1)
    for host in hosts:
        if host.ended is None and host.process.poll() is not None:
            host.ended = time.monotonic()


def _patience(hosts: Sequence[_Host]) -> float:
    """A host that ssh does not reach never met the others: they would wait for it."""
    return 2.0 if any(host.process.returncode == SSH_FAILED for host in hosts) else END_SECONDS


def _cause(failed: Sequence[_Host]) -> LuthierError:
    """Of the host that ended first; what ssh itself could not do before that."""
    first = next((host for host in failed if host.process.returncode == SSH_FAILED), failed[0])
    code, lines = int(first.process.returncode), list(first.tail)
    if code == SSH_FAILED:
        said = next((line for line in reversed(lines) if line.strip()), "no message")
        return EnvironmentProblem(
            code="L220", message=f"ssh to {first.name} failed: {said}",
            hint=f"`ssh {first.name} true` has to work without a question; keys and addresses belong to ~/.ssh/config",
        )  # fmt: skip
    begin = max((number for number, line in enumerate(lines) if line.startswith("error[")), default=None)
    if begin is None:
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        return RunFailed(
            code="L221", message=f"{first.name} ended with exit code {code}; it said: {last}",
            hint="Luthier and the recipe have to be at the same paths on each host",
        )  # fmt: skip
    head = re.fullmatch(r"error\[(\w+)\]\s+(.*)", lines[begin])
    message = head[2] if head else lines[begin]
    problem = Problem(
        code=head[1] if head else "L221", message=f"{first.name}: {message}",
        hint=" ".join(line.strip() for line in lines[begin + 1 :]) or None,
    )  # fmt: skip
    return ERRORS_BY_EXIT_CODE.get(code, RunFailed)(problems=[problem])
