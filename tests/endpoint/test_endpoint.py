"""Contract: an answer is whole or an error; the server's pace is kept; nothing is asked, or paid, twice."""

import json
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.endpoint.cache import request_key
from luthier.endpoint.client import Endpoint
from luthier.endpoint.reply import ChatRequest
from luthier.endpoint.retry import asked_wait, backoff, worth_retrying
from luthier.endpoint.settings import EndpointSettings
from luthier.runtime.errors import AccessError, RecipeError, RunFailed
from tests.endpoint.server import ScriptedServer, break_off, drip, raw, reset, says, slow, status


def client(server, *, cache_dir=None, **settings):
    base = {"base_url": server.url, "model": "judge", "first_wait_seconds": 0.01, "timeout_seconds": 5.0}
    return Endpoint(EndpointSettings(**{**base, **settings}), cache_dir=cache_dir)


@contextmanager
def served(*, script=None, always=None, **settings):
    """A server and a client of it."""
    with ScriptedServer(script=script, always=always) as server, client(server, **settings) as endpoint:
        yield server, endpoint


def ask(text="hello", **more):
    return ChatRequest(messages=[{"role": "user", "content": text}], max_tokens=20, **more)


def test_it_sends_what_the_api_expects_and_returns_the_text():
    with ScriptedServer() as server, client(server) as endpoint:
        reply = endpoint.chat(ask(extra={"seed": 3, "temperature": None}))
    sent = server.seen[0]
    assert reply.text == "echo: hello" and reply.finish_reason == "stop" and not reply.cached
    assert sent["path"] == "/v1/chat/completions" and "Authorization" not in sent["headers"]
    assert sent["body"] == {
        "model": "judge",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 20,
        "seed": 3,
    }


MISBEHAVIOUR = {
    "429": status(429), "500": status(500), "503": status(503), "529": status(529), "408": status(408),
    "truncated JSON": raw(b'{"choices": [{"message": {"conte'), "a web page": raw(b"<html>busy</html>"),
    "JSON without an answer": raw(b'{"choices": []}'), "reset": reset, "broken off": break_off,
}  # fmt: skip


@pytest.mark.parametrize("act", MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
def test_a_server_that_misbehaves_twice_is_asked_a_third_time(act):
    with ScriptedServer(script=[act, act]) as server, client(server) as endpoint:
        assert endpoint.chat(ask()).text == "echo: hello"
        assert endpoint.usage().retries == 2 and endpoint.usage().requests == 1
    assert len(server.seen) == 3


@pytest.mark.parametrize("act", MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
def test_a_server_that_never_stops_misbehaving_is_an_error_and_no_answer(act):
    with ScriptedServer(always=act) as server, client(server, max_retries=2) as endpoint:
        with pytest.raises((AccessError, RunFailed)) as caught:
            endpoint.chat(ask())
        assert endpoint.usage().requests == 0
    assert len(server.seen) == 3
    assert caught.value.problems[0].code in {"R760", "R763"}


@pytest.mark.parametrize("act", [slow(60.0), drip(0.1, blocks=600)], ids=["slow", "drip"])
def test_an_attempt_ends_at_its_timeout_even_if_bytes_keep_coming(act):
    with ScriptedServer(script=[act]) as server, client(server, timeout_seconds=1.5) as endpoint:
        started = time.monotonic()
        assert endpoint.chat(ask()).text == "echo: hello"
    assert time.monotonic() - started < 30
    assert len(server.seen) == 2


def test_nobody_there():
    with ScriptedServer() as server:
        url = server.url
    with pytest.raises(AccessError, match=r"after 2 attempts.*refused"):
        Endpoint(EndpointSettings(base_url=url, model="m", max_retries=1, first_wait_seconds=0.01)).chat(ask())


@pytest.mark.parametrize(("code", "error", "expected"), [
    (401, AccessError, "R761"), (403, AccessError, "R761"), (400, RecipeError, "R762"), (404, RecipeError, "R762"),
    (422, RecipeError, "R762"), (302, RecipeError, "R762"), (402, AccessError, "R760"),
])  # fmt: skip
def test_what_time_does_not_heal_is_not_tried_again(code, error, expected):
    act = status(code, "because", Location="http://127.0.0.1:1/v1")
    with (
        ScriptedServer(always=act) as server,
        client(server) as endpoint,
        pytest.raises(error, match="because") as caught,
    ):
        endpoint.chat(ask())
    assert caught.value.problems[0].code == expected and len(server.seen) == 1


def test_an_exhausted_quota_is_not_tried_again_though_its_status_is_429():
    act = status(429, "quota", error_code="insufficient_quota")
    with ScriptedServer(always=act) as server, client(server) as endpoint, pytest.raises(AccessError, match="quota"):
        endpoint.chat(ask())
    assert len(server.seen) == 1


# -- pace


def test_retry_after_is_kept_by_every_thread():
    with ScriptedServer(script=[status(429, Retry_After="0.4")]) as server, client(server, concurrency=4) as endpoint:
        endpoint.chat(ask("first"))
        waited = server.seen[1]["at"] - server.seen[0]["at"]
        assert 0.4 <= waited < 10
        server.script = [status(429, Retry_After="1.0")]
        started, before = time.monotonic(), endpoint._gate._opens_at
        thread = threading.Thread(target=lambda: endpoint.chat(ask("second")))
        thread.start()
        while len(server.seen) < 3:
            time.sleep(0.005)
        while endpoint._gate._opens_at == before:  # until the 429 has arrived
            assert time.monotonic() - started < 60
            time.sleep(0.001)
        endpoint.chat(ask("third"))
        thread.join()
        assert server.seen[3]["at"] - server.seen[2]["at"] >= 0.9, "the other request waited, too"


def test_a_wait_longer_than_allowed_is_told_at_once():
    act = status(429, Retry_After="3600")
    with (
        ScriptedServer(always=act) as server,
        client(server) as endpoint,
        pytest.raises(AccessError, match="wait 3600 s"),
    ):
        endpoint.chat(ask())
    assert len(server.seen) == 1


def test_asked_waits():
    assert asked_wait({}) is None and asked_wait({"retry-after": "soon"}) is None
    assert asked_wait({"retry-after": "7"}) == 7 and asked_wait({"retry-after": "-3"}) == 0
    assert asked_wait({"retry-after": "9", "retry-after-ms": "250"}) == 0.25
    assert asked_wait({"retry-after": "nan"}) is None
    assert asked_wait({"retry-after": formatdate(1000.0, usegmt=True)}, now=990.0) == pytest.approx(10)
    assert asked_wait({"retry-after": formatdate(1000.0, usegmt=True)}, now=2000.0) == 0


@given(st.integers(0, 200), st.floats(0.001, 10), st.floats(0.001, 100))
def test_waits_double_up_to_the_longest_and_keep_half(attempt, first, most):
    seconds = backoff(attempt, first=first, most=most)
    whole = min(most, first * 2.0 ** min(attempt, 30))
    assert 0.5 * whole <= seconds <= whole


def test_which_statuses_are_tried_again():
    assert all(worth_retrying(code, None) for code in (408, 409, 425, 429, 500, 502, 503, 504, 529))
    assert not any(worth_retrying(code, None) for code in (301, 400, 401, 403, 404, 413, 422))


# -- many at once


def test_many_come_back_in_order_and_no_more_than_allowed_are_in_flight():
    lock, flying, most, together = threading.Lock(), [0], [0], threading.Event()

    def act(handler, body):
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
            if most[0] > 1:
                together.set()
        together.wait(20)
        time.sleep(0.02 if body["messages"][-1]["content"].endswith("0") else 0.005)
        with lock:
            flying[0] -= 1  # before the client can know of the answer
        says("for " + body["messages"][-1]["content"])(handler, body)

    told = []
    with ScriptedServer(always=act) as server, client(server, concurrency=3) as endpoint:
        replies = endpoint.chat_many([ask(str(n)) for n in range(30)], on_answer=lambda: told.append(1))
    assert [reply.text for reply in replies] == [f"for {n}" for n in range(30)]
    assert 2 <= most[0] <= 3
    assert len(told) == 30


def test_the_first_failure_stops_what_was_not_sent_yet():
    def act(handler, body):
        time.sleep(0.02)
        (status(400, "bad") if body["messages"][-1]["content"] == "2" else says("ok"))(handler, body)

    with served(always=act, concurrency=2) as (server, endpoint), pytest.raises(RecipeError, match="bad"):
        endpoint.chat_many([ask(str(n)) for n in range(1000)])
    assert len(server.seen) < 500


def test_nobody_waits_for_another_attempt_once_one_has_failed():
    sent = threading.Event()  # a request that has not been sent when the first 429 comes waits as long as that says

    def act(handler, body):
        if body["messages"][-1]["content"] == "bad":
            sent.set()
            time.sleep(0.2)  # the others wait by now
            status(401)(handler, body)
        else:
            sent.wait(20)
            status(429, Retry_After="55")(handler, body)

    started = time.monotonic()
    with served(always=act, concurrency=4) as (_, endpoint), pytest.raises(AccessError) as caught:
        endpoint.chat_many([ask("one"), ask("two"), ask("bad")])
    assert caught.value.problems[0].code == "R761" and time.monotonic() - started < 50


def test_equal_requests_in_flight_are_asked_once():
    def act(handler, body):
        time.sleep(0.1)
        says("one")(handler, body)

    with ScriptedServer(always=act) as server, client(server, concurrency=8) as endpoint:
        replies = endpoint.chat_many([ask("same")] * 6)
        assert [reply.text for reply in replies] == ["one"] * 6
        assert endpoint.usage().requests == 1 and endpoint.usage().cached == 5
        other = endpoint.chat(ask("same", variant=1))
    assert not other.cached and len(server.seen) == 2


# -- cache


def test_what_was_answered_is_not_asked_again_and_costs_nothing(tmp_path):
    prices = {"input_price": 1.0, "output_price": 2.0}
    with ScriptedServer(always=says("kept", prompt_tokens=100, completion_tokens=50)) as server:
        with client(server, cache_dir=tmp_path, **prices) as endpoint:
            endpoint.chat(ask())
            assert endpoint.usage().cost_usd == pytest.approx((100 * 1 + 50 * 2) / 1e6)
        with client(server, cache_dir=tmp_path, **prices) as endpoint:
            again = endpoint.chat(ask())
            assert again.text == "kept" and again.cached
            assert endpoint.usage().cost_usd == 0 and endpoint.usage().cached == 1
            assert not endpoint.chat(ask("another")).cached
            assert not endpoint.chat(ask(temperature=0.7)).cached
    assert len(server.seen) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b'{"request": {}, "answer": {}}', b"[1]"])
def test_a_damaged_file_of_the_cache_is_asked_for_again_and_mended(tmp_path, damage):
    with ScriptedServer() as server, client(server, cache_dir=tmp_path) as endpoint:
        endpoint.chat(ask())
        (file,) = tmp_path.rglob("*.json")
        file.write_bytes(damage)
        assert not endpoint.chat(ask()).cached
        assert endpoint.chat(ask()).cached


def test_bad_answers_are_never_kept(tmp_path):
    settings = {"cache_dir": tmp_path, "max_retries": 0}
    with served(always=raw(b"{"), **settings) as (_, endpoint), pytest.raises(RunFailed):
        endpoint.chat(ask())
    assert list(tmp_path.rglob("*.json")) == []


@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, 3), st.integers(0, 3))
def test_requests_that_differ_have_names_that_differ(one, other, left, right):
    same = (one, left) == (other, right)
    keys = {request_key("u", ask(text).body("m"), variant=n) for text, n in ((one, left), (other, right))}
    assert (len(keys) == 1) == same


# -- keys and money


def test_the_key_is_sent_and_appears_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    refuses = status(401, "Incorrect API key provided: sk-very-secret")
    settings = {"cache_dir": tmp_path, "api_key_env": "MY_KEY"}
    with served(script=[says("ok")], always=refuses, **settings) as (server, endpoint):
        endpoint.chat(ask())
        with pytest.raises(AccessError) as caught:
            endpoint.chat(ask("second"))
    assert server.seen[0]["headers"]["Authorization"] == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value) and "MY_KEY" in str(caught.value)
    assert all("secret" not in file.read_text() for file in tmp_path.rglob("*.json"))


def test_a_key_that_is_not_there_is_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with ScriptedServer() as server, pytest.raises(AccessError, match="MY_KEY"):
        client(server, api_key_env="MY_KEY")
    assert server.seen == []


def test_the_budget_holds_even_for_requests_in_flight_together():
    prices = {"input_price": 0.0, "output_price": 1e6}  # a dollar a token
    settings = {"concurrency": 8, "budget_usd": 100.0, **prices}
    with served(always=says("x", completion_tokens=20), **settings) as (server, endpoint):
        with pytest.raises(RunFailed, match="budget"):
            endpoint.chat_many([ask(str(n)) for n in range(12)])
        spent = endpoint.usage().cost_usd
    assert spent <= 100.0 and len(server.seen) <= 5
    assert spent == 20.0 * len(server.seen)


def test_the_budget_is_not_blocked_by_requests_that_failed_or_were_cheap():
    prices = {"input_price": 0.0, "output_price": 1e6}
    settings = {"budget_usd": 25.0, **prices}
    with served(script=[status(400)], always=says("x", completion_tokens=2), **settings) as (_, endpoint):
        with pytest.raises(RecipeError):
            endpoint.chat(ask("fails"))
        for n in range(3):
            endpoint.chat(ask(str(n)))
        assert endpoint.usage().cost_usd == 6.0


def test_an_answer_without_a_count_is_charged_the_most_it_can_cost():
    no_usage = raw(json.dumps({"choices": [{"message": {"content": "x"}}]}).encode())
    with served(always=no_usage, input_price=0.0, output_price=1e6, budget_usd=50.0) as (_, endpoint):
        endpoint.chat(ask())
        assert endpoint.usage().cost_usd == 20.0 and endpoint.usage().unreported == 1


def test_settings_that_cannot_be_right_are_told_together():
    with pytest.raises(RecipeError) as caught:
        EndpointSettings(base_url="localhost:8000", model="", concurrency=0, budget_usd=1.0).require_valid()
    assert [problem.code for problem in caught.value.problems] == ["R766"] * 4


def test_closing_ends_the_waiting():
    with ScriptedServer(always=status(429, Retry_After="55")) as server:
        endpoint = client(server)
        threading.Timer(0.3, endpoint.close).start()
        started = time.monotonic()
        with pytest.raises(AccessError, match="closed"):
            endpoint.chat(ask())
    assert time.monotonic() - started < 50
