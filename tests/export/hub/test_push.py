"""Contract: what is pushed arrives whole, once, with its card, and nothing of this machine goes along."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.model.identity import write_record
from luthier.runtime.errors import RecipeError, RunFailed
from tests.report.make_run import make_run
from tests.support.hub import WRITE, Hub

ROOT = Path(__file__).parents[3]
CALL = "from luthier.cli.main import main; main()"
SEVERAL = """
import json, sys, io, contextlib
from luthier.cli.main import main
run, *repos = sys.argv[1:]
for repo in repos:
    sys.argv = ["luthier", "push", run, repo, "--json"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try: main()
        except SystemExit as stop: code = stop.code
    said = json.loads(out.getvalue())
    print(json.dumps([repo, code, said.get("problems")]))
"""
FETCH = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3]))
"""


@pytest.fixture
def hub():
    with Hub() as standing:
        yield standing


@pytest.fixture
def run(tmp_path):
    """A run with an adapter and a merged model of two shards; contents are made up, sizes are not small."""
    made = make_run(tmp_path / "tickets")
    final, merged = made.path / "final", made.path / "merged"
    merged.mkdir()
    (final / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "smollm2-135m-instruct", "r": 8}))
    (final / "adapter_model.safetensors").write_bytes(random.Random(0).randbytes(3_000))
    (merged / "config.json").write_text("{}")
    for number in (1, 2):
        (merged / f"model-0000{number}-of-00002.safetensors").write_bytes(random.Random(number).randbytes(200_000))
    (merged / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    write_record(final, kind="adapter", base=None)
    write_record(merged, kind="merged", base=None, merge={"base": "/home/joe/models/base"})
    return made


def environment(hub, tmp_path, token=WRITE):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": str(ROOT), **({"HF_TOKEN": token} if token else {})}  # fmt: skip


def luthier(hub, tmp_path, *arguments, token=WRITE):
    call = [sys.executable, "-c", CALL, *map(str, arguments)]
    return subprocess.run(call, env=environment(hub, tmp_path, token), capture_output=True, text=True, timeout=120)


def hashes(folder):
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }


def test_pushed_downloaded_and_pushed_again(hub, run, tmp_path):
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets")
    assert said.returncode == 0, said.stderr
    assert "model-00001-of-00002.safetensors" in said.stdout and "200,000" not in said.stdout
    assert WRITE not in said.stdout + said.stderr
    repo = hub.repos["me/tickets"]
    assert repo.private and hub.commits("me/tickets") == 2

    call = [sys.executable, "-c", FETCH, "me/tickets", "main", str(tmp_path / "down")]
    subprocess.run(call, env=environment(hub, tmp_path), check=True, capture_output=True, timeout=120)
    local, there = hashes(run.path / "merged"), hashes(tmp_path / "down")
    assert {name for name in local if local[name] != there.get(name)} == {"luthier.json"}
    record = json.loads((tmp_path / "down" / "luthier.json").read_text())
    assert record["merge"]["base"] == "base"
    assert "/home/joe" not in b"".join(hub.files("me/tickets").values()).decode("latin-1")
    card = (run.path / "merged" / "README.md").read_text()
    assert "from_pretrained('me/tickets'" in card

    sent, calls = dict(hub.received), len(hub.calls)
    again = luthier(hub, tmp_path, "push", run.path, "me/tickets", "--json")
    result = json.loads(again.stdout)
    assert (result["changed"], result["sent"], result["unchanged"]) == (False, [], len(local))
    assert hub.commits("me/tickets") == 2 and hub.received == sent
    assert not any("preupload" in call or "commit" in call for call in hub.calls[calls:])
    assert json.loads((run.path / "export" / "push.json").read_text())["merged"]["commit"] == result["commit"]
    for file in run.path.rglob("*"):
        assert not file.is_file() or WRITE.encode() not in file.read_bytes()
    assert not list(run.path.glob(".tmp-*"))


def test_killed_in_the_middle_and_taken_up(hub, run, tmp_path):
    hub.hold = True
    call = [sys.executable, "-c", CALL, "push", str(run.path), "me/tickets"]
    process = subprocess.Popen(
        call, env=environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert hub.first_done.wait(90)
    finally:
        process.kill()
        process.wait()
    assert hub.commits("me/tickets") == 1, "nothing is visible of a push that did not end"
    [done] = hub.objects
    hub.hold = False
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets")
    assert said.returncode == 0, said.stderr
    assert hub.received[done] == 200_000, "what had arrived was not sent again"
    assert len(hub.objects) == 2 and hub.commits("me/tickets") == 2
    assert not list(run.path.glob(".tmp-*")), "what the killed push left is gone"


def test_every_refusal_has_its_code(hub, run, tmp_path):
    hub.add("me/public", private=False)
    hub.add("me/moved")
    create = "POST /api/repos/create"
    hub.faults = [
        (create, 429, {"Retry-After": "77"}, "slow down"),
        (create, 500, {}, "boom"),
        (create, 413, {}, "too large"),
        (r"POST /api/models/me/moved/commit", 412, {}, "A commit has happened since."),
    ]
    repos = ["me/e429", "me/e500", "me/e413", "me/moved", "other/x", "me/public", "nonsense"]
    call = [sys.executable, "-c", SEVERAL, str(run.path), *repos]
    said = subprocess.run(call, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=200)
    lines = {repo: (code, problems[0]) for repo, code, problems in map(json.loads, said.stdout.splitlines())}
    codes = {repo: (code, problem["code"]) for repo, (code, problem) in lines.items()}
    assert codes == {
        "me/e429": (6, "X648"), "me/e500": (6, "X649"), "me/e413": (2, "X655"), "me/moved": (6, "X647"),
        "other/x": (6, "X645"), "me/public": (2, "X656"), "nonsense": (2, "X652"),
    }, said.stderr  # fmt: skip
    assert "77 s" in lines["me/e429"][1]["hint"]
    assert "boom" in lines["me/e500"][1]["message"]
    assert hub.commits("me/public") == 1


def test_a_bad_token_and_none(hub, run, tmp_path):
    bad = "hf_" + "x" * 30
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets", "--json", token=bad)
    assert (said.returncode, json.loads(said.stdout)["problems"][0]["code"]) == (6, "X644")
    assert bad not in said.stdout + said.stderr
    calls = len(hub.calls)
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets", "--json", token=None)
    assert (said.returncode, json.loads(said.stdout)["problems"][0]["code"]) == (6, "X644")
    assert len(hub.calls) == calls


def test_a_server_that_is_down(run, tmp_path):
    with Hub() as gone:
        pass
    said = luthier(gone, tmp_path, "push", run.path, "me/tickets", "--json")
    assert (said.returncode, json.loads(said.stdout)["problems"][0]["code"]) == (6, "X649"), said.stdout


def test_words_written_on_the_hub_stay_and_old_shards_go(hub, run, tmp_path):
    assert luthier(hub, tmp_path, "push", run.path, "me/tickets", "--revision", "next").returncode == 0
    repo = hub.repos["me/tickets"]
    files = dict(repo.commits[repo.branches["next"][-1]])
    text = files["README.md"].data.decode() + "\nWritten on the Hub.\n"
    files["README.md"] = type(files["README.md"])(data=text.encode(), size=len(text.encode()))
    repo.commit("next", files)
    for file in (run.path / "merged").glob("model*"):
        file.unlink()
    (run.path / "merged" / "model.safetensors").write_bytes(random.Random(3).randbytes(1_000))
    write_record(run.path / "merged", kind="merged", base=None)
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets", "--revision", "next", "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    result = json.loads(said.stdout)
    assert sorted(result["removed"]) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    there = hub.files("me/tickets", "next")
    assert not set(result["removed"]) & set(there)
    assert there["README.md"].decode().endswith("\nWritten on the Hub.\n")
    assert (run.path / "merged" / "README.md").read_bytes() == there["README.md"]
    assert hub.commits("me/tickets") == 1, "main was not touched"


def test_one_changed_byte_is_sent_and_a_file_that_does_not_arrive_is_told(hub, run, tmp_path):
    assert luthier(hub, tmp_path, "push", run.path, "me/tickets").returncode == 0
    shard = run.path / "merged" / "model-00002-of-00002.safetensors"
    shard.write_bytes(b"!" + shard.read_bytes()[1:])
    (run.path / "merged" / "config.json").write_text("[]")
    write_record(run.path / "merged", kind="merged", base=None)
    result = json.loads(luthier(hub, tmp_path, "push", run.path, "me/tickets", "--json").stdout)
    assert result["sent"] == ["config.json", "luthier.json", shard.name]
    assert hub.files("me/tickets")[shard.name] == shard.read_bytes()
    (run.path / "merged" / "notes.txt").write_text("new")
    hub.ignored.add("notes.txt")
    said = luthier(hub, tmp_path, "push", run.path, "me/tickets", "--json")
    assert (said.returncode, json.loads(said.stdout)["problems"][0]["code"]) == (1, "X658")


def test_a_dry_run_contacts_nobody_and_writes_nothing(hub, run, tmp_path):
    before = hashes(run.path)
    said = luthier(hub, tmp_path, "push", run.path, "me/t", "--what", "adapter", "--dry-run", "--json", token=None)
    plan = json.loads(said.stdout)
    assert [file["name"] for file in plan["files"]] == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "luthier.json",
    ]  # fmt: skip
    assert plan["files"][1]["change"] == "base_model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct"
    assert plan["bytes"] == sum(file["bytes"] for file in plan["files"])
    assert (hub.calls, hashes(run.path)) == ([], before)


def plan(run, what="merged", **keys):
    from luthier.pipeline.push import plan_push
    from luthier.recipe.push_schema import PushSection

    return plan_push(run, PushSection(repo_id="me/tickets", what=what, **keys))


def code_of(error, run, *arguments, **keys):
    with pytest.raises(error) as caught:
        plan(run, *arguments, **keys)
    return caught.value.problems


def test_secrets_links_and_altered_files_stay_here(run):
    (run.path / "merged" / "notes.md").write_text("fine\nkey " + "sk-" + "abcdefghijklmnopqrstuvwx")
    (run.path / "merged" / "link.json").symlink_to("/etc/hostname")
    problems = code_of(RunFailed, run)
    assert {problem.code for problem in problems} == {"X650"}
    assert any(problem.line == 2 and "sk-a" in problem.message for problem in problems)
    assert not any("abcdefgh" in problem.message for problem in problems)
    (run.path / "merged" / "config.json").write_text('{"changed": true}')
    assert code_of(RunFailed, run)[0].code == "M317"


def test_an_adapter_on_a_folder_of_this_machine(run):
    (run.path / "final" / "adapter_config.json").write_text('{"base_model_name_or_path": "/srv/base"}')
    write_record(run.path / "final", kind="adapter", base=None)
    assert code_of(RecipeError, run, "adapter")[0].code == "X651"
    files = {file.name: file for file in plan(run, "adapter", base_model="org/base").files}
    assert json.loads(files["adapter_config.json"].data)["base_model_name_or_path"] == "org/base"
    from luthier.runtime.hashing import hash_bytes

    pushed = json.loads(files["luthier.json"].data)
    assert pushed["files"]["adapter_config.json"] == hash_bytes(files["adapter_config.json"].data)


def test_what_the_run_does_not_have(run):
    assert code_of(RecipeError, run, "gguf")[0].code == "X657"
    (run.path / "final" / "adapter_config.json").unlink()
    (run.path / "final" / "luthier.json").unlink()
    assert "no adapter" in code_of(RecipeError, run, "adapter")[0].message


def test_the_stand_in_knows_git_names():
    from tests.support.hub import Entry

    assert Entry(data=b"hello\n", size=6).oid == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert re.fullmatch(r"[0-9a-f]{40}", Entry(sha256="ab" * 32, size=3).oid)
