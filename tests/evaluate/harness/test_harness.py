"""Contract: lm-evaluation-harness scores our model as it scores its own, with the prompts of training."""

import json
import os
import random

import pytest

pytest.importorskip("lm_eval")

from luthier.data.template import ChatTemplate
from luthier.evaluate.compare import compare_results
from luthier.evaluate.harness.likelihood import log_likelihoods
from luthier.evaluate.results import results_to_json
from luthier.evaluate.run import run_tasks
from luthier.evaluate.tasks import load_tasks
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import DataError, RecipeError
from tests.evaluate.harness.support import choice_task, sums_task
from tests.support.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing may be looked up, and the cache of rows is this test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def spec(path, **keys):
    return TaskSpec.model_validate({"lm_eval": path, **keys})


def test_strict_and_flexible_extraction_both_come_with_raw_answers(tmp_path):
    tasks = load_tasks([spec(sums_task(tmp_path), max_new_tokens=6, limit=4)])
    strict, flexible = run_tasks(tiny_model(), tiny_tokenizer(), tasks, batch_size=2)
    assert (strict.name, flexible.name) == ("sums.strict-match", "sums.flexible-extract")
    assert strict.metric == flexible.metric == "exact_match"
    assert strict.n == flexible.n == 4
    assert [row["output"] for row in strict.rows] == [row["output"] for row in flexible.rows]
    assert all(isinstance(row["output"], str) and row["new_tokens"] == 6 for row in strict.rows)
    assert [row["reference"] for row in strict.rows] == [f"so\n#### {n + 1}" for n in range(4)]
    assert strict.settings["num_fewshot"] == 1
    json.dumps(results_to_json([strict, flexible], model="base"), allow_nan=False)


class Saying:
    """Replaces generation: the answer depends on the number in the question only."""

    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    def __call__(self, model, tokenizer, prompts, **_):
        from luthier.generation.generate import Generation

        texts = [tokenizer.decode(prompt) for prompt in prompts]
        self.prompts += [list(prompt) for prompt in prompts]
        return [Generation(ids=(1,), text=self.answer(text), finish_reason="stop") for text in texts]


def number_of(text):
    return int(text.rpartition("What is ")[2].partition(" +")[0].replace(" ", ""))


def test_scores_are_those_of_known_answers(tmp_path, monkeypatch):
    """Three ways to be right or wrong: form and number, number only, neither; text behind a stop string is cut off."""

    def say(text):
        n = number_of(text)
        return [f"#### {n + 1}", f"it is {n + 1} Question: 99", "no idea"][n % 3]

    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", Saying(say))
    strict, flexible = run_tasks(tiny_model(), tiny_tokenizer(), load_tasks([spec(sums_task(tmp_path))]))
    assert [row["score"] for row in strict.rows] == [1, 0, 0, 1, 0, 0]
    assert [row["score"] for row in flexible.rows] == [1, 1, 0, 1, 1, 0]
    assert (strict.score, flexible.score) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert flexible.low < flexible.score < flexible.high
    assert flexible.rows[1]["output"].endswith("Question: 99"), "the raw answer is kept whole"
    assert flexible.rows[1]["extracted"] == "2"


def test_prompts_have_the_tokens_of_training(tmp_path, monkeypatch):
    said = Saying(lambda text: "")
    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", said)
    tokenizer = tiny_tokenizer()
    run_tasks(tiny_model(), tokenizer, load_tasks([spec(sums_task(tmp_path), limit=3, num_fewshot=0, system="Count.")]))
    messages = [
        [{"role": "system", "content": "Count."}, {"role": "user", "content": f"Question: What is {n} + 1?\nAnswer:"}]
        for n in range(3)
    ]
    assert said.prompts == [ChatTemplate(tokenizer).prompt_ids(one) for one in messages]


def test_worked_examples_are_turns_and_the_same_for_both_models(tmp_path, monkeypatch):
    said = Saying(lambda text: "")
    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", said)
    tokenizer = tiny_tokenizer()
    tasks = load_tasks([spec(sums_task(tmp_path), limit=3, num_fewshot=2)])
    first = run_tasks(tiny_model(), tokenizer, tasks)
    second = run_tasks(tiny_model(seed=1), tokenizer, tasks)
    assert said.prompts[:3] == said.prompts[3:]
    assert tokenizer.decode(said.prompts[0]).count("<|im_start|>assistant") == 3
    assert [task.verdict for task in compare_results(first, second).tasks] == ["no evidence"] * 2


def test_without_chat_template_the_prompt_is_plain_text(tmp_path, monkeypatch):
    said = Saying(lambda text: "")
    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", said)
    tokenizer = tiny_tokenizer()
    task = spec(sums_task(tmp_path), limit=1, num_fewshot=0, apply_chat_template=False)
    run_tasks(tiny_model(), tokenizer, load_tasks([task]))
    assert tokenizer.decode(said.prompts[0]).endswith("Question: What is 0 + 1?\nAnswer:")
    assert "<|im_start|>" not in tokenizer.decode(said.prompts[0])


def test_choices_are_scored_by_the_log_likelihoods_of_the_harness_own_model(tmp_path):
    """The same task through `HFLM`: same log-likelihoods, same scores."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer, model = tiny_tokenizer(), tiny_model()
    (task,) = load_tasks([spec(choice_task(tmp_path), apply_chat_template=False)])
    (ours,) = run_tasks(model, tokenizer, [task], batch_size=5)
    theirs = evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), dict(task.loaded), bootstrap_iters=0)
    samples = sorted(theirs["samples"]["pick"], key=lambda sample: sample["doc_id"])
    for row, sample in zip(ours.rows, samples, strict=True):
        expected = [response[0][0] for response in sample["resps"]]
        assert row["log_likelihoods"] == pytest.approx([float(one) for one in expected], abs=1e-4)
        assert row["score"] == sample["acc"]
    assert ours.secondary["acc_norm"] == theirs["results"]["pick"]["acc_norm,none"]
    assert (ours.name, ours.metric, ours.n) == ("pick", "acc", 6)


def test_choices_follow_the_chat_template_when_there_is_one(tmp_path, monkeypatch):
    (task,) = load_tasks([spec(choice_task(tmp_path))])
    tokenizer, asked = tiny_tokenizer(), []

    def keep(model, pairs, **keys):
        asked.extend(pairs)
        return log_likelihoods(model, pairs, **keys)

    monkeypatch.setattr("luthier.evaluate.harness.shared.log_likelihoods", keep)
    (result,) = run_tasks(tiny_model(), tokenizer, [task], batch_size=5)
    assert result.rows[0]["prompt"].endswith("<|im_start|>assistant\n")
    prompt = ChatTemplate(tokenizer).prompt_ids([{"role": "user", "content": "word 0"}])
    assert [context for context, _ in asked[:3]] == [prompt] * 3
    assert [tokenizer.decode(choice) for _, choice in asked[:3]] == ["time", "people", "way"]


def test_literal_control_tokens_in_rows_stay_text(tmp_path, monkeypatch):
    """A question that spells a control token has the ids of training: plain text, not the token."""
    said = Saying(lambda text: "")
    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", said)
    tokenizer = tiny_tokenizer()
    path = sums_task(tmp_path, text="{{question}}<|im_end|>")
    run_tasks(tiny_model(), tokenizer, load_tasks([spec(path, limit=1, num_fewshot=0)]))
    messages = [{"role": "user", "content": "What is 0 + 1?<|im_end|>"}]
    assert said.prompts == [ChatTemplate(tokenizer).prompt_ids(messages)]
    assert said.prompts[0] != tokenizer(tokenizer.decode(said.prompts[0]), add_special_tokens=False)["input_ids"]


def test_nothing_of_the_process_is_changed(tmp_path):
    environment = dict(os.environ)
    random.seed(5)
    state = random.getstate()
    run_tasks(tiny_model(), tiny_tokenizer(), load_tasks([spec(sums_task(tmp_path), limit=1, max_new_tokens=2)]))
    assert random.getstate() == state
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_sample: false": "do_sample: true"}, "samples"),
        ({"do_sample: false": "do_sample: false\n  num_beams: 4"}, "num_beams"),
        ({"output_type: generate_until": "output_type: loglikelihood_rolling"}, "perplexity"),
        ({"num_fewshot: 1": "num_fewshot: 0"}, "zero-shot by its own file"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(tmp_path, changes, said):
    path = sums_task(tmp_path, replace=changes)
    with pytest.raises(RecipeError, match=said):
        load_tasks([spec(path, num_fewshot=2)])


def test_rows_that_cannot_be_read_are_told_with_the_task(tmp_path):
    path = sums_task(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match="cannot load"):
        load_tasks([spec(path, name="mine")])
    with pytest.raises(RecipeError, match="no file"):
        load_tasks([spec(str(tmp_path / "absent.yaml"))])


def test_prompts_without_room_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs"):
        run_tasks(tiny_model(), tiny_tokenizer(), load_tasks([spec(sums_task(tmp_path), max_new_tokens=5000)]))


def test_changed_rows_make_results_incomparable(tmp_path):
    from luthier.runtime.errors import RunFailed

    results = []
    for rows in (3, 4):
        folder = tmp_path / str(rows)
        folder.mkdir()
        tasks = load_tasks([spec(sums_task(folder, rows=rows), limit=3, max_new_tokens=2)])
        results.append(run_tasks(tiny_model(), tiny_tokenizer(), tasks))
    with pytest.raises(RunFailed, match="content of the rows"):
        compare_results(*results)
