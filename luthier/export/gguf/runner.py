"""An independent reader of GGUF files: llama.cpp, from the wheel `xllamacpp`, in a process of its own.

The process runs llama.cpp's own HTTP server, so a file that llama.cpp cannot bear ends that process and not this one.
Started as `python -m luthier.export.gguf.runner FILE CONTEXT THREADS`; it ends when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, RunFailed

__all__ = ["INSTALL", "Runner", "is_available", "running"]

INSTALL = "pip install xllamacpp"
_START_SECONDS, _DISK = 300.0, 50e6
"""Longest time until it listens, and bytes of the file that are read a second on top of that."""
_ASK_SECONDS = 600.0
_READY = "listening: "


def is_available() -> bool:
    """Whether llama.cpp's wheel is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


@contextlib.contextmanager
def running(file: Path, *, context: int, threads: int | None = None) -> Iterator[Runner]:
    """A runner that has loaded the file.

    Args:
        file: GGUF.
        context: Tokens of prompt and answer.
        threads: Default: `OMP_NUM_THREADS`, else all cores.

    Raises:
        EnvironmentProblem: the wheel is missing.
        RunFailed: llama.cpp does not load the file, or hangs.
    """
    if not is_available():
        raise EnvironmentProblem(code="X618", message="reading GGUF back needs llama.cpp's wheel", hint=INSTALL)
    threads = threads or read_env().omp_num_threads or os.cpu_count() or 1
    command = [sys.executable, "-m", __name__, str(file), str(context), str(threads)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield Runner(_address(process, log, file), process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], log: Any, file: Path) -> str:
    assert process.stdout is not None
    seconds, late = _START_SECONDS + file.stat().st_size / _DISK, threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith(_READY):
                return line.removeprefix(_READY).strip().rstrip("/")
    finally:
        timer.cancel()
    if late.is_set():
        raise RunFailed(
            code="X619", message=f"llama.cpp has not loaded {file.name} after {seconds:,.0f} s",
            hint="a slow disk or too little memory? no file was kept",
        )  # fmt: skip
    log.seek(0)
    said = [line.strip() for line in log if "error" in line.lower() or "assert" in line.lower()]
    told = "; ".join(said[-3:]) or "it ended without a word"
    raise RunFailed(
        code="X619", message=f"llama.cpp does not load {file.name}: {told[:500]}",
        hint="please report this; no file was kept",
    )  # fmt: skip


class Runner:
    """Questions to llama.cpp's server."""

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self.address, self.process = address, process
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever HTTP_PROXY says

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of a text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation through the template in the file, with the generation prompt."""
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def first(self, ids: Sequence[int], *, top: int, told: int) -> tuple[dict[int, float], int]:
        """Natural log-probabilities of the likeliest next tokens, and tokens of the prompt as the server counts them.

        Args:
            ids: Prompt.
            top: How many.
            told: A token that is text by itself. The server tells no probabilities of a stop token or of half a
                character, so this one is made certain; the probabilities told are those before that.
        """
        body = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "n_probs": top, "cache_prompt": False,
                "logit_bias": [[told, 1e4]], "samplers": ["temperature"]}  # fmt: skip
        found = self._post("/completion", body)
        items = found["completion_probabilities"][0]["top_logprobs"]
        logs = {int(item["id"]): float(item["logprob"]) for item in items if item["logprob"] is not None}
        return {token: value for token, value in logs.items() if math.isfinite(value)}, int(found["tokens_evaluated"])

    def answer(self, ids: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Greedy answer to a prompt of tokens, the stop token included."""
        body = {"prompt": list(ids), "n_predict": max_new_tokens, "temperature": 0.0, "cache_prompt": False,
                "return_tokens": True, "samplers": ["temperature"]}  # fmt: skip
        return [int(token) for token in self._post("/completion", body)["tokens"]]

    def stops_at(self, ids: Sequence[int], token: int) -> bool:
        """Whether an answer that begins with this token, made certain, ends with it."""
        body = {"prompt": list(ids), "n_predict": 2, "temperature": 0.0, "logit_bias": [[token, 1e4]],
                "cache_prompt": False}  # fmt: skip
        return bool(self._post("/completion", body)["stop_type"] == "eos")

    def _post(self, route: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + route, json.dumps(body).encode("utf-8"), {"content-type": "application/json"}
        )
        try:
            with self._direct.open(request, timeout=_ASK_SECONDS) as reply:
                return json.load(reply)
        except (urllib.error.URLError, OSError) as error:
            detail = (
                error.read().decode("utf-8", "replace")[:300] if isinstance(error, urllib.error.HTTPError) else error
            )
            state = self.process.poll()
            ended = f"; llama.cpp ended with {state}" if state is not None else ""
            raise RunFailed(code="X619", message=f"llama.cpp does not answer {route}: {detail}{ended}") from error


def _serve(file: str, context: int, threads: int) -> None:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_parallel, settings.port, settings.warmup = context, 1, 0, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_gpu_layers = 0
    # The file is what is looked at: attention in float32, not in the float16 that llama.cpp takes by itself.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.use_jinja = True
    settings.verbosity = 1
    server = xllamacpp.Server(settings)
    sys.stdout.write(f"{_READY}{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # the server's threads have no end of their own


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
