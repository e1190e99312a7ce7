"""A server that answers by content, and misbehaves by content: the same requests fare the same in any order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter

from luthier.synthesis.load import load_spec
from luthier.synthesis.run import Files, synthesize
from tests.endpoint.server import ScriptedServer, break_off, raw, reset, status

DOCUMENT = """# The mill

The mill stands at the river Anker. It was built in 1792 by Otto Brandt.

## The wheel

The wheel is four metres wide. It turns eleven times a minute when the river is high.
In dry summers the wheel stands still for weeks. Then the miller repairs the sluice gates.

## The flour

Each day the mill grinds two tons of rye. The flour is sold in sacks of fifty kilograms.
The oldest customer is the bakery in Lind. It has bought rye flour since 1840.
"""


def draw(*parts) -> int:
    return int(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8], 16)


def key_of(body) -> str:
    return json.dumps(body, sort_keys=True)


def passage_of(body) -> str:
    text = body["messages"][-1]["content"] if len(body["messages"]) < 3 else body["messages"][1]["content"]
    return re.search(r"\[\w{8} [^\]]*\]\n(.*?)\n\[\w{8} end\]", text, re.DOTALL)[1]


def write(body) -> str:
    """What a good model would say, by what it is asked for."""
    asked = " ".join(str(message["content"]) for message in body["messages"])
    number = draw(body["messages"], body.get("seed"))
    if '"pairs"' in asked:
        sentences = [one for one in re.split(r"(?<=\.)\s+", passage_of(body)) if one.endswith(".") and "#" not in one]
        pairs = [{"question": f"What about: {one[:40]}?", "answer": one, "quote": one} for one in sentences[:2]]
        return json.dumps({"pairs": pairs})
    if '{"prompts"' in asked:
        words = ["river", "bread", "wheel", "engine", "garden", "letter", "window", "winter", "copper", "violin"]
        return json.dumps({"prompts": [
            f"Explain how a {words[draw(number, index, 1) % 10]} is like a {words[draw(number, index, 2) % 10]}, "
            f"no. {draw(number, index) % 97}"
            for index in range(3)
        ]})  # fmt: skip
    if '{"prompt"' in asked:
        return json.dumps({"prompt": f"{passage_of(body) if '[' in asked else 'ok'} Give {number % 7 + 2} reasons."})
    if '"score"' in asked:
        return json.dumps({"reason": "fine", "score": number % 5 + 1})
    if "How many" in asked:
        return f"The answer is {number % 3 + 2}."
    return f"Here is an answer, number {number % 1000}."


def reply(body, text=None, *, finish="stop"):
    said = write(body) if text is None else text
    return {
        "id": f"req-{draw(body) % 10**8}", "model": body["model"],
        "choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": finish}],
        "usage": {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(said) // 4 + 1},
    }  # fmt: skip


class Server(ScriptedServer):
    """Answers as `write`, after what `mischief` says for (request, number of the attempt).

    Requests beyond `most` wait until `let_go` is set.
    """

    def __init__(self, mischief=lambda body, attempt: None, *, seconds=0.0):
        self.attempts: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.mischief, self.seconds = mischief, seconds
        self.most, self.let_go = float("inf"), threading.Event()
        super().__init__(always=self.act)

    def act(self, handler, body):
        key = key_of(body)
        with self.lock:
            self.attempts[key] += 1
            attempt = self.attempts[key]
            held = self.attempts.total() > self.most
        if held:
            self.let_go.wait(120)
        found = self.mischief(body, attempt)
        if callable(found):
            found(handler, body)
            return
        time.sleep(self.seconds)
        with self.lock:
            self.paid[key] += 1
        with contextlib.suppress(OSError):
            handler.send(200, found if isinstance(found, dict) else reply(body, found))


def unruly(body, attempt):
    """A third of the first attempts go wrong, in every way; some answers are no good."""
    kind = draw("first", body["messages"], body.get("seed")) % 24
    if attempt == 1 and kind < 8:
        return [
            status(429, Retry_After="0.05"), status(500), raw(b'{"choices": [{"message": {"conte'), reset, break_off,
            status(503), raw(b"<html>busy</html>"), status(529),
        ][kind]  # fmt: skip
    if len(body["messages"]) >= 4:
        return None  # repaired
    bad = {8: "I'm sorry, but I can't help with that.", 9: '{"pairs": [{"question": "q"}]}', 10: "no JSON at all",
           11: '{"pairs": [], "prompts": []', 12: ""}  # fmt: skip
    return bad.get(kind)


def spec_text(url, mode, section, **more):
    value = {
        "mode": mode,
        "endpoint": {"base_url": url, "model": "m", **more.pop("endpoint", {})},
        mode: section,
        **more,
    }
    return json.dumps(value)


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "time"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def run(tmp_path, server, mode, section, *, out="rows.jsonl", **more):
    file = tmp_path / "spec.yaml"
    file.write_text(spec_text(server.url, mode, section, **more))
    spec = load_spec(file)
    files = Files.of(spec, tmp_path / out)
    told = synthesize(spec, files)
    return told, rows_of(files.rows), rows_of(files.beside("rejected.jsonl"))


def mill(tmp_path, name="mill.md"):
    (tmp_path / name).write_text(DOCUMENT)
    return str(tmp_path / name)


def examples(tmp_path):
    file = tmp_path / "seeds.jsonl"
    texts = ["Why is the sky blue?", "Write a haiku about rain.", "Plan a week of meals.", "What is a prime number?"]
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    return {"path": str(file)}


def problems(tmp_path, count=4):
    file = tmp_path / "problems.jsonl"
    rows = [{"question": f"How many legs have {index} chairs?", "answer": str(index % 3 + 2)} for index in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(file), "map": {"user": "question", "assistant": "answer"}}


SMALL = {"chunk_tokens": 50, "overlap_tokens": 8, "quote_words": 3}
