"""Contract: `luthier api` says where it is and stops on Ctrl-C; keys are made, listed, revoked; mistakes are named."""

import json
import os
import signal
import subprocess
import sys

import pytest

from luthier.api.config import check_open, read_settings
from luthier.api.service import own_home, worker_settings
from luthier.api.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from tests.api.serving import until
from tests.cli.calling import caller


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return caller(monkeypatch, capfd)


def test_keys_are_made_listed_and_revoked(call, tmp_path):
    made = call(
        "api", "keys", "new", "ci", "--owner", "ann", "--scope", "jobs", "--scope", "files", "--max-queued", 3, "--json"
    ).json
    assert made["key"].startswith("lk-") and made["scopes"] == ["files", "jobs"] and made["limits"] == {"max_queued": 3}
    shown = call("api", "keys", "new", "desk")
    store = Store.open(tmp_path / ".luthier")
    record = store.key_of(shown.out.strip())
    assert record.owner == "local" and record.scopes == {"files", "jobs", "models", "chat"}
    assert "once" in shown.err
    listed = call("api", "keys", "ls", "--json")
    assert [one["name"] for one in listed.json] == ["ci", "desk"] and made["key"] not in listed.out
    table = call("api", "keys", "ls")
    assert "ann" in table.out and "max_queued 3" in table.out and made["key"] not in table.out
    assert call("api", "keys", "revoke", made["id"]).code == 0
    assert store.key_of(made["key"]) is None
    assert call("api", "keys", "revoke", made["id"], "--json").json["revoked_at"]
    assert [line["action"] for line in store.audit_lines()] == ["new key", "new key", "revoke key", "revoke key"]
    mode = (tmp_path / ".luthier").stat().st_mode & 0o777
    assert mode == 0o700


def test_home_stands_before_or_behind(call, tmp_path):
    assert call("api", "--home", tmp_path / "h", "keys", "new", "a").code == 0
    assert len(call("api", "keys", "ls", "--home", tmp_path / "h", "--json").json) == 1
    assert call("api", "keys", "ls", "--home", tmp_path / "none").code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("keys", "new", "a", "--scope", "king"), "J120"), (("keys", "new", "a", "--owner", "../x"), "J120"),
        (("keys", "new", ""), "J120"), (("--port", "1", "keys", "ls"), "A104"), (("keys", "ls"), "A105"),
        (("--config", "none.yaml"), "C101"), (("--host", "0.0.0.0", "--port", "0"), "A101"),
        (("keys", "new", "a", "--owner", "*"), "J120"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, arguments, code):
    said = call("api", *arguments)
    assert said.code == 2 and code in said.err, said


def test_revoking_an_unknown_key(call):
    call("api", "keys", "new", "a")
    assert "J102" in call("api", "keys", "revoke", "key_none").err


def test_settings_are_read_whole_and_every_mistake_told(tmp_path):
    file = tmp_path / "api.yaml"
    file.write_text("server: {port: 9, max_loaded_models: 3}\nworkers: {poll_seconds: 0.2}\nlimits: {min_rows: 4}\n")
    settings = read_settings(file, host="::1")
    assert (settings.server.host, settings.server.port, settings.server.max_loaded_models) == ("::1", 9, 3)
    assert settings.workers.poll_seconds == 0.2 and settings.of_jobs().limits.min_rows == 4
    handed = worker_settings(settings, tmp_path / "runs", 2)
    assert (
        handed.workers.poll_seconds == 0.2
        and handed.workers.devices == ["", ""]
        and handed.service.limits.min_rows == 4
    )
    assert type(handed).model_validate_json(handed.model_dump_json()) == handed
    file.write_text("server: {prt: 9, max_loaded_models: 0}\nmagic: 1\nlaunch: {kind: moon}\n")
    with pytest.raises(RecipeError) as wrong:
        read_settings(file)
    text = wrong.value.render()
    assert (
        all(word in text for word in ("prt", "max_loaded_models", "magic", "launch.kind", f"{file}:1:"))
        and len(wrong.value.problems) == 4
    )


def test_a_server_that_others_reach_needs_keys():
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        settings = ServiceSettings().model_copy(
            update={"server": ServiceSettings().server.model_copy(update={"host": host})}
        )
        with pytest.raises(RecipeError, match="A101"):
            check_open(settings, keys=0)
        check_open(settings, keys=1)
    check_open(ServiceSettings(), keys=0)


def test_a_home_has_one_server(tmp_path):
    second = pytest.raises(EnvironmentProblem, match=f"A103.*process {os.getpid()}")
    with own_home(tmp_path / "home"), second, own_home(tmp_path / "home"):
        pass
    with own_home(tmp_path / "home"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem), own_home(tmp_path / "file"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_says_where_it_is_and_stops_on_a_signal(tmp_path, number):
    call = [
        sys.executable,
        "-m",
        "luthier",
        "api",
        "--port",
        "0",
        "--json",
        "--home",
        "h",
        "--workers",
        "0" if number == signal.SIGTERM else "1",
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""}  # noqa: PTH109
    with subprocess.Popen(
        call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        told = json.loads("".join(lines))
        assert (
            told["base_url"].startswith("http://127.0.0.1:") and told["base_url"].endswith("/v1") and told["keys"] == 0
        )
        from openai import OpenAI

        with OpenAI(base_url=told["base_url"], api_key="x", max_retries=0) as client:
            assert "smollm2-135m-instruct" in {model.id for model in client.models.list()}
        workers = until(lambda: (tmp_path / "h" / "worker.json").is_file()) if told["workers"] else None
        process.send_signal(number)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert (
        f"OPENAI_BASE_URL={told['base_url']}" in said
        and "no keys" in said
        and "stopped" in said
        and "Traceback" not in said
    )
    assert workers is None or not (tmp_path / "h" / "worker.json").stat().st_mode & 0o077
