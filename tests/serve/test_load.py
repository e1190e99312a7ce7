"""Contract: under many clients, slow readers and clients that vanish, every request ends as it should."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time

import openai
import pytest

from luthier.data.template import ChatTemplate
from luthier.generation.generate import generate
from tests.serve.serving import plain, serving
from tests.support.tiny import WORDS, save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("load") / "tiny", max_position_embeddings=2048)


def texts_of(n):
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(2, 60))) for _ in range(n)]


def ask(client, text, **more):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24}
    return client.chat.completions.create(**{**asked, **more})


def test_two_hundred_clients_some_slow_some_leaving_get_their_own_answers(base):
    texts = texts_of(200)
    template, tokenizer = ChatTemplate(tiny_tokenizer()), tiny_tokenizer()
    ids = [template.prompt_ids([{"role": "user", "content": text}]) for text in texts]
    expected = generate(
        tiny_model(max_position_embeddings=2048), tokenizer, ids, max_new_tokens=24, stop_ids=[2], batch_size=50
    )
    outcome = {}

    async def client_of(client, number):
        chooser = random.Random(number)
        kind = chooser.choice(["whole", "stream", "stream", "slow", "leave", "overlong"])
        if kind == "overlong":
            with pytest.raises(openai.BadRequestError) as refused:
                await ask(client, "water " * 3_000)
            assert refused.value.code == "context_length_exceeded"
            outcome[number] = None
            return
        if kind == "whole":
            answer = await ask(client, texts[number])
            outcome[number] = answer.choices[0].message.content
            return
        pieces = []
        stream = await ask(client, texts[number], stream=True)
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if kind == "slow":
                await asyncio.sleep(0.05)
            if kind == "leave" and len(pieces) > 3:
                await stream.close()
                outcome[number] = None
                return
        outcome[number] = "".join(pieces)

    async def everyone(server):
        async with server.async_client(timeout=280) as client:
            await asyncio.gather(*(client_of(client, number) for number in range(200)))

    with serving([plain(base)], limits={"max_batch_size": 16, "max_queue": 300}) as server:
        asyncio.run(everyone(server))
        end = time.monotonic() + 60
        while not server.idle() and time.monotonic() < end:
            time.sleep(0.01)
        assert server.idle() and server.host.engines[0].slots.bytes == 0
        assert server.get("/health")[0] == 200
    assert len(outcome) == 200
    wrong = [n for n, text in outcome.items() if text is not None and text != expected[n].text]
    assert wrong == []


def test_a_queue_that_is_too_short_refuses_and_loses_nobody(base):
    async def everyone(server):
        async with server.async_client(timeout=280) as client:
            return await asyncio.gather(
                *(ask(client, text, max_tokens=60) for text in texts_of(120)), return_exceptions=True
            )

    with serving([plain(base)], limits={"max_batch_size": 4, "max_queue": 8}) as server:
        found = asyncio.run(everyone(server))
    refused = [one for one in found if isinstance(one, openai.RateLimitError)]
    answered = [one for one in found if not isinstance(one, Exception)]
    assert len(refused) + len(answered) == 120 and refused and len(answered) >= 12
    assert all(1 <= int(one.response.headers["retry-after"]) <= 60 for one in refused)


def test_the_command_starts_answers_and_drains_on_sigterm(base):
    command = [
        sys.executable,
        "-m",
        "luthier",
        "serve",
        f"tiny={base}",
        "--port",
        "0",
        "--json",
        "--drain-seconds",
        "30",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told = ""
        while not told.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        found = json.loads(told)
        assert found["models"] == ["tiny"]
        client = openai.OpenAI(base_url=found["url"], api_key="none", max_retries=0, timeout=60)
        stream = ask(client, "time", stream=True, max_tokens=300, logit_bias={"77": 100})
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in process.stderr.read()
