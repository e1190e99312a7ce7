"""`luthier studio` as a user starts it."""

import http.client
import json
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from luthier.api.settings import ServerSection, ServiceSettings
from luthier.jobs.store import Store
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.studio.serve import admin_keys, run_studio
from luthier.studio.settings import StudioSettings
from tests.studio.folders import make_run


def test_from_start_to_end(tmp_path):
    make_run(tmp_path / "runs" / "a")
    command = [sys.executable, "-m", "luthier", "studio", "runs", "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            text += line
        told = json.loads(text)
        address = urlsplit(told["link"])
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request("GET", f"{address.path}?{address.query}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 303 and answer.headers["Location"] == "/studio/"
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        connection.request("GET", "/studio/api/runs", headers={"Cookie": cookie})
        found = json.load(connection.getresponse())
        assert [line["name"] for line in found["runs"]] == ["a"]
        connection.request("GET", "/studio/api/runs")
        refused = connection.getresponse()
        refused.read()
        assert refused.status == 401
        stream = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        stream.request("GET", "/studio/api/runs/a/stream", headers={"Cookie": cookie, "Accept": "text/event-stream"})
        events = stream.getresponse()
        assert events.headers["Content-Type"].startswith("text/event-stream")
        assert events.readline() == b"retry: 1000\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, "an open stream does not keep the server from ending"
        assert "login?once=" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def settings_in(root):
    return StudioSettings(runs=root / "runs", root=root, program=("x",))


def test_an_address_that_others_can_reach_needs_a_key_of_an_admin(tmp_path):
    service = ServiceSettings(server=ServerSection(host="0.0.0.0", port=0))
    store = Store.open(tmp_path / "home")
    store.new_key("reader", "o", ("read",))
    record, _ = store.new_key("gone", "o", ("admin",))
    store.revoke(record.id)
    store.close()
    with pytest.raises(RecipeError) as error:
        run_studio(
            settings_in(tmp_path), service, home=tmp_path / "home", ready=lambda url, link: pytest.fail("served")
        )
    assert error.value.problems[0].code == "W125"


def test_a_file_is_no_folder_of_runs(tmp_path):
    (tmp_path / "runs").write_text("x")
    with pytest.raises(EnvironmentProblem, match="no folder of runs"):
        run_studio(settings_in(tmp_path), ServiceSettings(), home=tmp_path / "home", ready=lambda url, link: None)
    assert not (tmp_path / "home").exists()


def test_keys_of_an_admin_open_and_guessing_is_slowed_down(tmp_path):
    import asyncio

    from luthier.serve.http.errors import ApiError

    store = Store.open(tmp_path / "home")
    _, admin = store.new_key("a", "o", ("admin",))
    _, reader = store.new_key("r", "o", ("read",))
    check = admin_keys(store, ServiceSettings())

    async def go():
        assert await check(admin, "9.9.9.9") and not await check(reader, "9.9.9.9")
        tries = 0
        with pytest.raises(ApiError) as error:
            for tries in range(20):
                assert not await check(f"lk-wrong-{tries}", "9.9.9.9")
        assert error.value.status == 429 and error.value.headers["Retry-After"] and 3 < tries < 10
        assert await check(admin, "9.9.9.9"), "a right key always passes"

    asyncio.run(go())
    store.close()
