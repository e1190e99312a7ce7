"""The HTTP stage of `serve_h200.py`: servers as processes of their own, asked by four processes with the openai client.

Clients first ask one short question a stream, then wait for each other and ask two long ones a stream, one by one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def serve_all(bench: Any, out: Any) -> None:
    """Servers as processes of their own."""
    from luthier.serve.engine.adapters import RowAdapters

    for path, module in list(bench.model.named_modules()):
        if isinstance(module, RowAdapters):
            parent, _, name = path.rpartition(".")
            setattr(bench.model.get_submodule(parent), name, module.base)
    folder = Path(tempfile.mkdtemp(prefix="serve-model-"))
    bench.model.save_pretrained(folder)
    getattr(bench.tokenizer, "inner", bench.tokenizer).save_pretrained(folder)
    del bench.model
    gc.collect()
    if bench.cuda:
        bench.torch.cuda.empty_cache()
    for name in bench.args.servers.split(","):
        try:
            _served(bench, name, folder, out)
        except Exception as error:  # noqa: BLE001 - a peer that does not start must not end the rest
            out(stage="http", model=bench.args.model, server=name, failed=f"{type(error).__name__}: {error}"[:500])


def _served(bench: Any, name: str, folder: Path, out: Any) -> None:
    """One server."""
    port, most = free_port(), max(bench.args.streams)
    dtype = bench.args.dtype
    if name.startswith("luthier"):
        seconds = 0.0005 if name == "luthier-switch" else 0.005
        code = f"import sys; sys.setswitchinterval({seconds}); from luthier.cli.main import main; main()"
        command = ["-c", code, "serve", f"model={folder}", "--port", str(port), "--dtype", dtype,
                   "--max-batch-size", str(most), "--max-queue", "2048"]  # fmt: skip
        called = "model"
    else:
        command = ["-c", "from transformers.cli.transformers import main; main()", "serve", str(folder), "--port",
                   str(port), "--dtype", dtype, "--device", bench.args.device]  # fmt: skip
        command += ["--continuous-batching"] if name == "batching" else []
        called = str(folder)
    log = (Path(os.environ.get("OUT", tempfile.gettempdir())) / f"server-{bench.args.model}-{name}.log").open("w")
    server = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        for streams in bench.args.streams:
            if name == "transformers" and streams > 32:
                continue  # one request after the other: known, and it would take minutes
            started = time.monotonic()
            found = _clients(bench, port, called, streams)
            first = sorted(value for one in found for value in one["first"])
            begun, ended = min(one["begun"] for one in found), max(one["ended"] for one in found)
            tokens = sum(one["tokens"] for one in found)
            out(
                stage="http", model=bench.args.model, dtype=dtype, server=name, streams=streams, tokens=tokens,
                seconds=round(ended - begun, 3), tokens_s=round(tokens / (ended - begun), 1),
                first_token_ms=round(1000 * statistics.median(first), 1),
                first_token_p95_ms=round(1000 * first[int(0.95 * (len(first) - 1))], 1),
                answers=len(first), whole_s=round(time.monotonic() - started, 1),
            )  # fmt: skip
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _clients(bench: Any, port: int, model: str, streams: int) -> list[dict[str, Any]]:
    """Processes that ask: each a short request a stream to warm up, then, all together, two long ones."""
    count = min(4, streams)
    shares = [streams // count + (number < streams % count) for number in range(count)]
    asked = {"port": port, "model": model, "each": 2, "tokens": bench.args.tokens}
    made = [
        subprocess.Popen(
            [sys.executable, __file__,
             json.dumps({**asked, "streams": share, "seed": 1000 * streams + number})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number, share in enumerate(shares)
    ]  # fmt: skip
    for process in made:
        process.stdout.readline()
    for process in made:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=240)[0].strip().splitlines()[-1]) for process in made]


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: Any) -> None:
    """Until a server answers."""
    import urllib.error
    import urllib.request

    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server did not start; see its log") from None
            time.sleep(0.25)


WORDS = "the river garden market station winter letter engine doctor number village mountain bread answer".split()


async def client(asked: dict[str, Any]) -> None:
    """Streams of one process, each with a request after the other."""
    from openai import AsyncOpenAI

    chooser = random.Random(asked["seed"])
    first: list[float] = []
    tokens = 0

    async def stream(api: Any, each: int, new: int) -> None:
        nonlocal tokens, first
        for _ in range(each):
            text = " ".join(chooser.choices(WORDS, k=chooser.randint(30, 200)))
            begun, seen, counted = time.time(), 0, None
            async for chunk in await api.chat.completions.create(
                model=asked["model"], messages=[{"role": "user", "content": text}], max_tokens=new,
                temperature=0, stream=True, stream_options={"include_usage": True},
            ):  # fmt: skip
                if chunk.choices and chunk.choices[0].delta.content:
                    if not seen:
                        first.append(time.time() - begun)
                    seen += 1
                if chunk.choices and chunk.choices[0].finish_reason == "length":
                    counted = counted or new  # servers that do not tell usage
                if chunk.usage is not None:
                    counted = chunk.usage.completion_tokens
            tokens += counted if counted else seen

    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{asked['port']}/v1", api_key="a-key-for-nothing", timeout=200, max_retries=0
    ) as api:
        await asyncio.gather(*(stream(api, 1, 8) for _ in range(asked["streams"])))
        print("ready", flush=True)
        sys.stdin.readline()
        first, tokens = [], 0
        begun = time.time()
        await asyncio.gather(*(stream(api, asked["each"], asked["tokens"]) for _ in range(asked["streams"])))
    print(json.dumps({"first": first, "tokens": tokens, "begun": begun, "ended": time.time()}))


if __name__ == "__main__":
    asyncio.run(client(json.loads(sys.argv[1])))
