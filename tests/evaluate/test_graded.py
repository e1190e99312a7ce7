"""Contract: a grader scores a task's rows from their columns; its failures are counted, never hidden."""

import json

import pytest

from luthier.evaluate.asking import JudgeServer
from luthier.evaluate.compare import compare_results
from luthier.evaluate.run import run_tasks
from luthier.evaluate.scored import score_rows
from luthier.evaluate.tasks import load_task
from luthier.recipe.judge_schema import EvaluationJudge
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import RecipeError, RunFailed
from tests.endpoint.server import ScriptedServer, says
from tests.support.tiny import tiny_model, tiny_tokenizer

LENGTH = "def grade(sample, item):\n    return min(len(sample['output_text']) / item['most'], 1.0)\n"
CONTAINS = {
    "type": "string_check", "name": "c", "input": "{{ sample.output_text }}", "reference": "{{ item.word }}",
    "operation": "like",
}  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}],
         "word": f"w{n}", "most": 4}
        for n in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def task_of(rows, grader, **keys):
    return load_task(TaskSpec(name="g", path=rows, grader=grader, max_new_tokens=3, **keys))


def test_columns_reference_and_prompt_reach_the_grader(rows):
    task = task_of(rows, CONTAINS)
    assert [score.value for score in score_rows(task, ["w0", "w1!", "w9", "w3"])] == [1, 1, 0, 1]
    both = {
        "type": "multi", "name": "m", "calculate_output": "(ref + ask) / 2",
        "graders": {"ref": CONTAINS | {"reference": "{{ item.reference }}"},
                    "ask": CONTAINS | {"reference": "{{ item.prompt }}"}},
    }  # fmt: skip
    scores = score_rows(task_of(rows, both), ["a0", "q1 a1", "x", "q3"])
    assert [score.value for score in scores] == [0.5, 1.0, 0.0, 0.5]
    assert scores[0].secondary == {"ref": 1.0, "ask": 0.0}


def test_two_models_are_compared_on_graded_scores(rows):
    task = task_of(rows, {"type": "python", "name": "p", "source": LENGTH})
    first, second = (run_tasks(tiny_model(seed=seed), tiny_tokenizer(), [task])[0] for seed in (0, 1))
    assert first.metric == "grader" and first.settings["grader"]["source"] == LENGTH
    assert [task.test for task in compare_results([first], [second]).tasks] in (
        ["McNemar, exact"], ["paired permutation"],
    )  # fmt: skip
    other = task_of(rows, {"type": "python", "name": "p", "source": LENGTH + "# another\n"})
    with pytest.raises(RunFailed, match="grader differs"):
        compare_results([first], run_tasks(tiny_model(), tiny_tokenizer(), [other]))


def test_failed_rows_are_zero_counted_and_told(rows):
    source = "def grade(sample, item):\n    return float(sample['output_json']['x'])\n"
    task = task_of(rows, {"type": "python", "name": "p", "source": source})
    scores = score_rows(task, ['{"x": 1}', "no", '{"x": 0.5}', "{}"])
    assert [score.value for score in scores] == [1.0, 0.0, 0.5, 0.0]
    assert [score.secondary["grader_error"] for score in scores] == [0.0, 1.0, 0.0, 1.0]
    assert "KeyError" in scores[1].fault
    with pytest.raises(RunFailed, match="failed on all 4 rows"):
        score_rows(task, ["no"] * 4)


def test_a_grading_model_is_asked_at_the_judges_server(rows, tmp_path):
    grader = {
        "type": "score_model", "name": "s", "model": "m", "range": [0, 1],
        "input": [{"role": "user", "content": "{{ sample.output_text }} for {{ item.word }}"}],
    }  # fmt: skip

    def reply(body):
        text = body["messages"][0]["content"]
        return json.dumps({"result": float(text.split(" for ")[0] == text.split(" for ")[1])})

    with ScriptedServer(always=says(reply)) as server:
        judge = EvaluationJudge(base_url=server.url, input_price=1.0, output_price=1.0)
        with JudgeServer(judge, cache_dir=tmp_path) as asked:
            scores = score_rows(task_of(rows, grader), ["w0", "x", "w2", "y"], ask=asked.ask)
            usage = asked.usage()["m"]
    assert [score.value for score in scores] == [1, 0, 1, 0]
    assert usage["requests"] == 4 and usage["cost_usd"] == pytest.approx(4 * 15 / 1e6)
    assert {seen["body"]["model"] for seen in server.seen} == {"m"}


def recipe(rows, task, **evaluate):
    value = {
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"train": [{"path": rows}]},
        "evaluate": {"tasks": [{"name": "g", "path": rows, **task}], **evaluate},
        "output_dir": "run",
    }
    return recipe_from_dict(value, origin="test")


MODEL = {"type": "score_model", "name": "s", "model": "m", "input": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("task", "evaluate", "said"),
    [
        ({"grader": CONTAINS, "metric": "exact"}, {}, "beside `grader`"),
        ({"grader": CONTAINS | {"operation": "is"}}, {}, "operation"),
        ({"grader": MODEL}, {}, "there is no `evaluate.judge`"),
        ({"metric": "exact"}, {"judge": {"base_url": "http://x/v1"}}, "nothing to do"),
        ({"metric": "exact"}, {"judge": {"base_url": "http://x/v1", "compare": ["pairwise"]}}, "needs `rubric`"),
        ({"grader": MODEL}, {"judge": {"base_url": "http://x/v1", "rubric": "x"}}, "no effect"),
        ({"grader": MODEL}, {"judge": {"base_url": "http://x/v1", "budget_usd": 1.0}}, "needs the prices"),
        (
            {"metric": "exact"},
            {"judge": {"base_url": "http://x/v1", "model": "m", "rubric": "r", "compare": ["rubric"], "tasks": ["z"]}},
            'no task "z"',
        ),
    ],
)
def test_graders_and_judges_that_cannot_work_are_refused_with_the_recipe(rows, task, evaluate, said):
    with pytest.raises(RecipeError) as caught:
        recipe(rows, task, **evaluate)
    assert said in str(caught.value)


def test_good_ones_are_taken(rows):
    assert recipe(rows, {"grader": MODEL}, judge={"base_url": "http://x/v1"}).evaluate.tasks[0].grader == MODEL
