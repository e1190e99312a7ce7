"""Contract: a task's rows, prompts and worked examples are right, or every fault is named with its line."""

import json

import pytest

from luthier.evaluate.library import LibraryTask, library_task
from luthier.evaluate.tasks import DEFAULT_NEW_TOKENS, load_task, load_tasks
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import DataError, LuthierError, RecipeError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def chat(*turns, **extra):
    roles = ["user", "assistant"] * len(turns)
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)], **extra}


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", [chat("one?", "1"), chat("two?", "2"), chat("and?", "so", "three?", "3")])


def test_the_last_assistant_message_is_the_reference_and_the_rest_the_prompt(rows):
    task = load_task(TaskSpec(name="t", path=rows, metric="exact", system="Count."))
    assert [row.reference for row in task.rows] == ["1", "2", "3"]
    assert [message["content"] for message in task.rows[2].messages] == ["Count.", "and?", "so", "three?"]
    assert (task.version, task.max_new_tokens, task.num_fewshot) == (0, DEFAULT_NEW_TOKENS, 0)
    assert str(task.rows[1].ref).endswith("rows.jsonl:2")


def test_limit_takes_the_first_rows(rows):
    assert len(load_task(TaskSpec(name="t", path=rows, metric="exact", limit=2)).rows) == 2


def test_raw_rows_keep_their_raw_prompt(tmp_path):
    path = write(tmp_path / "raw.jsonl", [{"prompt": "2 + 2 = ", "completion": "4"}])
    (row,) = load_task(TaskSpec(name="t", path=path, metric="number")).rows
    assert (row.reference, list(row.messages), row.conversation.prompt) == ("4", [], "2 + 2 = ")


def test_worked_examples_stand_between_system_message_and_question(tmp_path, rows):
    shots = write(tmp_path / "shots.jsonl", [chat("four?", "4"), chat("five?", "5"), chat("six?", "6")])
    task = load_task(TaskSpec(name="t", path=rows, metric="exact", system="Count.", fewshot_path=shots, num_fewshot=2))
    said = [(message["role"], message["content"]) for message in task.rows[0].messages]
    assert said == [
        ("system", "Count."), ("user", "four?"), ("assistant", "4"), ("user", "five?"), ("assistant", "5"),
        ("user", "one?"),
    ]  # fmt: skip
    assert task.num_fewshot == 2
    one = load_task(TaskSpec(name="t", path=rows, metric="exact", fewshot_path=shots, num_fewshot=1))
    assert task.fewshot_hash != one.fewshot_hash != None  # noqa: E711


def test_a_scored_row_is_never_a_worked_example(tmp_path, rows):
    shots = write(tmp_path / "shots.jsonl", [chat("four?", "4"), chat("two?", "another answer")])
    with pytest.raises(DataError, match=r"shots.jsonl:2 .*is the scored row .*rows.jsonl:2"):
        load_task(TaskSpec(name="t", path=rows, metric="exact", fewshot_path=shots, num_fewshot=2))
    with pytest.raises(DataError, match="is the scored row"):
        load_task(TaskSpec(name="t", path=rows, metric="exact", fewshot_path=rows, num_fewshot=1))


def test_every_row_that_cannot_be_scored_is_named_at_once(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        [chat("a", "7"), chat("b", "none"), chat("c", "8"), chat("d", "x", "e"), chat("f", "?")],
    )
    with pytest.raises(DataError) as caught:
        load_task(TaskSpec(name="t", path=path, metric="number"))
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [
        ("E520", 2),
        ("E520", 4),
        ("E520", 5),
    ]
    assert "last message is of `user`" in str(caught.value)


def test_rows_without_a_question_are_for_the_loss_only(tmp_path):
    path = write(tmp_path / "text.jsonl", [{"text": "some text"}])
    with pytest.raises(DataError, match=r"text.jsonl:1 .*only metric `loss`"):
        load_task(TaskSpec(name="t", path=path, metric="exact"))
    assert load_task(TaskSpec(name="t", path=path, metric="loss")).rows[0].reference == "some text"


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({}, "E510", r"none of the tasks that ship \(gsm8k\)"),
        ({"path": "ROWS"}, "E511", "no `metric`"),
        ({"path": "ROWS", "metric": "regex"}, "E512", "needs a `pattern`"),
        ({"path": "ROWS", "metric": "loss", "pattern": "(a)"}, "E512", "takes no `pattern`"),
        ({"path": "ROWS", "metric": "exact", "pattern": "("}, "E513", "is not a regular expression"),
        ({"path": "ROWS", "metric": "exact", "pattern": "a"}, "E513", "has no group"),
        ({"path": "ROWS", "metric": "exact", "fewshot_path": "ROWS"}, "E514", "needs `num_fewshot`"),
        ({"path": "ROWS", "metric": "exact", "num_fewshot": 3}, "E515", "has 0 worked examples"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(spec, code, words, rows):
    spec = {key: rows if value == "ROWS" else value for key, value in spec.items()}
    with pytest.raises(RecipeError, match=words) as caught:
        load_task(TaskSpec(name="mine", **spec))
    assert code in [problem.code for problem in caught.value.problems]


def test_all_tasks_are_checked_before_the_first_error_is_raised(tmp_path, rows):
    bad = write(tmp_path / "bad.jsonl", [chat("a", "none"), chat("b", "none")])
    specs = [
        TaskSpec(name="a", path=bad, metric="number"),
        TaskSpec(name="b", path=rows, metric="exact"),
        TaskSpec(name="c", path=rows),
        TaskSpec(name="d", path=str(tmp_path / "absent.jsonl"), metric="exact"),
    ]
    with pytest.raises(LuthierError) as caught:
        load_tasks(specs)
    assert len(caught.value.problems) == 4
    assert caught.value.exit_code == 3
    assert [task.name for task in load_tasks(specs[1:2])] == ["b"]


# -- the library

GSM8K = [
    {"question": f"What is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(5)
]


def test_a_library_task_reads_rows_from_the_recipes_path(tmp_path):
    path = write(tmp_path / "test.jsonl", GSM8K)
    task = load_task(TaskSpec(name="gsm8k", path=path))
    assert (task.version, task.metric, task.num_fewshot, len(task.rows)) == (1, "number", 0, 5)
    assert [second.name for second in task.secondary] == ["strict"]
    assert task.rows[0].messages == [{"role": "user", "content": "What is 0 + 1?"}]
    assert task.max_new_tokens == library_task("gsm8k").max_new_tokens


def test_eight_worked_examples_of_the_library(tmp_path):
    path = write(tmp_path / "test.jsonl", GSM8K)
    task = load_task(TaskSpec(name="gsm8k", path=path, num_fewshot=8, max_new_tokens=99, limit=2))
    assert (task.num_fewshot, task.max_new_tokens, len(task.rows)) == (8, 99, 2)
    assert len(task.rows[0].messages) == 17
    with pytest.raises(RecipeError, match="`num_fewshot` is 9, but the task has 8"):
        load_task(TaskSpec(name="gsm8k", path=path, num_fewshot=9))


def test_references_without_the_mark_can_still_be_scored(tmp_path):
    path = write(tmp_path / "test.jsonl", [{"question": "What is 1 + 1?", "answer": "2"}])
    assert load_task(TaskSpec(name="gsm8k", path=path)).rows[0].reference == "2"


def test_a_metric_of_the_recipe_replaces_that_of_the_library(tmp_path):
    path = write(tmp_path / "test.jsonl", GSM8K)
    task = load_task(TaskSpec(name="gsm8k", path=path, metric="contains", pattern=r"#### (\d+)"))
    assert (task.metric, task.pattern, task.secondary) == ("contains", r"#### (\d+)", ())


def test_the_files_of_the_library_are_strict():
    value = library_task("gsm8k").model_dump()
    LibraryTask.model_validate(value)
    with pytest.raises(ValueError, match="Extra inputs"):
        LibraryTask.model_validate({**value, "max_tokens": 5})
    with pytest.raises(ValueError, match="version"):
        LibraryTask.model_validate({**value, "version": "1"})
