"""Start, pause, stop, stop now, resume: with a process that heeds signals as a run does."""

import os
import time

import pytest

from tests.studio.asking import Desk
from tests.studio.folders import RECIPE, make_run


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a studio stands in the folder that relative paths start from
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "test.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    (tmp_path / "base").mkdir()
    with Desk(tmp_path) as made:
        yield made
        for child in made.studio.store.children().values():
            if child.pid:
                try:
                    os.kill(child.pid, 9)
                except ProcessLookupError:
                    continue


def recipe_text(**changes):
    from luthier.recipe.emit import dump_yaml

    value = {**RECIPE, "model": {"name_or_path": "base"}, "evaluate": {"tasks": []}, **changes}
    return "# mine\n" + dump_yaml(value)


def wait(desk, ident, *statuses):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer = desk.ask(f"/studio/api/runs/{ident}")
        if answer.status == 200 and answer.json["run"]["status"] in statuses:
            return answer.json["run"]
        time.sleep(0.05)
    raise AssertionError(f"{ident} never was {statuses}: {answer.body[:500]}")


def act(desk, ident, action):
    return desk.ask(f"/studio/api/runs/{ident}/actions", method="POST", body={"action": action})


def test_start_pause_resume_stop(desk, tmp_path):
    answer = desk.ask("/studio/api/recipe/start", method="POST", body={"text": recipe_text(), "name": "new one"})
    assert answer.status == 201 and answer.json["id"] == "new one", answer.body
    wait(desk, "new one", "running")
    taken = desk.ask("/studio/api/recipe/start", method="POST", body={"text": recipe_text(), "name": "new one"})
    assert taken.status == 409 and taken.error["code"] == "W121"
    # As the user wrote it, and the name that was given.
    text = (tmp_path / "runs" / "new one" / "recipe.yaml").read_text()
    assert text.startswith("# mine\n") and "runs/new one" in text

    assert act(desk, "new one", "resume").status == 409
    answer = act(desk, "new one", "pause")
    assert answer.status == 202 and answer.json["run"]["status"] in ("stopping", "paused")
    line = wait(desk, "new one", "paused")
    assert line["actions"] == ["resume"] and line["step"] > 0
    assert act(desk, "new one", "stop").error["code"] == "W120"

    assert act(desk, "new one", "resume").status == 202
    wait(desk, "new one", "running")
    while desk.studio.index.pid("new one") is None:  # a signal before that ends a process that has begun nothing
        time.sleep(0.02)
    assert act(desk, "new one", "stop").status == 202
    assert wait(desk, "new one", "stopped")["actions"] == ["resume"]
    events = desk.ask("/studio/api/runs/new%20one/log?level=warn").json
    assert [event["event"] for event in events["events"]].count("interrupted") == 2


def test_stop_now_ends_what_hangs(desk, tmp_path):
    desk.ask("/studio/api/recipe/start", method="POST", body={"text": recipe_text(), "name": "hung"})
    wait(desk, "hung", "running")
    while desk.studio.index.pid("hung") is None:
        time.sleep(0.02)
    (tmp_path / "runs" / "hung" / "hang").touch()
    act(desk, "hung", "stop")
    time.sleep(0.3)
    assert wait(desk, "hung", "stopping")["actions"] == ["stop_now"]
    assert act(desk, "hung", "stop_now").status == 202
    wait(desk, "hung", "stopped")


def test_a_process_that_ends_before_there_is_a_folder_says_why(desk):
    text = recipe_text().replace("rows.jsonl", "absent.jsonl")
    answer = desk.ask("/studio/api/recipe/start", method="POST", body={"text": text, "name": "x"})
    assert answer.status == 400 and answer.error["code"] == "C130", "wrong recipes are refused before anything starts"
    assert not desk.studio.store.children()


def test_what_a_shell_would_do_with_a_name_is_not_done(desk, tmp_path):
    name = "a;touch marker $(touch marker) `touch marker` & x"
    answer = desk.ask("/studio/api/recipe/start", method="POST", body={"text": recipe_text(), "name": name})
    assert answer.status == 201
    wait(desk, answer.json["id"].replace(" ", "%20").replace("&", "%26").replace("`", "%60"), "running")
    assert (tmp_path / "runs" / name).is_dir()
    assert not list(tmp_path.rglob("marker"))
    desk.studio.store.want(answer.json["id"], "stop")


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "-rf", ".x", "a/b/c", "x" * 300, "a\nb"])
def test_names_that_lead_elsewhere_are_refused(desk, tmp_path, name):
    answer = desk.ask("/studio/api/recipe/start", method="POST", body={"text": recipe_text(), "name": name})
    assert answer.status == 400 and answer.error["code"] == "W107"
    assert not desk.studio.store.children() and sorted(p.name for p in (tmp_path / "runs").iterdir()) == [".studio"]


def test_a_run_outside_the_runs_folder_is_refused(desk):
    answer = desk.ask(
        "/studio/api/recipe/start", method="POST", body={"text": recipe_text(output_dir="elsewhere/x"), "name": None}
    )
    assert answer.status == 400 and answer.error["code"] == "W124"


def test_all_problems_of_a_recipe_at_once(desk):
    text = recipe_text().replace("max_steps: 5", "max_steps: five").replace("r: 8", "rank: 8")
    answer = desk.ask("/studio/api/recipe/start", method="POST", body={"text": text, "name": "x"})
    assert answer.status == 400
    assert {problem["code"] for problem in answer.error["problems"]} == {"C102", "C103"}
    assert all(problem["line"] for problem in answer.error["problems"])


def test_overrides_of_the_command_line_are_kept(tmp_path):
    from luthier.studio.runs.actions import resume_arguments

    folder = make_run(tmp_path / "runs" / "a", finished=False)
    assert resume_arguments(folder, default=tmp_path) == (["run", str(folder / "recipe.yaml")], tmp_path)
    import json

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["command"] = [
        "x/__main__.py",
        "run",
        "recipe.yaml",
        "train.max_steps=9",
        "--restart",
        "not an override",
        "a=b=c",
        "~evaluate",
        "--method.r",
        "4",
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    arguments, _ = resume_arguments(folder, default=tmp_path)
    assert arguments[2:] == ["train.max_steps=9", "a=b=c", "~evaluate", "method.r=4"], "restarting is not going on"
    words = ["luthier", "launch", "recipe.yaml", "--nodes=1", "--hosts=here", "--method.r=8", "--name", "x=1", "a.b=3"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "command": words}))
    arguments, _ = resume_arguments(folder, default=tmp_path)
    assert arguments[2:] == ["method.r=8", "name=x=1", "a.b=3"], "options of the command are no keys"


def test_a_run_on_several_processes_goes_on_with_as_many(tmp_path):
    from luthier.runs.folder import RunFolder
    from luthier.runtime.errors import RecipeError
    from luthier.studio.runs.actions import resume_arguments

    folder = make_run(tmp_path / "runs" / "a", finished=False)
    how = {"step": 0, "total_steps": 5, "resumed_from": None, "processes": 4, "strategy": "ddp"}
    RunFolder(folder).event("training_started", **how, machines=1, device="cuda")
    recipe = str(folder / "recipe.yaml")
    assert resume_arguments(folder, default=tmp_path)[0] == ["launch", recipe, "--num-gpus", "4"]
    RunFolder(folder).event("training_started", **how, machines=2, device="cuda")
    with pytest.raises(RecipeError, match="2 machines") as caught:
        resume_arguments(folder, default=tmp_path)
    assert caught.value.problems[0].code == "W123"
