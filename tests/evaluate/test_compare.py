"""Contract 7: the same prompts, template, decoding and rows; a paired test and an interval decide the word."""

import dataclasses
import io
import json

import pytest

from luthier.evaluate.compare import BINDING, compare_files, compare_results
from luthier.evaluate.results import TaskResult, results_to_json
from luthier.evaluate.tables import changed_rows, changed_rows_table, comparison_table
from luthier.runtime.errors import RunFailed


def result(scores, *, name="t", metric="exact", settings=None, outputs=None, weights=None):
    rows = []
    for index, score in enumerate(scores):
        weight = weights[index] if weights else 1.0
        secondary = {"nll": score * weight, "weight": weight} if metric == "loss" else {}
        rows.append({
            "ref": f"/somewhere/rows.jsonl:{index + 1}", "prompt": f"p{index}",
            "messages": [{"role": "user", "content": f"q{index}"}],
            "output": None if metric == "loss" else outputs[index] if outputs else f"o{score}",
            "extracted": None,
            "reference": f"r{index}", "score": score, "secondary": secondary, "finish_reason": "stop",
        })  # fmt: skip
    return TaskResult(
        name=name, version=1, metric=metric, n=len(rows), score=sum(scores) / len(scores), low=0.0, high=1.0,
        confidence=0.95, seconds=1.0, new_tokens=5, tokens_per_second=5.0, secondary={}, rows=rows,
        higher_is_better=metric != "loss",
        settings=settings or dict.fromkeys(BINDING, "x"),
    )  # fmt: skip


def test_better_no_evidence_worse():
    low, high = result([0.0] * 20), result([1.0] * 12 + [0.0] * 8)
    (task,) = compare_results([low], [high]).tasks
    assert (task.verdict, task.wins, task.losses, task.delta) == ("better", 12, 0, 0.6)
    assert task.p_value == pytest.approx(2 * 0.5**12)
    assert task.changed == tuple(range(12))
    assert 0 < task.low < 0.6 < task.high
    assert compare_results([high], [low]).tasks[0].verdict == "worse"
    (same,) = compare_results([high], [high]).tasks
    assert (same.verdict, same.p_value, same.changed) == ("no evidence", 1.0, ())
    (few,) = compare_results([result([0.0] * 20)], [result([1.0] * 5 + [0.0] * 15)]).tasks
    assert (few.p_value, few.verdict) == (2 / 32, "no evidence")
    assert (
        compare_results([result([0.0] * 20)], [result([1.0] * 5 + [0.0] * 15)], confidence=0.9).tasks[0].verdict
        == "better"
    )


def test_of_two_losses_the_lower_is_the_better():
    before = result(
        [2.0, 3.0, 2.5, 2.2, 2.8, 3.1, 2.9, 2.1], metric="loss", weights=[5.0, 9.0, 3.0, 8.0, 2.0, 7.0, 5.0, 4.0]
    )
    after = result([score - 0.5 for score in (row["score"] for row in before.rows)], metric="loss",
                   weights=[row["secondary"]["weight"] for row in before.rows])  # fmt: skip
    (task,) = compare_results([before], [after]).tasks
    assert (task.verdict, task.wins, task.losses) == ("better", 8, 0)
    assert task.delta == pytest.approx(-0.5)
    assert task.test == "paired permutation"
    assert compare_results([after], [before]).tasks[0].verdict == "worse"


@pytest.mark.parametrize("key", sorted(BINDING))
def test_any_difference_besides_the_model_is_refused_by_name(key):
    other = result([0.0, 1.0], settings={**dict.fromkeys(BINDING, "x"), key: "y"})
    with pytest.raises(RunFailed) as caught:
        compare_results([result([0.0, 1.0])], [other])
    assert f"task `t` cannot be compared: {BINDING[key]} differs ('x' and 'y')" in str(caught.value)
    assert caught.value.exit_code == 1


def test_all_differences_are_named_at_once():
    other = dataclasses.replace(
        result([0.0, 1.0, 1.0], settings={**dict.fromkeys(BINDING, "x"), "decoding": "y"}), version=2, metric="number"
    )
    with pytest.raises(RunFailed) as caught:
        compare_results([result([0.0, 1.0])], [other])
    assert len(caught.value.problems) == 4
    for words in (
        "version of the task differs (1 and 2)",
        "metric differs",
        "number of rows differs (2 and 3)",
        "decoding differs",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("key", ["prompt", "reference"])
def test_rows_that_are_not_the_same_question_are_refused_whatever_the_hashes_say(key):
    other = result([0.0, 1.0])
    other.rows[1][key] = "something else"
    with pytest.raises(RunFailed, match=f"{key} of row 1 .*rows.jsonl:2. differs"):
        compare_results([result([0.0, 1.0])], [other])


def test_tasks_of_one_model_only_are_refused():
    with pytest.raises(RunFailed) as caught:
        compare_results([result([1.0], name="a"), result([1.0])], [result([1.0]), result([1.0], name="b")])
    assert "task `a` was scored with the first model only" in str(caught.value)
    assert "task `b` was scored with the second model only" in str(caught.value)
    with pytest.raises(RunFailed, match="no task was scored"):
        compare_results([], [])


def test_batch_size_device_and_type_may_differ():
    one = result([0.0], settings={**dict.fromkeys(BINDING, "x"), "batch_size": 1, "device": "cpu"})
    two = result([1.0], settings={**dict.fromkeys(BINDING, "x"), "batch_size": 64, "device": "cuda"})
    assert compare_results([one], [two]).tasks[0].n == 1


@pytest.fixture
def files(tmp_path):
    before = result([0.0, 1.0, 0.0, 1.0], outputs=["wrong", "right", "bad [bold]", "fine"])
    after = result([1.0, 0.0, 0.0, 1.0], outputs=["good", "\x1b[31mlost\x07", "bad", "fine"])
    for name, value in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results_to_json([value], model=name)))
    return tmp_path / "before.json", tmp_path / "after.json"


def test_the_file_has_the_agreed_shape(files):
    value = compare_files(*files)
    assert set(value["tasks"][0]) == {
        "name", "metric", "n", "before", "after", "delta", "low", "high", "confidence", "test", "p_value", "verdict",
        "wins", "losses", "changed",
    }  # fmt: skip
    assert value["tasks"][0]["changed"] == [0, 1]
    json.dumps(value, allow_nan=False)


def shown(renderable):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def test_tables_say_what_the_file_says(files):
    value = compare_files(*files)
    text = shown(comparison_table(value))
    for words in ("0.500", "+0.000", "no evidence"):
        assert words in text


def test_changed_rows_are_side_by_side_and_texts_are_only_texts(files):
    text = shown(changed_rows_table(*files, compare_files(*files), limit=5))
    for words in ("rows.jsonl:1", "q0", "r0", "wrong", "good", "right", "lost"):
        assert words in text
    assert "bad" not in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_markup_in_texts_is_shown_not_obeyed(tmp_path):
    before, after = result([0.0], outputs=["[bold]x[/bold] [/]"]), result([1.0], outputs=["[link=http://a]y"])
    for name, value in (("b", before), ("a", after)):
        (tmp_path / name).write_text(json.dumps(results_to_json([value], model=name)))
    text = shown(changed_rows_table(tmp_path / "b", tmp_path / "a", compare_files(tmp_path / "b", tmp_path / "a")))
    assert "[bold]x[/bold] [/]" in text
    assert "[link=http://a]y" in text


def test_gains_and_losses_are_shown_in_turn():
    before, after = result([0.0, 0.0, 0.0, 1.0]), result([1.0, 1.0, 1.0, 0.0])
    task = compare_results([before], [after]).tasks[0].to_json()
    assert changed_rows(task, before, after, limit=3) == [0, 3, 1]
