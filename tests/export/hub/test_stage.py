"""Contract: a recipe with `export.push_to_hub` publishes its result, once, and asks for the token before the work."""

import json
import subprocess
import sys

import pytest

from tests.cli.calling import make_world, write_recipe
from tests.export.hub.test_push import CALL, environment
from tests.support.hub import WRITE, Hub


def luthier(hub, tmp_path, *arguments, token=WRITE):
    call = [sys.executable, "-c", CALL, *map(str, arguments)]
    there = {**environment(hub, tmp_path, token), "LUTHIER_CACHE": str(tmp_path / "cache"), "LUTHIER_FORCE_CPU": "1"}
    return subprocess.run(call, env=there, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_a_run_publishes_its_result(tmp_path):
    world = make_world(tmp_path)
    push = {"repo_id": "me/tiny", "what": "adapter", "base_model": "org/base"}
    recipe = write_recipe(tmp_path / "r.yaml", world, export={"push_to_hub": push})
    with Hub() as hub:
        said = luthier(hub, tmp_path, "run", recipe, "--json", token=None)
        assert (said.returncode, json.loads(said.stdout)["problems"][0]["code"]) == (6, "X644")
        assert not (tmp_path / "run" / "data").exists(), "told before the work"
        said = luthier(hub, tmp_path, "run", recipe, "--json")
        assert said.returncode == 0, said.stdout + said.stderr
        files = hub.files("me/tiny")
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "luthier.json"} <= set(files)
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
        assert b"base_model: org/base" in files["README.md"]
        assert str(tmp_path).encode() not in b"".join(files.values())
        assert files["README.md"] == (tmp_path / "run" / "final" / "README.md").read_bytes()
        calls = len(hub.calls)
        again = luthier(hub, tmp_path, "run", recipe, "--json")
        assert "push" in json.loads(again.stdout)["reused"]
        assert len(hub.calls) == calls
