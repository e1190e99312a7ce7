"""Launchers and their processes as forks of one process that has imported everything.

Process ids, parents, signals, files and gloo are real; the imports of each new interpreter, most of the time of a tiny
run, are not made. What they say about dying while importing is left to launches of new interpreters.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tests.launch.support import ROOT

IMPORTED = (
    "torch.distributed.checkpoint.hf_storage", "torch.distributed.fsdp", "torch.distributed.launcher.api",
    "torch.distributed.tensor", "accelerate", "deepspeed", "peft", "safetensors.torch",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "transformers.generation.utils", "luthier.cli.main", "luthier.cli.launch", "luthier.cli.run",
    "luthier.evaluate.run", "luthier.export.merge", "luthier.launch.several", "luthier.model.load",
    "luthier.model.adapters", "luthier.pipeline.run", "luthier.plan.setting", "luthier.report.write",
    "luthier.train.loop", "luthier.train.zero_setup",
)  # fmt: skip


def warm_up() -> None:
    """Import what a run needs."""
    for name in IMPORTED:
        importlib.import_module(name)


class Forked:
    """A command of Luthier in a fork: the part of `subprocess.Popen` that is used here and by torch's agent."""

    def __init__(
        self, words: Sequence[str], env: dict[str, str], *, out: BinaryIO | None, err: BinaryIO | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.args, self.returncode = words, None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _become(words, env, out, err)
            except SystemExit as stop:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(stop.code if isinstance(stop.code, int) else 1)
            finally:
                os._exit(99)

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code."""
        until = time.monotonic() + (1e9 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            time.sleep(0.02)
        return code


def _become(words: Sequence[str], env: dict[str, str], out: BinaryIO | None, err: BinaryIO | None) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, number in ((out, 1), (err, 2)):
        if stream is not None:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))  # pytest has others
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = list(words)
    if "RANK" not in env:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.Popen = _popen
    else:
        with Path(env["FORKED_PIDS"]).open("a") as stream:
            stream.write(f"{os.getpid()} {env['RANK']}\n")
        if "PLANTED" in env:
            importlib.import_module("tests.launch.planted.sitecustomize").plant_now()
    from luthier.cli.main import main

    main()


def _popen(*, args: Sequence[str], env: dict[str, str], stdout: Any, stderr: Any, **_: Any) -> Forked:
    """In a launcher: a process of the run. `args` is `python -m luthier ...`."""
    return Forked(args[2:], env, out=stdout, err=stderr)
