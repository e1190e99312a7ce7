"""A chat server over a real local model, for tests and for the numbers in docs: OpenAI's chat format, one answer at a
time, seeded by the request. It takes `response_format` and does not enforce it, as many servers do.

    python -m tests.support.model_server MODEL PORT
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Brain:
    """A loaded model that answers a request body."""

    def __init__(self, name: str) -> None:
        from luthier.data.template import ChatTemplate
        from luthier.model.load import load_base
        from luthier.model.stops import stop_ids
        from luthier.model.tokenizer import load_tokenizer
        from luthier.recipe.schema import ModelSection
        from luthier.runtime.device import pick_device

        section = ModelSection(name_or_path=name)
        device = pick_device()
        self.model = load_base(section, device=device, dtype="bfloat16" if device.native_bf16 else "float32")
        self.tokenizer = load_tokenizer(section)
        self.template = ChatTemplate(self.tokenizer)
        self.stops = stop_ids(self.tokenizer, self.model)
        self.lock = threading.Lock()

    def answer(self, body: dict) -> dict:
        import torch

        from luthier.generation.generate import generate
        from luthier.runtime.console import quiet_progress

        ids = self.template.prompt_ids(body["messages"])
        temperature = body.get("temperature", 1.0)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": body.get("top_p", 1.0), "top_k": 0}
        with self.lock, quiet_progress():
            torch.manual_seed(body.get("seed", 0))
            found = generate(
                self.model, self.tokenizer, [ids], max_new_tokens=body["max_tokens"], stop_ids=self.stops, batch_size=1,
                sampling=sampling if temperature > 0 else None,
            )[0]  # fmt: skip
        return {
            "id": f"chat-{body.get('seed', 0)}", "model": body["model"],
            "choices": [
                {"message": {"role": "assistant", "content": found.text}, "finish_reason": found.finish_reason}
            ],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(found.ids)},
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        from luthier.runtime.errors import LuthierError

        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            status, value = 200, self.server.brain.answer(body)
        except LuthierError as error:
            status, value = 400, {"error": {"message": error.problems[0].message}}
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.server.answered += 1

    def log_message(self, *args) -> None:
        pass


class ModelServer:
    """As a context manager: `url`, and `answered` requests."""

    def __init__(self, name: str, port: int = 0) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.brain = Brain(name)
        self._server.answered = 0

    def __enter__(self) -> ModelServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def answered(self) -> int:
        return self._server.answered


if __name__ == "__main__":
    server = ModelServer(sys.argv[1], int(sys.argv[2]))
    print(server.url, flush=True)
    server._server.serve_forever()
