"""Latency and throughput of `luthier serve` and of transformers' own server, on the same model, in turns.

    OMP_NUM_THREADS=2 python benchmarks/serve.py [--model DIR] [--streams 1 8 32] [--tokens 32] [--rounds 2]

Both servers run as processes of their own, with the same weights, type and threads. A round asks one
server and then the other, for each number of streams, so that what else the machine does meets both.
Prompts are questions of 12 to 60 words, each asked once; answers are greedy. Tokens are counted by the
model's tokenizer from the text that came back. On a machine that others use, wall times move with their
load; the processor time of the server's process (Linux) moves less. Prints one JSON line a measurement,
and a table of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

WORDS = (
    "the river garden market station winter letter engine doctor number village mountain bread answer question "
    "window teacher colour price ticket road music water light paper story computer table friend morning"
).split()


def prompts(count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    return ["Tell me about " + " ".join(chooser.choices(WORDS, k=chooser.randint(12, 60))) + "." for _ in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(name: str, model: str, dtype: str, log: Path):
    """Start a server; yields (url, name of the model in requests, process id)."""
    port = free_port()
    here = Path(sys.executable).parent
    if name == "luthier":
        command = [sys.executable, "-m", "luthier", "serve", f"model={model}", "--port", str(port), "--dtype", dtype]
        asked = "model"
    else:
        command = [str(here / "transformers"), "serve", model, "--port", str(port), "--dtype", dtype, "--device", "cpu"]
        command += ["--continuous-batching"] if name.endswith("batching") else []
        asked = model
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} did not start; see {log}\n{log.read_text()[-2000:]}") from None
                time.sleep(0.5)
        yield url, asked, process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(url: str, model: str, texts: list[str], tokens: int, tokenizer, pid: int) -> dict:
    from openai import AsyncOpenAI

    first: list[float] = []
    between: list[float] = []
    made = 0

    async def one(client, text):
        nonlocal made
        started = last = time.monotonic()
        pieces = []
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], max_tokens=tokens, temperature=0, stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                now = time.monotonic()
                if not pieces:
                    first.append(now - started)
                pieces.append(chunk.choices[0].delta.content)
                last = now
        count = len(tokenizer("".join(pieces), add_special_tokens=False)["input_ids"])
        made += count
        if count > 1:
            between.append((last - started - first[-1]) / (count - 1))

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=1200, max_retries=0) as client:
        started, before = time.monotonic(), cpu_seconds(pid)
        await asyncio.gather(*(one(client, text) for text in texts))
        seconds = time.monotonic() - started
    return {
        "first_token_s": statistics.median(first), "per_token_s": statistics.median(between),
        "tokens": made, "seconds": seconds, "tokens_per_s": made / seconds,
        "cpu_s_per_token": (cpu_seconds(pid) - before) / made,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=None, help="model folder; default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--servers", nargs="+", default=["luthier", "transformers", "transformers batching"])
    parser.add_argument("--logs", type=Path, default=Path())
    args = parser.parse_args()
    from transformers import AutoTokenizer

    from luthier.model.locate import locate_model

    folder = args.model or str(locate_model("smollm2-135m-instruct"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    packages = {name: version(name) for name in ("torch", "transformers", "openai")}
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                      "threads": threads, "dtype": args.dtype, "tokens": args.tokens, **packages}))  # fmt: skip
    found: dict[tuple[str, int], list[dict]] = {}
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(server(name, folder, args.dtype, args.logs / f"{name.replace(' ', '_')}.log"))
            for name in args.servers
        }
        for name, (url, model, pid) in urls.items():  # warm: weights loaded, kernels chosen
            asyncio.run(measure(url, model, prompts(1, 10**6), 4, tokenizer, pid))
            print(f"# {name} is warm", flush=True)
        for turn in range(args.rounds):
            for streams in args.streams:
                for name in args.servers if turn % 2 == 0 else reversed(args.servers):
                    url, model, pid = urls[name]
                    told = asyncio.run(
                        measure(url, model, prompts(streams, turn * 100 + streams), args.tokens, tokenizer, pid)
                    )
                    found.setdefault((name, streams), []).append(told)
                    print(json.dumps({"server": name, "streams": streams, "round": turn, "load": os.getloadavg()[0],
                                      **told}), flush=True)  # fmt: skip
    print("| streams | server | first token s | per token ms | tokens/s | CPU ms a token |\n|---|---|---|---|---|---|")
    for (name, streams), rows in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"| {streams} | {name} | {middle['first_token_s']:.2f} | {middle['per_token_s'] * 1000:.0f} "
              f"| {middle['tokens_per_s']:.1f} | {middle['cpu_s_per_token'] * 1000:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
