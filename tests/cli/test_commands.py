"""Contract: every verb works end to end on a tiny run; results on stdout, `--json` exactly one JSON value there."""

import json
import re

import pytest

from tests.cli.calling import caller, make_world, write_recipe

STAGES = ["data", "baseline", "train", "evaluate", "compare", "merge", "report"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, made through the command line."""
    folder = make_world(tmp_path_factory.mktemp("commands"))
    tasks = [
        {"name": "words", "path": str(folder / "test.jsonl"), "metric": "exact", "max_new_tokens": 4},
        {"name": "held_out", "path": str(folder / "test.jsonl"), "metric": "loss"},
    ]
    write_recipe(folder / "recipe.yaml", folder, evaluate={"tasks": tasks})
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


@pytest.fixture
def ok(call):
    """Calls a command that must succeed."""

    def run(*arguments):
        said = call(*arguments)
        assert said.code == 0, said
        assert "Traceback" not in said.err
        return said

    return run


@pytest.fixture
def finished(world, ok):
    """The run folder; the first who asks makes it."""
    if not (world / "run" / "report.html").exists():
        ok("run", world / "recipe.yaml")
    return world / "run"


def test_run_makes_every_stage_and_a_second_run_reuses_all(world, ok):
    first = ok("run", world / "recipe.yaml")
    assert first.out == "", "what a run says is for people, on stderr"
    for word in ("words: exact", "held_out: loss", "merged model and adapter agree", "Next:", "luthier chat"):
        assert word in first.err, word
    again = ok("run", world / "recipe.yaml", "--json")
    value = again.json
    assert value["ok"] is True and list(value["stages"]) == STAGES and value["reused"] == STAGES
    assert (world / "run" / "report.html").stat().st_size > 5_000


def test_train_alone_and_restart(world, ok, tmp_path):
    target = f"output_dir={tmp_path / 'run'}"
    value = ok("train", world / "recipe.yaml", target, "train.max_steps=3", "--json").json
    assert list(value["stages"]) == ["data", "train"] and value["stages"]["train"]["steps"] == 3
    assert not (tmp_path / "run" / "eval").exists() and not (tmp_path / "run" / "merged").exists()
    assert ok("train", world / "recipe.yaml", target, "--train.max_steps", "3", "--json").json["reused"] == [
        "data",
        "train",
    ]
    other = ok("train", world / "recipe.yaml", target, "train.max_steps=1", "--restart")
    assert "train.max_steps: 3 -> 1" in other.err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_plan_counts_every_part(world, ok):
    table = ok("plan", world / "recipe.yaml", "--gpu", "H200").out
    for part in ("weights", "gradients", "optimizer", "activations", "total"):
        assert re.search(rf"^{part}\s", table, re.MULTILINE), part
    value = ok("plan", world / "recipe.yaml", "--gpu", "H200", "--json").json
    assert value["fits"] is True and value["trainable"] > 0


def test_data_check_and_show(world, ok, monkeypatch, capfd):
    said = ok("data", "check", world / "recipe.yaml").out
    assert "16 rows read, 16 to train" in said.replace("\n", " ") and "masks proven: 16 turns" in said
    manifest = ok("data", "check", world / "recipe.yaml", "--json").json
    assert manifest["rows_used"] == 16 and manifest["mask_proof"]["rows"] == 16
    rows = ok("data", "show", world / "recipe.yaml", "--json", "-n", "2", "--start", "3").json["rows"]
    assert [row["row"] for row in rows] == [3, 4]
    source = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["trained_text"] == [source[3]["messages"][1]["content"] + "<|im_end|>"]
    beyond = caller(monkeypatch, capfd)("data", "show", world / "recipe.yaml", "--start", "1000")
    assert beyond.code == 2 and "C103" in beyond.err and "--start 1000: there are" in beyond.err
    text = ok("data", "show", world / "recipe.yaml", "-n", "1").out
    assert source[0]["messages"][1]["content"].split()[0] in text and "rows.jsonl:1" in text
    packs = ok("data", "show", world / "recipe.yaml", "--packed", "--json", "-n", "99").json["rows"]
    assert sum(len(pack["refs"]) for pack in packs) == 16 and len(packs) < 16


def test_eval_of_base_and_adapter(world, finished, ok, tmp_path):
    base = ok("eval", world / "recipe.yaml", "--json", "--out", tmp_path / "scores.json").json
    assert base == json.loads((tmp_path / "scores.json").read_text())
    before = json.loads((finished / "eval" / "before.json").read_text())
    answers = [[row["output"] for task in value["tasks"] for row in task["rows"]] for value in (base, before)]
    assert answers[0] == answers[1]
    tuned = ok("eval", world / "recipe.yaml", "--model", finished / "final", "--json").json
    after = json.loads((finished / "eval" / "after.json").read_text())
    assert tuned["tasks"][1]["score"] == pytest.approx(after["tasks"][1]["score"], rel=1e-6)
    table = ok("eval", world / "recipe.yaml").out
    assert "words" in table and "held_out" in table


def test_compare_one_run_and_two_files(finished, ok):
    value = ok("compare", finished, "--json").json
    assert [task["name"] for task in value["tasks"]] == ["words", "held_out"]
    files = [finished / "eval" / name for name in ("before.json", "after.json")]
    assert ok("compare", *files, "--json").json["tasks"] == value["tasks"]
    table = ok("compare", finished).out
    line = next(line for line in table.splitlines() if line.startswith("held_out"))
    assert line.rstrip().endswith(("better", "no evidence", "worse")), "piped, no number and no verdict is cut"


def test_merge_again(finished, ok):
    said = ok("merge", finished)
    assert "merge" in said.err
    value = ok("merge", finished, "--json").json
    assert value["passed"] is True and max(value["merging"], value["writing"]) <= value["bound"]


def test_chat_answers_once_with_one_model_or_both(finished, ok):
    said = ok("chat", finished, "--prompt", "what is the time", "--max-new-tokens", "4")
    assert said.out.strip()
    both = ok("chat", finished, "-p", "time", "--side-by-side", "--max-new-tokens", "3", "--json").json
    assert both["prompt"] == "time" and set(both["answers"]) == {"base", "tuned"}
    merged = ok("chat", finished / "merged", "-p", "time", "--max-new-tokens", "3", "--json").json
    every = ok("chat", finished, "-p", "time", "--side-by-side", "--merged", "--beside", finished / "merged",
               "--max-new-tokens", "3", "--json").json["answers"]  # fmt: skip
    assert list(every) == ["base", "tuned", "merged", str(finished / "merged")]
    assert every["merged"] == every[str(finished / "merged")]
    assert list(merged["answers"].values()) == [both["answers"]["tuned"]]


def test_chat_in_a_conversation_ends_with_the_input(finished, ok, monkeypatch):
    lines = iter(["time", "year"])

    def answer(prompt=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert len(ok("chat", finished, "--max-new-tokens", "2").out.splitlines()) >= 2


def test_rerun_is_equal_to_the_last_bit(finished, call, ok, tmp_path):
    value = ok("rerun", finished, "--output-dir", tmp_path / "again", "--json").json
    assert value["equal"] is True and value["differences"] == []
    metrics = tmp_path / "again" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[0]["loss"] += 1e-9
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = call("rerun", tmp_path / "again", "--output-dir", tmp_path / "third")
    assert other.code == 1 and "not equal" in other.out and "step 1 loss" in other.out


def test_runs_ls_and_show(finished, ok):
    table = ok("runs", "ls", finished.parent).out
    assert "lora" in table
    assert [run["folder"] for run in ok("runs", "ls", finished.parent, "--json").json] == [str(finished)]
    shown = ok("runs", "show", finished).out
    for stage in STAGES:
        assert stage in shown
    assert set(ok("runs", "show", finished, "--json").json["stages"]) == set(STAGES)
    assert "no run folders" in ok("runs", "ls", finished / "eval").out


def test_init_writes_a_recipe_that_loads(world, ok, tmp_path):
    recipe = tmp_path / "new.yaml"
    said = ok("init", world / "rows.jsonl", "--model", world / "base", "--out", recipe)
    assert "next: luthier data check" in said.out.replace("\n", " ")
    assert ok("data", "check", recipe, "--json").json["rows_read"] == 16
    value = ok("init", world / "rows.jsonl", "--model", world / "base", "--out", recipe, "--force", "--json").json
    assert value["format"] == "messages" and value["rows"] == 16


def test_doctor_says_what_is_here(ok):
    table = ok("doctor").out
    for word in ("Python", "torch", "CPU", "disk"):
        assert word in table
    checks = {check["name"]: check for check in ok("doctor", "--json").json["checks"]}
    assert checks["torch"]["ok"] is True and "cores" in checks["CPU"]["found"]


def test_schema_is_json_and_describes_the_keys(ok):
    schema = ok("schema").json
    assert schema["properties"]["train"] and "learning_rate" in json.dumps(schema)


def test_version_and_help(ok):
    assert "quickstart" in ok("--help").out
    for verb in ("run", "train", "plan", "data", "eval", "compare", "merge", "chat", "rerun", "runs", "init", "doctor"):
        assert ok(verb, "--help").out


def test_a_run_with_relative_paths_can_be_used_from_anywhere(world, ok, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("base", "rows.jsonl", "test.jsonl"):
        (home / name).symlink_to(world / name)
    task = {"name": "words", "path": "test.jsonl", "metric": "exact", "max_new_tokens": 2}
    write_recipe(
        home / "recipe.yaml", world, model={"name_or_path": "base"}, data={"train": [{"path": "rows.jsonl"}]},
        evaluate={"tasks": [task]}, export={"merge": False}, output_dir="run",
    )  # fmt: skip
    monkeypatch.chdir(home)
    ok("run", "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    assert ok("rerun", "home/run", "--output-dir", "again", "--json").json["equal"] is True
    assert ok("chat", "home/run", "-p", "time", "--side-by-side", "--max-new-tokens", "2").out
    assert ok("merge", "home/run", "--json").json["passed"] is True


def test_chat_and_merge_need_no_rows(world, ok, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text((world / "rows.jsonl").read_text())
    recipe = write_recipe(
        tmp_path / "recipe.yaml", world, data={"train": [{"path": str(rows)}]}, export={"merge": False}
    )
    ok("train", recipe)
    rows.unlink()
    assert ok("chat", tmp_path / "run", "-p", "time", "--max-new-tokens", "2").out
    assert ok("merge", tmp_path / "run", "--json").json["passed"] is True
