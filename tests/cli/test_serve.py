"""Contract: `luthier serve` refuses what is unsafe before it loads anything; `luthier chat` talks to any server."""

import pytest

from tests.cli.calling import caller
from tests.serve.serving import KEY, adapter_folder, plain, serving
from tests.support.tiny import save_tiny


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("cli") / "tiny")


def test_an_open_address_without_a_key_is_refused(call, base):
    said = call("serve", base, "--host", "0.0.0.0", "--json")
    assert said.code == 2 and said.json["problems"][0]["code"] == "S605"


def test_what_is_not_there_is_told(call, tmp_path):
    assert call("serve", tmp_path / "nothing").code == 2
    assert call("serve").code == 2


def test_print_shows_the_vllm_command_and_starts_nothing(call, base, tmp_path):
    one = adapter_folder(tmp_path / "one", base, seed=1)
    said = call("serve", one, "--backend", "vllm", "--print", "--api-key", "not-for-the-process-list")
    assert said.code == 0 and said.out.startswith(f"vllm serve {base} ")
    assert f"--lora-modules one={one}" in said.out and "not-for-the-process-list" not in said.out
    assert call("serve", one, "--print", "--json").json["command"][:2] == ["vllm", "serve"]
    said = call("serve", one, "--print", "--max-queue", "5", "--drain-seconds", "9")
    assert (
        said.code == 2 and "--max-queue" in said.err and "--drain-seconds" in said.err and "vllm serve" not in said.out
    )
    assert call("serve", one, "--backend", "vllm", "--json").json["problems"][0]["code"] == "S618"
    said = call("serve", one, "--backend", "vllm")
    assert said.code == 4 and "S614" in said.err


def test_chat_with_an_endpoint(call, base, monkeypatch):
    with serving([plain(base)], api_key=KEY) as server:
        monkeypatch.setenv("KEY_OF_TESTS", KEY)
        ask = ("chat", "--endpoint", f"{server.url}/v1", "--model", "tiny", "--max-new-tokens", "8", "-p", "time")
        said = call(*ask, "--api-key-env", "KEY_OF_TESTS", "--json")
        expected = server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "time"}], max_tokens=8, temperature=0
        )
        assert said.json["answers"] == {"tiny": expected.choices[0].message.content}
        assert call(*ask).code == 6, "no key"
    assert call("chat", "--endpoint", "http://localhost:1/v1").code == 2
    assert call("chat", "--endpoint", "http://localhost:1/v1", "--model", "x", "--base").code == 2
    assert call("chat").code == 2
