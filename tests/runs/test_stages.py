"""Contract: a finished stage is reused only when nothing it depends on changed, and the reason is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.runs.folder import RunFolder
from luthier.runs.stages import differences, why_run
from luthier.runtime.errors import EnvironmentProblem, RunFailed

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def _finish(tmp_path, depends_on):
    run = RunFolder(tmp_path).create()
    return run.finish_stage("train", depends_on=depends_on, result={"loss": 1.5}, seconds=2.0)


def test_the_reason_names_the_key_and_both_values(tmp_path):
    record = _finish(tmp_path, {"train": {"learning_rate": 1e-4, "seed": 0}})
    assert why_run(record, {"train": {"learning_rate": 1e-4, "seed": 0}}, []) is None
    reason = why_run(record, {"train": {"learning_rate": 2e-4, "seed": 0}}, [])
    assert reason == "changed: train.learning_rate: 0.0001 -> 0.0002"
    assert why_run(record, {"train": {"learning_rate": 1e-4, "seed": 0}}, ["final"]) == "missing: final"
    assert why_run(None, {}, []) == "not done yet"


@given(st.dictionaries(st.text("ab", min_size=1, max_size=2), values, max_size=3))
def test_equal_dependencies_never_differ_even_through_json(value):
    assert differences(value, json.loads(json.dumps(value))) == []


def test_emptying_or_adding_to_a_list_is_a_change():
    assert differences({"tasks": [1]}, {"tasks": []})
    assert differences({"tasks": []}, {"tasks": [1]})


def test_a_damaged_stage_record_is_named(tmp_path):
    _finish(tmp_path, {})
    (tmp_path / "stages" / "train.json").write_text('{"stage": "tr')
    with pytest.raises(RunFailed, match=r"train\.json"):
        RunFolder(tmp_path).stage("train")


def test_a_second_owner_is_refused(tmp_path):
    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(EnvironmentProblem, match="in use by process"),
        RunFolder(tmp_path).lock(),
    ):
        pass
    with RunFolder(tmp_path).lock():
        pass


def test_the_owner_removes_what_killed_writers_left_and_a_second_one_nothing(tmp_path):
    run = RunFolder(tmp_path).create()
    for name in ("", "stages/", "checkpoints/", "eval/"):
        (tmp_path / f"{name}.tmp-left").mkdir(parents=True)
    (tmp_path / "events.jsonl").write_text('{"event": "a"}\n{"event": "b", "ti')
    (tmp_path / "metrics.jsonl").write_text("")
    with run.lock():
        assert not list(tmp_path.rglob(".tmp-*"))
        run.event("c")
        assert [line["event"] for line in run.read_lines("events.jsonl")] == ["a", "c"]
        (tmp_path / ".tmp-mine").mkdir()
        with pytest.raises(EnvironmentProblem), RunFolder(tmp_path).lock():
            pass
        assert (tmp_path / ".tmp-mine").is_dir()


def test_log_lines_stay_one_line_each_whatever_they_hold(tmp_path):
    run = RunFolder(tmp_path).create()
    run.event("note", text='a\nb\x1b[31m{"event": "fake"}\u2028')
    text = (tmp_path / "events.jsonl").read_text()
    assert len(text.splitlines()) == 1 and "\x1b" not in text
    assert run.read_lines("events.jsonl")[0]["text"].startswith("a\nb")


def test_a_torn_last_line_is_left_out(tmp_path):
    run = RunFolder(tmp_path).create()
    run.metric(step=1, loss=0.1 + 0.2)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert run.read_lines("metrics.jsonl") == [{"step": 1, "loss": 0.30000000000000004}]
