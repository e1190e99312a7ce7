"""Contract: a score is the mean of its rows, and the file says everything it depends on."""

import json

import pytest

from luthier.evaluate.compare import BINDING
from luthier.evaluate.results import TaskResult, read_results, results_to_json
from luthier.evaluate.run import run_tasks
from luthier.evaluate.tasks import load_task, load_tasks
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import DataError, RecipeError, RunFailed
from tests.support.scripted import chain, scripted_model
from tests.support.tiny import conversations, tiny_model, tiny_tokenizer

ROW_KEYS = {"ref", "prompt", "messages", "output", "extracted", "reference", "score", "secondary", "finish_reason"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def word(text):
    (token,) = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return token


@pytest.fixture(scope="module")
def scripted():
    """`time` is answered by ` year`, ` people` by ` way way ...`, `group` by nothing."""
    return scripted_model({
        **chain(word("time"), word(" year"), 2), **chain(word(" people"), word(" way"), word(" way")), word("group"): 2,
    })  # fmt: skip


@pytest.fixture
def raw(tmp_path):
    rows = [
        {"prompt": "time", "completion": " year"},
        {"prompt": "time people", "completion": " way"},
        {"prompt": "group", "completion": " day"},
        {"prompt": "group time", "completion": " woman"},
        {"prompt": "time", "completion": " year "},
    ]
    return write(tmp_path / "raw.jsonl", rows)


def test_scores_of_a_model_whose_answers_are_known(scripted, raw):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode([word(" year")]) == " year"
    task = load_task(TaskSpec(name="known", path=raw, metric="exact", max_new_tokens=4))
    (result,) = run_tasks(scripted, tokenizer, [task], batch_size=3, confidence=0.9)
    assert [row["output"] for row in result.rows] == [" year", " way way way way", "", "", " year"]
    assert [row["score"] for row in result.rows] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [row["finish_reason"] for row in result.rows] == ["stop", "length", "stop", "stop", "stop"]
    assert [row["prompt"] for row in result.rows] == ["time", "time people", "group", "group time", "time"]
    assert (result.n, result.score, result.confidence) == (5, 0.4, 0.9)
    assert result.low < 0.4 < result.high
    assert result.new_tokens == 2 + 4 + 1 + 1 + 2
    assert result.rows[1]["ref"].endswith("raw.jsonl:2")


def test_the_file_has_the_agreed_shape_and_can_be_read_back(scripted, raw, tmp_path):
    task = load_task(TaskSpec(name="known", path=raw, metric="contains", max_new_tokens=4))
    results = run_tasks(scripted, tiny_tokenizer(), [task], batch_size=2)
    value = results_to_json(results, model="base")
    assert set(value) == {"model", "tasks"}
    assert set(value["tasks"][0]) == {
        "name", "version", "metric", "n", "score", "low", "high", "confidence", "seconds", "new_tokens",
        "tokens_per_second", "settings", "secondary", "rows", "higher_is_better",
    }  # fmt: skip
    assert set(value["tasks"][0]["rows"][0]) >= ROW_KEYS
    settings = value["tasks"][0]["settings"]
    assert settings["decoding"] == "greedy"
    assert (settings["max_new_tokens"], settings["stop_ids"], settings["batch_size"]) == (4, [2], 2)
    assert {"template_hash", "data_hash", "inputs_hash", "num_fewshot", "fewshot_hash", "dtype", "device"} <= set(
        settings
    )
    path = tmp_path / "before.json"
    path.write_text(json.dumps(value, allow_nan=False))
    assert read_results(path) == [TaskResult.from_json(value["tasks"][0])]
    assert results_to_json(read_results(path), model="base") == value


def test_every_setting_is_binding_for_a_comparison_or_known_not_to_matter(scripted, raw):
    task = load_task(TaskSpec(name="known", path=raw, metric="exact", max_new_tokens=4))
    (result,) = run_tasks(scripted, tiny_tokenizer(), [task], batch_size=2)
    assert set(result.settings) == set(BINDING) | {"batch_size", "device", "dtype"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tasks": 3}', '{"tasks": [{}]}', '{"tasks": [3]}', "\xff"])
def test_a_file_that_holds_no_scores_is_refused(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text, "latin-1")
    with pytest.raises(RunFailed, match=r"scores.json is not a file of scores"):
        read_results(path)
    with pytest.raises(RunFailed, match="does not exist"):
        read_results(tmp_path / "absent.json")


def test_prompts_are_those_of_the_template_and_of_training(tmp_path):
    """B27: the prompt of a row is the beginning of its training ids."""
    from luthier.data.template import ChatTemplate
    from luthier.data.tokenize import tokenize_conversation
    from luthier.recipe.schema import DataSection, Source

    path = write(tmp_path / "chat.jsonl", conversations(6, turns=2))
    tokenizer = tiny_tokenizer()
    task = load_task(TaskSpec(name="c", path=path, metric="exact", max_new_tokens=3))
    (result,) = run_tasks(tiny_model(), tokenizer, [task], batch_size=4)
    section = DataSection(train=[Source(path=path)], loss_on="last_assistant")
    for row, told in zip(task.rows, result.rows, strict=True):
        example = tokenize_conversation(row.conversation, ChatTemplate(tokenizer), section=section)
        first = next(index for index, weight in enumerate(example.weights) if weight)
        assert told["prompt"] == tokenizer.decode(example.ids[:first])
        assert told["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert [message["role"] for message in told["messages"]] == ["user", "assistant", "user"]


def test_worked_examples_are_in_the_prompt_and_in_the_loss(tmp_path):
    rows = write(tmp_path / "rows.jsonl", conversations(4))
    shots = write(tmp_path / "shots.jsonl", conversations(2, seed=9))
    specs = [
        TaskSpec(name=metric, path=rows, metric=metric, fewshot_path=shots, num_fewshot=2, max_new_tokens=2)
        for metric in ("exact", "loss")
    ]
    exact, loss = run_tasks(tiny_model(), tiny_tokenizer(), load_tasks(specs), batch_size=4)
    assert exact.rows[0]["prompt"].count("<|im_start|>assistant") == 3
    assert loss.rows[0]["prompt"] == exact.rows[0]["prompt"]
    plain = run_tasks(tiny_model(), tiny_tokenizer(), [load_task(TaskSpec(name="l", path=rows, metric="loss"))])[0]
    assert [row["secondary"]["tokens"] for row in plain.rows] == [row["secondary"]["tokens"] for row in loss.rows]
    assert plain.score != loss.score


def test_held_out_loss_is_per_token_and_comes_with_perplexity(tmp_path):
    import math

    path = write(tmp_path / "rows.jsonl", conversations(16))
    task = load_task(TaskSpec(name="loss", path=path, metric="loss"))
    results = [run_tasks(tiny_model(), tiny_tokenizer(), [task], batch_size=size)[0] for size in (1, 7, 64)]
    for result in results:
        assert result.score == pytest.approx(results[0].score, rel=1e-6)
        assert result.low < result.score < result.high
        assert result.secondary["perplexity"] == pytest.approx(math.exp(result.score))
        nll = sum(row["secondary"]["nll"] for row in result.rows)
        assert result.score == pytest.approx(nll / result.secondary["tokens"])
        assert set(result.rows[0]) >= ROW_KEYS
        json.dumps(results_to_json([result], model="x"), allow_nan=False)


def test_json_fields_are_counted_over_all_rows(tmp_path):
    from luthier.evaluate.scored import means, score_rows

    path = write(
        tmp_path / "rows.jsonl",
        [{"prompt": "a", "completion": '{"x": 1}'}, {"prompt": "b", "completion": '{"x": 1, "y": 2, "z": 3}'}],
    )
    task = load_task(TaskSpec(name="j", path=path, metric="json_exact"))
    scores = score_rows(task, ['{"x": 2}', '{"x": 1, "y": 2, "z": 3}'])
    # 3 fields right, 1 wrong on either side: 6 / (6 + 1 + 1); the mean of the rows' F1 would be 0.5
    assert means(scores) == {"valid_json": 1.0, "field_f1": 0.75}
    assert [score.secondary["field_f1"] for score in scores] == [0.0, 1.0]


def test_strict_and_lenient_scores_of_gsm8k(tmp_path):
    from luthier.evaluate.scored import means, score_rows

    path = write(tmp_path / "t.jsonl", [{"question": f"q{n}", "answer": f"so\n#### {n}"} for n in range(4)])
    task = load_task(TaskSpec(name="gsm8k", path=path))
    answers = ["#### 0", "it is 1", "#### 5", "no"]
    scores = score_rows(task, answers)
    assert [score.value for score in scores] == [1.0, 1.0, 0.0, 0.0]
    assert means(scores) == {"answered": 0.75, "strict": 0.25}


def test_rows_that_cannot_be_asked_are_all_named_before_anything_is_generated(tmp_path):
    good, bad = (
        conversations(1)[0],
        {"messages": [{"role": "user", "content": "time " * 600}, {"role": "assistant", "content": "x"}]},
    )
    path = write(tmp_path / "rows.jsonl", [good, bad, good, bad])
    model = tiny_model()

    def fail(*_):
        raise AssertionError("generated")

    model.register_forward_pre_hook(fail)
    tasks = load_tasks([TaskSpec(name=name, path=path, metric=name) for name in ("exact", "loss")])
    with pytest.raises(DataError) as caught:
        run_tasks(model, tiny_tokenizer(), tasks)
    places = [(problem.line, problem.file.endswith("rows.jsonl")) for problem in caught.value.problems]
    assert places == [(2, True), (4, True), (2, True), (4, True)]


def test_a_tokenizer_without_template_is_refused_for_chat_rows(tmp_path):
    task = load_task(TaskSpec(name="c", path=write(tmp_path / "r.jsonl", conversations(2)), metric="exact"))
    with pytest.raises(DataError, match="no chat template"):
        run_tasks(tiny_model(), tiny_tokenizer(chat_template=None), [task])


def test_two_tasks_of_one_name_are_refused(raw):
    task = load_task(TaskSpec(name="same", path=raw, metric="exact"))
    with pytest.raises(RecipeError, match="two tasks are called same"):
        run_tasks(tiny_model(), tiny_tokenizer(), [task, task])


def test_template_variables_change_prompt_and_hash(tmp_path):
    template = (
        "{{ mood }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    task = load_task(
        TaskSpec(name="c", path=write(tmp_path / "r.jsonl", conversations(2)), metric="exact", max_new_tokens=2)
    )
    tokenizer = tiny_tokenizer(chat_template=template)
    one, two = (
        run_tasks(tiny_model(), tokenizer, [task], template_kwargs={"mood": mood})[0] for mood in ("calm ", "wild ")
    )
    assert one.rows[0]["prompt"].startswith("calm ")
    assert one.settings["template_hash"] != two.settings["template_hash"]
