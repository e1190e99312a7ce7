"""Every route of the contract: shapes, pages of it, and what is wrong in one form."""

import json

import pytest

from luthier.runs.folder import RunFolder
from tests.studio.asking import Desk
from tests.studio.folders import make_run, score_rows
from tests.studio.test_names import HOSTILE

PAYLOAD = "<img src=x onerror=alert(1)>\u202e\x1b[31m\u0000"
SHOWN = "<img src=x onerror=alert(1)>\ufffd\u241b[31m\u2400"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Desk(tmp_path) as made:
        make_run(tmp_path / "runs" / "a")
        make_run(
            tmp_path / "runs" / "b",
            losses=[3.0, 2.5, 2.25],
            after=(1.0, 1.0, 1.0, 1.0),
            recipe={"method": {"name": "lora", "r": 64}},
        )
        make_run(tmp_path / "runs" / "bad", failed={"message": PAYLOAD}, recipe={"name": PAYLOAD})
        yield made


LINE = {
    "id",
    "name",
    "title",
    "status",
    "stage",
    "base",
    "method",
    "objective",
    "data",
    "step",
    "total_steps",
    "loss",
    "eval_loss",
    "spark",
    "headline",
    "score",
    "tokens_per_second",
    "peak_bytes",
    "processes",
    "seconds",
    "started_at",
    "finished_at",
    "updated_at",
    "error",
    "warnings",
    "job",
    "pinned",
    "tags",
    "notes",
    "actions",
}


def test_the_list(desk):
    answer = desk.ask("/studio/api/runs?sort=name&limit=2").json
    assert set(answer) == {"total", "offset", "limit", "counts", "tags", "runs", "damaged", "working"}
    assert answer["total"] == 3 and [line["name"] for line in answer["runs"]] == ["a", "b"]
    assert set(answer["runs"][0]) == LINE
    assert answer["counts"] == {"finished": 2, "failed": 1}


def test_one_run(desk):
    found = desk.ask("/studio/api/runs/a").json
    assert set(found) == {
        "run",
        "folder",
        "command",
        "started_with",
        "stages",
        "recipe",
        "resolved_text",
        "resolved",
        "plan",
        "measured",
        "manifest",
        "data",
        "checkpoints",
        "models",
        "children",
        "files",
        "predicted",
        "processes",
        "report",
    }
    assert found["folder"] == "runs/a" and found["command"] == "luthier run runs/a/recipe.yaml"
    assert found["recipe"].startswith("# the user's words")
    assert {"key": "train.max_steps", "value": 5, "reason": "five"} in found["resolved"]
    assert [(stage["name"], stage["state"]) for stage in found["stages"]] == [
        ("data", "done"),
        ("baseline", "waiting"),
        ("train", "done"),
        ("evaluate", "done"),
        ("compare", "done"),
        ("report", "done"),
    ]
    assert "names" not in found["stages"][2]["result"], "lists of a hundred names are no news"
    assert found["manifest"]["working_directory"] == desk.settings.root.name
    assert str(desk.settings.root) not in json.dumps(found)


def test_notes_are_kept_beside_the_runs(desk, tmp_path):
    before = sorted(file.name for file in (tmp_path / "runs" / "a").rglob("*"))
    changed = desk.ask(
        "/studio/api/runs/a", method="PATCH", body={"pinned": True, "tags": [" x ", "x", "y"], "notes": "hm\nhm"}
    ).json
    assert changed["run"]["pinned"] and changed["run"]["tags"] == ["x", "y"] and changed["run"]["notes"] == "hm\nhm"
    assert desk.ask("/studio/api/runs/a", method="PATCH", body={"notes": ""}).json["run"]["tags"] == ["x", "y"]
    assert sorted(file.name for file in (tmp_path / "runs" / "a").rglob("*")) == before
    for body in (
        {"tags": [""]},
        {"tags": ["x" * 41]},
        {"tags": ["x"] * 21},
        {"tags": [3]},
        {"notes": "x" * 10_001},
        {"pinned": 1},
        {"name": "x"},
    ):
        answer = desk.ask("/studio/api/runs/a", method="PATCH", body=body)
        assert answer.status == 400 and answer.error["code"] == "W103", body


def test_logs(desk):
    found = desk.ask("/studio/api/runs/a/metrics").json
    assert (
        [row["step"] for row in found["rows"]] == [1, 2, 3, 3]
        and found["next"] == found["total"] == 4
        and not found["thinned"]
    )
    assert [row["line"] for row in desk.ask("/studio/api/runs/a/metrics?since=2").json["rows"]] == [2, 3]
    events = desk.ask("/studio/api/runs/a/log?limit=2").json
    assert events["total"] == 6 and [event["event"] for event in events["events"]] == [
        "stage_finished",
        "stage_finished",
    ]
    assert set(events["events"][0]) == {"n", "time", "event", "level", "text", "fields"}
    RunFolder(desk.studio.folder("a")).append(
        "samples.jsonl",
        step=1,
        row="rows.jsonl:1",
        prompt="p",
        reference=None,
        completions=[{"text": PAYLOAD, "rewards": {"r": 1.0}}],
    )
    samples = desk.ask("/studio/api/runs/a/samples").json
    assert samples["samples"][0]["completions"] == [{"text": SHOWN, "rewards": {"r": 1.0}}]


def test_what_is_in_a_log_stays_in_its_line(desk):
    """F26: fake JSON, line feeds and escapes in a message are one event, shown with stand-ins."""
    (event,) = desk.ask("/studio/api/runs/bad/log?level=error").json["events"]
    assert event["text"] == SHOWN and event["fields"]["message"] == SHOWN
    run = RunFolder(desk.studio.folder("bad"))
    run.event("failed", code="X", message='\n{"event": "stage_finished"}\r\x1b[2J', exit_code=1)
    assert desk.ask("/studio/api/runs/bad/log?level=error").json["total"] == 2
    body = desk.ask("/studio/api/runs/bad/log").body
    assert b"\x1b" not in body and "\u202e".encode() not in body
    assert desk.ask("/studio/api/runs/bad").json["run"]["title"] == SHOWN


def test_evaluations(desk):
    found = desk.ask("/studio/api/runs/a/evals").json
    (task,) = found["tasks"]
    assert [column["label"] for column in task["columns"]] == ["base", "tuned"]
    assert task["comparison"]["wins"] == 1 and task["comparison"]["ties"] == 2 and found["regressions"] == []
    rows = desk.ask("/studio/api/runs/a/evals/t/rows").json
    assert [row["change"] for row in rows["rows"]] == [-1.0, 0.0, 0.0, 1.0], "losses first"
    assert [
        row["row"] for row in desk.ask("/studio/api/runs/a/evals/t/rows?sort=-change&only=changed").json["rows"]
    ] == [0, 3]
    assert desk.ask("/studio/api/runs/a/evals/t/rows?only=losses").json["rows"][0]["row"] == 3
    assert desk.ask("/studio/api/runs/a/evals/t/rows?q=question%202").json["total"] == 1
    row = rows["rows"][0]
    assert set(row) == {"row", "ref", "messages", "prompt", "reference", "change", "answers", "diff", "judge"}
    assert row["diff"]["marked"] and "".join(piece for piece, _ in row["diff"]["after"]) == row["answers"][1]["output"]
    assert row["answers"][0]["reason"] == "compared: 1 with right answer"
    assert found["command"] == "luthier compare runs/a", "a command that finds the folder"
    assert desk.ask("/studio/api/runs/a/evals/none/rows").error["code"] == "W132"
    assert desk.ask("/studio/api/runs/bad/evals").json["tasks"] == []


def test_scores_are_read_again_when_they_change(desk, tmp_path):
    assert desk.ask("/studio/api/runs/a/evals").json["tasks"][0]["n"] == 4
    (tmp_path / "runs" / "a" / "eval" / "after.json").write_text(json.dumps({"tasks": [score_rows([1.0] * 9)]}))
    assert desk.ask("/studio/api/runs/a/evals").json["tasks"][0]["columns"][1]["score"] == 1.0


def test_compare(desk):
    found = desk.until("/studio/api/compare?runs=a,b").json
    assert [line["id"] for line in found["runs"]] == ["a", "b"]
    assert [(item["key"], item["values"]) for item in found["config"]] == [("method.r", [8, 64])]
    (row,) = found["table"]
    assert [cell["score"] for cell in row["cells"]] == [0.5, 1.0] and row["base"]["score"] == 0.5
    (test,) = row["tests"]
    assert (test["a"], test["b"], test["delta"]) == (0, 1, 0.5) and test["p_holm"] >= test["p"]
    assert {fact["name"] for fact in found["facts"]} >= {"steps", "tokens_per_second", "peak_bytes", "seconds"}
    assert [row["step"] for row in found["curves"][1]["rows"]] == [1, 2, 3, 3]
    rows = desk.until("/studio/api/compare/rows?runs=a,b&task=t").json
    assert rows["total"] == 2 and [row["row"] for row in rows["rows"]] == [1, 3]
    assert [answer["score"] for answer in rows["rows"][0]["answers"]] == [0.0, 1.0]
    assert desk.until("/studio/api/compare/rows?runs=a,b&task=t&only=all&sort=row").json["total"] == 4


@pytest.mark.parametrize("runs", ["", "a", "a,a", "a,b,c,d,e,f,g", "a,nope", "a,..%2Fb"])
def test_comparisons_that_cannot_be(desk, runs):
    answer = desk.until(f"/studio/api/compare?runs={runs}")
    assert answer.status in (400, 404) and answer.error["code"] in ("W103", "W104")


def test_recipes(desk):
    assert desk.ask("/studio/api/schema").json["title"] == "Luthier recipe"
    starters = desk.ask("/studio/api/recipe/starters").json
    assert starters["starters"][0]["name"] == "quickstart" and starters["models"]
    wrong = desk.ask("/studio/api/recipe/check", method="POST", body={"text": "model: {name: x}\nnonsense: 1\n"}).json
    assert not wrong["ok"] and wrong["recipe"] == {"model": {"name": "x"}, "nonsense": 1}
    assert {(problem["path"], problem["line"]) for problem in wrong["problems"]} >= {("model.name", 1), ("nonsense", 2)}
    edited = desk.ask(
        "/studio/api/recipe/edit", method="POST", body={"text": "a: 1 # one\n", "changes": [{"key": "a", "value": 2}]}
    )
    assert edited.json == {"text": "a: 2 # one\n"}


def test_system(desk):
    found = desk.ask("/studio/api/system").json
    assert set(found) == {"time", "cpu", "memory", "disk", "gpus"}
    assert 0 < found["memory"]["used"] < found["memory"]["total"] and found["cpu"]["cores"] >= 1


def test_files(desk, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / ".secret.jsonl").write_text("{}\n")
    (tmp_path / "program.py").write_text("")
    found = desk.ask("/studio/api/files").json
    assert (
        [file["path"] for file in found["files"]] == ["rows.jsonl"]
        and found["folders"] == ["runs"]
        and found["parent"] is None
    )
    assert desk.ask("/studio/api/files?dir=runs/a").json["parent"] == "runs"
    for name in ("..", "/etc", "nope", "rows.jsonl"):
        assert desk.ask(f"/studio/api/files?dir={name}").error["code"] in ("W105", "W106")


def test_models(desk, tmp_path):
    (tmp_path / "runs" / "a" / "final").mkdir()
    found = desk.ask("/studio/api/runs?sort=name").json and desk.ask("/studio/api/models").json
    assert [(model["model"], model["kind"]) for model in found["models"]] == [("base-135m", "base"), ("a", "tuned")]
    answer = desk.ask(
        "/studio/api/render", method="POST", body={"model": "nope", "messages": [{"role": "user", "content": "x"}]}
    )
    assert answer.status == 400 and answer.error["code"] == "W134"
    for messages in ([], [3], [{"role": 1}], [{"role": "user", "content": "x"}] * 1_001):
        answer = desk.ask("/studio/api/render", method="POST", body={"model": "a", "messages": messages})
        assert answer.status == 400 and answer.error["code"] == "W103"


PLACES = [
    "",
    "/metrics",
    "/log",
    "/samples",
    "/stream",
    "/report",
    "/evals",
    "/evals/t/rows",
    "/data",
    "/data/rows",
    "/data/rows/0",
    "/data/packs",
]


@pytest.mark.parametrize("names", [HOSTILE[::2], HOSTILE[1::2]], ids=["even", "odd"])
def test_hostile_names_find_nothing(desk, names):
    for name in names:
        if "\ud800" not in name:
            nothing_at(desk, name)


def nothing_at(desk, name):
    from urllib.parse import quote

    written = quote(name, safe="")
    for place in PLACES:
        answer = desk.ask(f"/studio/api/runs/{written}{place}")
        if answer.status == 200 and name == "" and place == "":
            continue  # `/studio/api/runs/`: no name at all
        assert answer.status in (400, 404) and answer.error["message"], (name, place)
    for place in ("", "/rows", "/rows/0"):
        if name:
            answer = desk.ask(f"/studio/api/files/data{place}?path={written}")
            assert answer.status in (400, 404) and answer.error["code"] in ("W103", "W105", "W106"), (name, place)


@pytest.mark.parametrize(
    "path",
    [
        "/studio/api/runs?limit=0",
        "/studio/api/runs?limit=501",
        "/studio/api/runs?offset=-1",
        "/studio/api/runs?limit=1e3",
        "/studio/api/runs?sort=__class__",
        "/studio/api/runs/a/log?level=x",
        "/studio/api/runs/a/metrics?since=x",
        "/studio/api/runs/a/evals/t/rows?sort=x",
        "/studio/api/runs/a/evals/t/rows?only=x",
        "/studio/api/runs?q=" + "x" * 401,
        "/studio/api/runs/a/data/rows/0?view=x",
        "/studio/api/files/data?path=rows.jsonl&max_length=-1",
    ],
)
def test_wrong_questions_have_one_form(desk, path, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    answer = desk.ask(path)
    assert answer.status == 400
    assert set(answer.error) == {"message", "type", "param", "code", "hint", "problems"}
    assert answer.error["code"] == "W103" and answer.error["message"] == answer.error["problems"][0]["message"]
    assert set(answer.error["problems"][0]) == {
        "code",
        "message",
        "file",
        "line",
        "column",
        "length",
        "source",
        "hint",
        "path",
    }


def test_a_damaged_run_is_told_without_places_of_this_machine(desk, tmp_path):
    (tmp_path / "runs" / "b" / "resolved.yaml").write_text("{: [")
    answer = desk.until("/studio/api/compare?runs=a,b")
    assert answer.status == 422 and answer.error["code"] == "R722"
    assert str(tmp_path) not in answer.body.decode()


def test_secrets_stay_in(desk, tmp_path, monkeypatch):
    """F25."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789abcdefghijklmnopq")
    manifest = json.loads((tmp_path / "runs" / "a" / "manifest.json").read_text())
    manifest["command"] = ["luthier", "run", "model.token=hf_canary0123456789abcdefghijklmnopq"]
    (tmp_path / "runs" / "a" / "manifest.json").write_text(json.dumps(manifest))
    assert b"hf_canary" not in desk.ask("/studio/api/runs/a").body


def test_a_run_on_several_processes(desk):
    folder = desk.studio.folder("a")
    RunFolder(folder).event(
        "training_started", step=3, total_steps=3, resumed_from=3, processes=2, machines=1, strategy="fsdp2",
        device="cpu",
    )  # fmt: skip
    measured = {"tokens_per_second": 900.0, "peak_bytes_by_process": [300, 200], "predicted": {"peak_bytes": 250}}
    (folder / "measured.json").write_text(json.dumps(measured))
    found = desk.ask("/studio/api/runs/a").json
    assert found["command"] == "luthier launch runs/a/recipe.yaml --num-processes 2"
    assert found["run"]["processes"] == 2 and found["predicted"]["peak_bytes"] == 250
    facts = found["processes"]
    assert (facts["processes"], facts["machines"], facts["strategy"], facts["starts"]) == (2, 1, "fsdp2", [0, 3])
    assert facts["tokens_per_second"] == 450 and facts["planned_bytes"] == 250
    assert facts["rows"] == [{"name": "process 0", "peak_bytes": 300}, {"name": "process 1", "peak_bytes": 200}]
    assert desk.ask("/studio/api/runs/b").json["processes"] is None
    assert "on 2 processes (fsdp2)" in desk.ask("/studio/api/runs/a/log").body.decode()


def test_a_recipe_for_a_new_run(desk, tmp_path):
    manifest = desk.studio.folder("a") / "manifest.json"
    value = json.loads(manifest.read_text())
    value["command"] = ["x", "run", "r.yaml", "train.max_steps=9", "~evaluate", "--method.r", "4", "output_dir=runs/a"]
    manifest.write_text(json.dumps(value))
    text = desk.ask("/studio/api/recipe/fresh?run=a").json["text"]
    assert "# the user's words" in text and "max_steps: 9" in text and "r: 4" in text
    assert "output_dir: runs/a-2" in text, "a folder that is free"
    assert text.startswith("# Not written in here, but changed on the command line of a: evaluate\n"), "never silently"
    rows = [{"prompt": f"question {number}", "completion": "an answer"} for number in range(50)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = desk.ask("/studio/api/recipe/fresh?file=mine.jsonl").json
    assert "path: mine.jsonl" in made["text"] and "output_dir: runs/mine" in made["text"]
    assert desk.ask("/studio/api/recipe/check", method="POST", body={"text": made["text"], "plan": False}).json["ok"]
    assert desk.ask("/studio/api/recipe/fresh").error["code"] == "W103"
    assert desk.ask("/studio/api/recipe/fresh?file=../x").error["code"] == "W105"
