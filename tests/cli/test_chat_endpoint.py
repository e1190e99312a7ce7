"""Contract: `luthier chat` talks to servers as to local models, side by side, and remembers the turns."""

import pytest

from tests.cli.calling import caller, make_world
from tests.endpoint.server import ScriptedServer, status, streams


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


def test_one_prompt_as_json_and_streamed(call):
    with ScriptedServer(always=streams("Hel", "lo")) as server:
        said = call("chat", "--endpoint", server.url, "--model", "m1", "-p", "hi", "--system", "be kind", "--json")
        assert said.json == {"prompt": "hi", "answers": {"m1": "Hello"}}
        assert server.seen[0]["body"]["messages"] == [
            {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
        ]  # fmt: skip
        assert call("chat", "--endpoint", server.url, "--model", "m1", "-p", "hi").out == "Hello\n"


def test_a_conversation_with_two_servers_keeps_its_turns(call, monkeypatch):
    turns = iter(["one", "two", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(turns))
    with ScriptedServer(always=streams("A")) as first, ScriptedServer(always=streams("B")) as second:
        said = call("chat", "--endpoint", first.url, "--model", "m", "--endpoint", second.url, "--model", "m")
        assert said.out == "[m (1)] A\n[m (2)] B\n" * 2
        for server, answer in ((first, "A"), (second, "B")):
            assert [m["content"] for m in server.seen[1]["body"]["messages"]] == ["one", answer, "two"]


def test_a_server_beside_a_local_model(call, tmp_path):
    world = make_world(tmp_path)
    with ScriptedServer(always=streams("B")) as server:
        said = call("chat", world / "base", "-p", "time", "--max-new-tokens", "2", "--json",
                    "--endpoint", server.url, "--model", "theirs")  # fmt: skip
        assert set(said.json["answers"]) == {"model", "theirs"}, said.err
        assert said.json["answers"]["theirs"] == "B"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "target"),
        (("--endpoint", "http://127.0.0.1:9/v1"), "--model"),
        (("runs/x", "--api-key-env", "X"), "--endpoint"),
        (("--endpoint", "ftp://x", "--model", "m", "-p", "x"), "no http"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--json"), "--prompt"),
    ],
)
def test_arguments_that_do_not_go_together(call, arguments, word):
    said = call("chat", *arguments)
    assert said.code == 2
    assert word in said.err + said.out


def test_a_plain_model_has_no_base(call, tmp_path):
    world = make_world(tmp_path)
    for option in ("--base", "--merged", "--side-by-side"):
        said = call("chat", world / "base", option, "-p", "time", "--json")
        assert (said.code, said.json["problems"][0]["code"]) == (2, "X643")


def test_a_missing_key_and_a_refused_one(call, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with ScriptedServer(always=status(401, "no")) as server:
        arguments = (
            "chat",
            "--endpoint",
            server.url,
            "--model",
            "m",
            "-p",
            "x",
            "--api-key-env",
            "NO_SUCH_KEY",
            "--json",
        )
        assert call(*arguments).json["problems"][0]["code"] == "R765"
        monkeypatch.setenv("NO_SUCH_KEY", "abcdefgh")
        said = call(*arguments)
        assert (said.code, said.json["problems"][0]["code"]) == (6, "R761")
        assert "abcdefgh" not in said.out + said.err
