"""Contract (F24): whatever is sent, the answer is a 4xx with OpenAI's error object, and the server lives on."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.serving import api
from tests.support.often import often
from tests.support.tiny import save_tiny

ROWS = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}\n' * 12
CHAT, JOBS = "/v1/chat/completions", "/v1/fine_tuning/jobs"
HI = [{"role": "user", "content": "time"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with api(folder / "home", models={"tiny": save_tiny(folder / "tiny")}) as running:
        yield running


@pytest.fixture(scope="module")
def file_id(server):
    return server.client().files.create(file=("a.jsonl", ROWS), purpose="fine-tune").id


def refused(server, path, body, *, method="POST"):
    status, told = server.ask(path, method=method, body=body)
    assert 400 <= status < 500, (path, str(body)[:200], status, told)
    error = told["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


CHATS = [
    {"n": 0}, {"n": -1}, {"n": 10**9}, {"n": "1"}, {"temperature": -1}, {"temperature": 3}, {"temperature": "hot"},
    {"stop": ["x"] * 10_000}, {"stop": [1]}, {"max_tokens": -1}, {"max_tokens": 10**9}, {"max_tokens": 1.5},
    {"model": "gpt-4o"}, {"model": None}, {"model": 7}, {"model": ["tiny"]}, {"model": ""}, {"model": "tiny" * 1000},
    {"messages": None}, {"messages": "time"}, {"messages": []}, {"messages": [[]]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "king", "content": "x"}]}, {"messages": [{"role": "user", "content": 7}]},
    {"stream": "yes"}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": 1000}},
    {"top_p": 0}, {"top_logprobs": 3}, {"response_format": {"type": "xml"}}, {"unknown_key": 1}, {"tools": [{}]},
    {"seed": "x"}, {"metadata": []},
]  # fmt: skip


@pytest.mark.parametrize("change", CHATS, ids=lambda change: str(change)[:40])
def test_chats(server, change):
    refused(server, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 4, **change})


def test_a_million_messages(server):
    many = b",".join([json.dumps(HI[0]).encode()] * 1_000_000)
    status, told = server.ask(CHAT, method="POST", body=b'{"model": "tiny", "messages": [' + many + b"]}")
    assert status == 413 and told["error"]["code"] == "body_too_large"
    fits = b",".join([json.dumps(HI[0]).encode()] * 50_000)
    status, told = server.ask(CHAT, method="POST", body=b'{"model": "tiny", "messages": [' + fits + b"]}")
    assert status == 400 and told["error"]["message"]


def test_finish_reason_is_length_exactly_when_cut(server):
    client = server.client()
    cut = client.chat.completions.create(model="tiny", messages=HI, max_tokens=3, logit_bias={"77": 100})
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=3, logit_bias={"2": 100})
    assert whole.choices[0].finish_reason == "stop"


RAW = [
    b"", b"{", b"null", b"[]", b'"x"', b"7", b"\xff\xfe", b'{"model": "\xff"}', b'{"model": NaN}',
    b'{"temperature": Infinity}', b'{"a": 1, "a": 2}', b'{"model": "\\ud800"}', b'{"model": "a\\u0000"}',
    b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000,
    b'{"n": 1e999}', b"{} {}", b"\xef\xbb\xbf{}",
]  # fmt: skip
JSON_ROUTES = [
    CHAT, "/v1/completions", JOBS, "/v1/uploads", "/v1/uploads/upload_x/complete", "/v1/fine_tuning/alpha/graders/run",
    "/v1/fine_tuning/alpha/graders/validate", "/v1/fine_tuning/jobs/x/cancel", "/v1/fine_tuning/jobs/x/pause",
    "/v1/fine_tuning/jobs/x/resume",
]  # fmt: skip


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_bodies_that_are_no_objects(server, path):
    for raw in RAW:
        refused(server, path, raw)


def jobs(file_id):
    good = {"model": "tiny", "training_file": file_id}
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2}}}
    return [
        {}, {"model": "tiny"}, {"training_file": file_id}, {**good, "model": "gpt-none"}, {**good, "model": 7},
        {**good, "model": "../tiny"}, {**good, "model": "/etc"}, {**good, "training_file": "file-none"},
        {**good, "training_file": 7}, {**good, "training_file": "../x"}, {**good, "validation_file": "file-none"},
        {**good, "suffix": "x" * 65}, {**good, "suffix": "../x"}, {**good, "suffix": "a/b"}, {**good, "suffix": 7},
        {**good, "seed": "x"}, {**good, "seed": -1}, {**good, "seed": 2**70}, {**good, "metadata": {"a": 1}},
        {**good, "metadata": {"k" * 65: "v"}}, {**good, "metadata": {"k": "v" * 513}},
        {**good, "metadata": {str(n): "v" for n in range(17)}}, {**good, "metadata": []}, {**good, "unknown": 1},
        {**good, "method": 7}, {**good, "method": {"type": "magic"}}, {**good, "method": {"type": "dpo", "dpo": 7}},
        {**good, "method": {"type": "dpo", "supervised": {"hyperparameters": {}}}},
        {**good, "method": dpo, "hyperparameters": {"n_epochs": 3}},
        {**good, "hyperparameters": {"n_epochs": 0}}, {**good, "hyperparameters": {"n_epochs": "many"}},
        {**good, "hyperparameters": {"n_epochs": True}}, {**good, "hyperparameters": {"batch_size": -1}},
        {**good, "hyperparameters": {"batch_size": 10**9}},
        {**good, "hyperparameters": {"learning_rate_multiplier": 0}},
        {**good, "hyperparameters": {"learning_rate_multiplier": -1}}, {**good, "hyperparameters": {"beta": 1}},
        {**good, "hyperparameters": {"nonsense": 1}}, {**good, "hyperparameters": []},
        {**good, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 10**9}}}},
        {**good, "integrations": [{"type": "magic"}]}, {**good, "integrations": 7}, {**good, "integrations": [{}]},
        {**good, "luthier": 7}, {**good, "luthier": {"nonsense": {}}},
        {**good, "luthier": {"train": {"max_steps": "x"}}},
        {**good, "luthier": {"train": {"nonsense": 1}}}, {**good, "luthier": {"output_dir": "/tmp/x"}},
        {**good, "luthier": {"data": {"train": [{"path": "/etc/passwd"}]}}},
        {**good, "luthier": {"model": {"name_or_path": "/etc"}}},
        {**good, "luthier": {"model": {"trust_remote_code": True}}},
    ]  # fmt: skip


def test_jobs(server, file_id):
    before = len(list(server.client().fine_tuning.jobs.list()))
    for body in jobs(file_id):
        refused(server, JOBS, body)
    assert len(list(server.client().fine_tuning.jobs.list())) == before, "a refused job was made"
    for query in ("limit=0", "limit=x", "limit=101", "limit=-1", "limit=1&limit=2", "after=none", "after=", "x=1",
                  "metadata=1", "metadata[]=1", "metadata[a]=1&metadata[a]=2", "limit=%00", "after=%ff"):  # fmt: skip
        refused(server, f"{JOBS}?{query}", None, method="GET")
    for rest in ("", "/events", "/checkpoints"):
        refused(server, f"{JOBS}/ftjob-none{rest}", None, method="GET")


def test_unknown_routes_and_methods(server):
    for method, path, status in (
        ("GET", "/v1/none", 404), ("GET", "/", 404), ("PUT", "/v1/models", 405), ("GET", CHAT, 405),
        ("PATCH", "/v1/models/tiny", 405), ("DELETE", JOBS, 405), ("POST", "/v1/files/x/content", 405),
        ("TRACE", "/v1/files", 405), ("GET", "/v1/files/../../etc/passwd", 404), ("GET", "/v1//files", 404),
    ):  # fmt: skip
        found, told = server.ask(path, method=method, body={} if method in ("POST", "PUT", "PATCH") else None)
        assert found == status and told["error"]["message"], (method, path, found)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "messages", "model", "n", "stop", "temperature", "tools", "training_file", "suffix", "method", "hyperparameters",
    "metadata", "integrations", "seed", "luthier", "grader", "item", "model_sample", "bytes", "filename", "part_ids",
)  # fmt: skip


@settings(max_examples=often(60))
@given(st.sampled_from(JSON_ROUTES), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
def test_anything(server, path, body):
    status, told = server.ask(path, method="POST", body=json.dumps(body).encode())
    assert 400 <= status < 500 and told["error"]["message"], (path, body, status, told)


def test_it_still_lives(server):
    assert server.client().chat.completions.create(model="tiny", messages=HI, max_tokens=2).choices
