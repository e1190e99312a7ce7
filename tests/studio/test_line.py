"""A line of the list says what the files say, whole or broken."""

import json

import pytest

from luthier.runs.folder import RunFolder
from luthier.studio.runs.curve import POINTS, glance
from luthier.studio.runs.line import disk_line, recipe_of, signature
from tests.studio.folders import make_run


def line_of(folder):
    return disk_line(folder, folder.name, folder.name)


def test_a_finished_run(tmp_path):
    line = line_of(make_run(tmp_path / "one"))
    assert line["status"] == "finished" and line["stage"] == "report" and line["error"] is None
    assert (line["base"], line["method"], line["objective"], line["data"]) == (
        "org/base-135m",
        "lora",
        "sft",
        ["rows.jsonl"],
    )
    assert (line["step"], line["total_steps"], line["loss"]) == (3, 3, 1.25)
    assert line["eval_loss"] == pytest.approx(1.35)
    assert (
        line["headline"]["delta"] == 0.0
        and line["headline"]["p"] == 1.0
        and line["headline"]["verdict"] == "no evidence"
    )
    assert line["score"]["value"] == 0.5
    assert line["tokens_per_second"] == 512.0 and line["peak_bytes"] == 3 << 29
    assert line["seconds"] == pytest.approx(67.2)
    assert line["started_at"] <= line["finished_at"]
    json.dumps(line, allow_nan=False)


def test_a_failed_run_says_why(tmp_path):
    line = line_of(make_run(tmp_path / "one", failed={}))
    assert line["status"] == "failed" and line["stage"] == "train"
    assert line["error"] == {"code": "T401", "message": "the loss is not finite"}


def test_an_interrupted_run_is_stopped_not_failed(tmp_path):
    line = line_of(make_run(tmp_path / "one", failed={"exit_code": 130}))
    assert line["status"] == "stopped" and line["error"] is None


def test_a_run_that_died_is_stopped(tmp_path):
    line = line_of(make_run(tmp_path / "one", finished=False))
    assert line["status"] == "stopped" and line["finished_at"] is None and line["step"] == 3


def test_a_finished_run_that_is_run_again_is_not_finished(tmp_path):
    folder = make_run(tmp_path / "one")
    RunFolder(folder).event("stage_started", stage="train", reason="the recipe changed")
    assert line_of(folder)["status"] == "stopped"


def test_before_there_is_a_manifest_the_recipe_is_read(tmp_path):
    folder = make_run(tmp_path / "one", finished=False)
    (folder / "manifest.json").unlink()
    assert line_of(folder)["base"] == "org/base-135m"
    assert recipe_of(folder)["data"]["max_length"] == 256


@pytest.mark.parametrize("name", ["manifest.json", "events.jsonl", "metrics.jsonl", "stages/train.json", "recipe.yaml"])
@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"recipe": 3}', b"null", b"{}\n{]\n"])
def test_damage_makes_no_error(tmp_path, name, text):
    folder = make_run(tmp_path / "one")
    (folder / name).write_bytes(text)
    json.dumps(line_of(folder), allow_nan=False)


def test_what_cannot_be_seen_is_made_visible(tmp_path):
    folder = make_run(tmp_path / "one", recipe={"name": "a\x1b[31m\u202eb\nc"})
    assert line_of(folder)["title"] == "a\u241b[31m\ufffdb\nc"


def test_warnings_of_the_last_steps(tmp_path):
    folder = make_run(tmp_path / "one", finished=False)
    assert line_of(folder)["warnings"] == []
    RunFolder(folder).metric(step=4, loss=1.0, grad_norm=0.0)
    assert line_of(folder)["warnings"] == ["grad_norm_zero"]
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "loss": NaN, "grad_norm": 1.0}\n')
    line = line_of(folder)
    assert line["warnings"] == ["non_finite"] and line["loss"] == 1.0


def test_signature_follows_the_files(tmp_path):
    folder = make_run(tmp_path / "one", finished=False)
    first = signature(str(folder))
    assert signature(str(folder)) == first
    RunFolder(folder).metric(step=9, loss=1.0)
    assert signature(str(folder)) != first
    assert signature(str(tmp_path)) is None


def test_sparkline_of_a_short_log(tmp_path):
    folder = make_run(tmp_path / "one", losses=[3.0, 2.0, 1.0])
    seen = glance(folder / "metrics.jsonl")
    assert (seen.train, seen.evals, seen.eval_loss) == ([3.0, 2.0, 1.0], [[1.0, 1.1]], 1.1)
    assert [line["step"] for line in seen.recent] == [3, 2, 1]
    assert glance(folder / "absent").train == []


def test_sparkline_of_a_long_log_is_sampled_in_order_and_keeps_validations(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with file.open("w") as stream:
        for step in range(1, 20_001):
            stream.write(json.dumps({"step": step, "loss": 1.0 / step, "padding": "x" * 60}) + "\n")
            if step % 5_000 == 0:
                stream.write(json.dumps({"step": step, "eval_loss": 10.0 - step / 5_000}) + "\n")
    assert file.stat().st_size > 1 << 20
    seen = glance(file)
    assert len(seen.train) == POINTS and seen.train == sorted(seen.train, reverse=True)
    assert seen.train[0] == 1.0 and seen.train[-1] == 1.0 / 20_000
    assert [loss for _, loss in seen.evals] == [9.0, 8.0, 7.0, 6.0] and seen.eval_loss == 6.0
    assert [place for place, _ in seen.evals] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-3)
    assert seen.recent[0]["step"] == 20_000
