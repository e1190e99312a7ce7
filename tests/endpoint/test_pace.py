"""Contract: no window holds more requests or tokens than allowed; a token budget is not overrun."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.endpoint.client import Endpoint
from luthier.endpoint.pace import Pace
from luthier.endpoint.reply import ChatRequest
from luthier.endpoint.settings import EndpointSettings
from luthier.endpoint.usage import Spent
from luthier.runtime.errors import RecipeError, RunFailed
from tests.endpoint.server import ScriptedServer, raw, says


def worst(entries, window):
    """Most entries, and most tokens, in any window."""
    counts = [[b for b in entries if a[0] <= b[0] < a[0] + window] for a in entries]
    return max(map(len, counts)), max(sum(tokens for _, tokens in found) for found in counts)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_no_window_holds_more_than_allowed(sizes):
    pace, entries = Pace(3, 10, window=0.05), []
    for size in sizes:
        sent = pace.wait(size)
        entries.append((sent.at, size))
    most, tokens = worst(entries, 0.05)
    assert most <= 3 and tokens <= 10


def test_what_the_server_reports_makes_room_and_a_giant_goes_alone():
    pace = Pace(None, 10, window=0.3)
    first = pace.wait(9)
    pace.correct(first, 2)
    assert pace._left(first.at, 8) == 0.0, "corrected to 2, so 8 more fit"
    assert pace._left(first.at, 9) == pytest.approx(0.3), "and not 9"
    second = pace.wait(8)
    giant = pace.wait(50)
    assert giant.at - second.at >= 0.3, "alone in its window"


def test_a_stop_ends_the_wait():
    pace, stop = Pace(1, None), threading.Event()
    pace.wait(1)
    threading.Timer(0.05, stop.set).start()
    assert pace.wait(1, stop) is None


def ask(text):
    return ChatRequest(messages=[{"role": "user", "content": text}], max_tokens=20)


def test_a_budget_of_tokens_counts_what_earlier_sessions_used():
    with ScriptedServer(always=says("ok", prompt_tokens=100, completion_tokens=50)) as server:
        base = EndpointSettings(base_url=server.url, model="m", budget_tokens=700)
        with Endpoint(base) as endpoint:
            for index in range(3):
                endpoint.chat(ask(f"question {index}"))
        with Endpoint(base, earlier=Spent(400, 200)) as endpoint:
            with pytest.raises(RunFailed, match="budget of 700 tokens") as caught:
                endpoint.chat(ask("once more"))
            assert caught.value.problems[0].code == "R764" and endpoint.usage().requests == 0
    assert len(server.seen) == 3


def test_limits_are_checked():
    with pytest.raises(RecipeError, match="requests_per_minute must be 1 or more"):
        Endpoint(EndpointSettings(base_url="http://x/v1", model="m", requests_per_minute=0.5))


def test_a_refusal_in_its_own_field_is_an_answer_and_not_asked_again():
    body = b'{"choices": [{"message": {"content": null, "refusal": "I cannot help"}, "finish_reason": "stop"}]}'
    with ScriptedServer(always=raw(body)) as server, Endpoint(EndpointSettings(base_url=server.url, model="m")) as one:
        reply = one.chat(ask("x"))
    assert (reply.text, reply.finish_reason, len(server.seen)) == ("I cannot help", "refusal", 1)
