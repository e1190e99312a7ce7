"""Contract: a streamed answer is the pieces the server sent, as they come, or an error; never half in silence."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.endpoint.events import pieces_of
from luthier.endpoint.reply import BadReply
from luthier.runtime.errors import AccessError, LuthierError, RecipeError, RunFailed
from tests.endpoint.server import answer, raw, reset, says, status, streams
from tests.endpoint.test_endpoint import ask, served


def test_pieces_come_as_they_are_sent():
    first, known = threading.Event(), []

    def before(event):
        if event == 3:  # after the role, `Gr` and `üße`
            known.append(first.wait(60))

    with served(always=streams("Gr", "üße", " 🙂", before=before)) as (server, endpoint):
        pieces = []
        for piece in endpoint.stream(ask("hi")):
            pieces.append(piece)
            first.set()
        assert pieces == ["Gr", "üße", " 🙂"]
        assert known == [True], "the first piece was here before the last one was sent"
        assert server.seen[0]["body"]["stream"] is True
        assert endpoint.usage().requests == 1


def test_a_server_that_does_not_stream_is_taken_as_it_is():
    with served(always=says("whole")) as (_, endpoint):
        assert list(endpoint.stream(ask())) == ["whole"]


def test_a_busy_server_is_asked_again_before_the_first_piece():
    with served(script=[status(503), reset, status(429, retry_after="0.01")], always=streams("a")) as (
        server,
        endpoint,
    ):
        assert list(endpoint.stream(ask())) == ["a"]
        assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("act", "error", "code"),
    [
        (streams("a", end=False), RunFailed, "R763"),
        (streams("a", end=False, error="out of memory"), RunFailed, "R763"),
        (raw(b"<html>"), RunFailed, "R763"),
        (status(401), AccessError, "R761"),
        (status(404), RecipeError, "R762"),
        (status(500), AccessError, "R760"),
    ],
)
def test_what_is_no_answer_is_an_error(act, error, code):
    with served(always=act, max_retries=1) as (_, endpoint):
        with pytest.raises(error) as caught:
            list(endpoint.stream(ask()))
        assert caught.value.problems[0].code == code


def test_a_key_that_is_quoted_back_is_not_shown(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", "sesame-open-1234")
    act = streams("a", end=False, error="bad key sesame-open-1234")
    with served(always=act, api_key_env="CHAT_KEY") as (server, endpoint):
        with pytest.raises(LuthierError) as caught:
            list(endpoint.stream(ask()))
        assert "sesame" not in str(caught.value)
        assert server.seen[0]["headers"]["Authorization"] == "Bearer sesame-open-1234"


@given(st.lists(st.text(max_size=20), max_size=6))
def test_the_pieces_are_the_text(texts):
    import json

    lines = [b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n" for text in texts]
    assert "".join(pieces_of([*lines, b"data: [DONE]\n"], "text/event-stream")) == "".join(texts)
    with pytest.raises(BadReply):
        list(pieces_of(lines, "text/event-stream"))
    whole = json.dumps(answer("".join(texts))).encode()
    assert list(pieces_of([whole], "application/json")) == ["".join(texts)]
