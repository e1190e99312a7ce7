"""Contract: keys that exclude or need each other, keys without effect and missing files are errors at their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.recipe.check import check
from luthier.recipe.paths import looks_local, missing_path
from luthier.recipe.positions import nowhere
from luthier.recipe.rules import builtin_tasks
from luthier.recipe.schema import Recipe
from tests.recipe.support import BASE, load, problem_of, problems_of

pytestmark = pytest.mark.usefixtures("work")

TASK = "evaluate: {tasks: [{name: a, path: rows.jsonl, %s}]}"
HELD_OUT = "data: {train: [{path: rows.jsonl}], validation: {fraction: 0.1}}\n"


def with_validation(text: str) -> str:
    """A recipe with validation rows."""
    return BASE.replace("data: {train: [{path: rows.jsonl}]}\n", HELD_OUT) + text


@pytest.mark.parametrize(
    ("text", "column", "code", "words"),
    [
        ("train: {tokens_per_step: 100, gradient_accumulation_steps: 2}", 31, "C110", "exclude each other"),
        ("train: {tokens_per_step: 100, per_device_train_batch_size: 2}", 31, "C110", "exclude each other"),
        ("train: {rows_per_step: 4, tokens_per_step: 100}", 9, "C110", "exclude each other"),
        ("train: {rows_per_step: 4, gradient_accumulation_steps: 2}", 27, "C110", "exclude each other"),
        ("train: {learning_rate: 1e-4, learning_rate_multiplier: 2}", 30, "C111", "is a number"),
        ("train: {max_steps: 3, num_train_epochs: 1}", 23, "C111", "max_steps already says when to stop"),
        ("train: {warmup_steps: 3, warmup_ratio: 0.1}", 26, "C111", "warmup_steps already says how long"),
        ("train: {lr_scheduler_type: constant, warmup_ratio: 0.1}", 38, "C111", "constant has no warmup"),
        ("train: {optim: sgd, adam_beta1: 0.9}", 21, "C111", "optim sgd has no such setting"),
        ("train: {early_stopping_threshold: 0.1}", 9, "C111", "no early_stopping_patience"),
        ("train: {early_stopping_patience: 3}", 9, "C110", "needs validation data"),
        ("train: {load_best_model_at_end: true}", 9, "C110", "needs validation data"),
        ("train: {eval_steps: 3}", 9, "C111", "no validation data"),
        ("method: {name: full, r: 16}", 22, "C111", "method full has no adapters"),
        ("method: {name: full, lora_alpha: 16}", 22, "C111", "method full has no adapters"),
        ("method: {name: full, target_modules: all-linear}", 22, "C111", "method full has no adapters"),
        ("method: {name: full, modules_to_save: [lm_head]}", 22, "C111", "method full has no adapters"),
        ("method: {name: full, init_from: .}", 22, "C111", "method full has no adapters"),
        ("method: {name: freeze, last_n_layers: 2, r: 4}", 42, "C111", "method freeze has no adapters"),
        ("method: {name: freeze}", 16, "C110", "needs `trainable` or `last_n_layers`"),
        ("method: {name: freeze, trainable: []}", 16, "C110", "needs `trainable` or `last_n_layers`"),
        ("method: {name: freeze, trainable: [a, '(']}", 39, "C103", "not a regular expression"),
        ("method: {trainable: [a]}", 10, "C111", "for method freeze, not lora"),
        ("method: {name: full, last_n_layers: 2}", 22, "C111", "for method freeze, not full"),
        ("method: {target_modules: '*proj'}", 26, "C103", "not a regular expression"),
        ("method: {target_modules: []}", 26, "C103", "is empty"),
        ("method: {init_from: gone}", 21, "C130", "no such file or folder"),
        (TASK % "metric: regex", 56, "C110", "needs `pattern`"),
        (TASK % "metric: exact, pattern: '('", 72, "C103", "not a regular expression"),
        (TASK % "metric: loss, max_new_tokens: 3", 62, "C111", "metric loss generates no text"),
        (TASK % "metric: exact, num_fewshot: 3", 63, "C110", "needs `fewshot_path`"),
        (TASK % "metric: exact, fewshot_path: rows.jsonl", 63, "C111", "num_fewshot asks for no examples"),
        ("evaluate: {tasks: [{name: a, path: rows.jsonl}]}", 27, "C110", "has no `metric`"),
        (TASK % "metric: exact, pattern: x", 72, "C103", "has no group"),
        ("evaluate: {tasks: [{name: zzz, metric: exact}]}", 27, "C110", "does not ship with Luthier"),
        (
            "evaluate: {tasks: [{name: a, path: rows.jsonl, metric: loss}, {name: a, path: rows.jsonl, metric: loss}]}",
            70,
            "C110",
            "two tasks are called",
        ),
        ("export: {max_shard_size: 5 giga}", 26, "C103", "such as 5GB"),
        ("export: {push_to_hub: {repo_id: me}}", 33, "C103", "repo_id"),
        ("export: {merge: false, push_to_hub: {repo_id: me/x}}", 24, "C110", "`export.merge` is false"),
        ("export: {push_to_hub: {repo_id: me/x, what: gguf}}", 45, "C110", "makes none"),
    ],
)
def test_rules_within_a_section(text, column, code, words):
    problem = problem_of(text + "\n")
    assert (problem.code, problem.line, problem.column) == (code, 4, column), problem.render()
    assert words in problem.message


@pytest.mark.parametrize(
    ("model", "method", "words"),
    [
        ("quantization: none", "qlora", "trains on a 4-bit base"),
        ("quantization: nf4", "full", "4-bit weights cannot be trained"),
        ("quantization: nf4", "freeze, last_n_layers: 1", "4-bit weights cannot be trained"),
        ("quantization: fp8", "full", "8-bit weights cannot be trained"),
        ("quantization: fp8", "freeze, last_n_layers: 1", "8-bit weights cannot be trained"),
        ("quantization: fp8", "qlora", "trains on a 4-bit base"),
    ],
)
def test_quantisation_must_fit_the_method(model, method, words):
    text = BASE.replace("instruct}", f"instruct, {model}}}") + f"method: {{name: {method}}}\n"
    problem = problem_of(text, base=False)
    assert (problem.code, problem.line, problem.column) == ("C110", 1, 60)
    assert words in problem.message


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (BASE.replace("instruct}", "instruct, dequantize_base: true}"), "C111", "the base is not nf4"),
        (BASE.replace("instruct}", "instruct, quantization: fp8, dtype: float32}"), "C110", "come out in bfloat16"),
        (
            BASE + "train: {gradient_checkpointing: false, gradient_checkpointing_layers: 3}\n",
            "C111",
            "`train.gradient_checkpointing` is false",
        ),
        (
            BASE + "train: {gradient_checkpointing: selective, gradient_checkpointing_attention: 1}\n",
            "C111",
            "no layer runs again as a whole",
        ),
        (
            BASE + "train: {gradient_checkpointing_layers: 3, gradient_checkpointing_attention: 3}\n",
            "C111",
            "only 3 layers run again",
        ),
    ],
)
def test_recompute_and_storage_of_the_base(text, code, words):
    problem = problem_of(text, base=False)
    assert (problem.code, words in problem.message) == (code, True), problem.render()


@pytest.mark.parametrize(
    "text",
    [
        "train: {gradient_checkpointing: selective, gradient_checkpointing_layers: 3}",
        "train: {gradient_checkpointing_layers: 3}",
        "train: {max_steps: 3, num_train_epochs: null}",
        "train: {max_steps: null, num_train_epochs: 2}",
        "train: {warmup_steps: 0}",
        "train: {tokens_per_step: 100}",
        "train: {eval_steps: null}",
        "train: {per_device_train_batch_size: 2, gradient_accumulation_steps: 4, tokens_per_step: auto}",
        "train: {load_best_model_at_end: false}",
        "method: {name: qlora}",
        "method: {name: freeze, last_n_layers: 2, trainable: [norm]}",
        "method: {name: full}",
        "method: {target_modules: '.*_proj'}",
        "data: {loss_on: all, train: [{path: rows.jsonl}]}",
        TASK % "metric: exact, num_fewshot: 2, fewshot_path: more.jsonl",
        TASK % "metric: regex, pattern: '(.*)'",
        TASK % "metric: number",
        "export: {max_shard_size: 500MB}",
        "export: {push_to_hub: {repo_id: me/x, private: false, what: adapter, revision: v1, base_model: org/base}}",
    ],
)
def test_what_fits_together_loads(text):
    base = BASE.replace("data: {train: [{path: rows.jsonl}]}\n", "") if text.startswith("data") else BASE
    if "num_train_epochs: null" in text:
        assert problem_of(text).code == "C103"  # null is no number of epochs
    else:
        load(base + text + "\n", base=False)


def test_validation_data_make_its_keys_useful():
    keys = "early_stopping_patience: 2, early_stopping_threshold: 0.1, eval_steps: 3, load_best_model_at_end: true"
    text = f"train: {{{keys}}}\n"
    load(with_validation(text), base=False)
    found = problems_of(with_validation(text.replace("eval_steps: 3", "eval_steps: null")), base=False)
    assert [problem.code for problem in found] == ["C110", "C110"]


@pytest.mark.parametrize(
    ("validation", "code", "words"),
    [
        ("path: more.jsonl, fraction: 0.1", "C110", "exclude each other"),
        ("max_rows: 3", "C111", "neither a path nor a fraction"),
        ("fraction: 0.1, format: text", "C111", "held-out rows are read as in data.train"),
        ("path: gone.jsonl", "C130", "no such file"),
        ("path: ''", "C130", "empty path"),
    ],
)
def test_rules_of_validation(validation, code, words):
    text = BASE.replace("}]}\n", f"}}], validation: {{{validation}}}}}\n", 1)
    problem = problem_of(text, base=False)
    assert (problem.code, problem.line) == (code, 2)
    assert words in problem.message


def test_hub_keys_beside_a_local_file_are_refused_and_beside_a_hub_id_welcome():
    problem = problem_of(BASE.replace("{path: rows.jsonl}", "{path: rows.jsonl, split: test}"), base=False)
    assert (problem.code, problem.column) == ("C111", 35)
    load(BASE.replace("{path: rows.jsonl}", "{path: HuggingFaceH4/no_robots, split: test, name: x}"), base=False)


@pytest.mark.parametrize(
    "path",
    ["./x", "/x/y", "~/x", "x.jsonl", "x.JSON", "a/b.csv", "x.parquet", "x.arrow", "x.json.gz", "*", "a/b/c", "a b"],
)
def test_paths_that_must_be_local(path):
    assert looks_local(path)


@pytest.mark.parametrize("path", ["gsm8k", "openai/gsm8k", "HuggingFaceH4/no_robots", "a.b/c-d_e"])
def test_paths_that_may_be_hub_ids(path):
    assert not looks_local(path)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).mkdir()
    assert looks_local(path)


def test_a_saved_data_set_in_a_folder_has_splits_but_no_configurations():
    Path("saved").mkdir()
    load(BASE.replace("{path: rows.jsonl}", "{path: saved, split: test}"), base=False)
    assert problem_of(BASE.replace("{path: rows.jsonl}", "{path: saved, name: x}"), base=False).code == "C111"


def test_a_slip_beside_a_folder_is_a_missing_file_and_no_hub_id():
    Path("data").mkdir()
    assert problem_of(BASE.replace("rows.jsonl", "data/tickets"), base=False).code == "C130"


def test_a_missing_file_names_the_absolute_path_and_what_is_near(work):
    problem = problem_of(BASE.replace("rows.jsonl", "row.jsonl"), base=False)
    assert (problem.code, problem.line, problem.column) == ("C130", 2, 23)
    assert str(work / "row.jsonl") in problem.message
    assert problem.hint.startswith("did you mean rows.jsonl")


def test_a_missing_folder_names_the_part_that_is_there(work):
    (work / "data").mkdir()
    message, hint = missing_path("dat/train.jsonl")
    assert message == f"no such file: {work / 'dat/train.jsonl'} (of that path, {work} is there)"
    assert hint == "did you mean data?"


def test_globs_folders_and_home_are_found(work, monkeypatch):
    monkeypatch.setenv("HOME", str(work))
    for path in ("*.jsonl", "r[o]ws.jsonl", str(work / "*.jsonl"), ".", "~/rows.jsonl"):
        assert missing_path(path) is None
    assert "no file matches" in missing_path("*.csv")[0]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/rows.jsonl", "s3://bucket/folder", "gs://bucket/*.jsonl.gz",
        "abfs://container@account.dfs.core.windows.net/rows.parquet", "memory://rows.jsonl",
    ],
)  # fmt: skip
def test_urls_of_stores_are_read_and_their_hub_keys_are_not(url):
    assert load(BASE.replace("rows.jsonl", f"'{url}'"), base=False).data.train[0].path == url
    found = problem_of(BASE.replace("path: rows.jsonl", f"path: '{url}', name: main"), base=False)
    assert (found.code, "object store" in found.message) == ("C111", True)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.org/rows.jsonl", "s3://"),
        ("file:///etc/passwd.jsonl", "not read from file://"),
        ("hf://datasets/a/b/rows.jsonl", "not read from hf://"),
        ("https://example.org/*.jsonl", "does not list"),
        ("s3://", "names nothing"),
        ("https://example.org/a.zip::file:///etc/passwd.jsonl", "chains"),
    ],
)
def test_other_urls_are_refused(url, says):
    found = problem_of(BASE.replace("rows.jsonl", f"'{url}'"), base=False)
    assert (found.code, says in found.message) == ("C130", True)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAHUNTER2:hunter2@bucket/rows.jsonl", "https://user:hunter2@example.org/rows.jsonl",
        "https://hunter2@example.org/rows.jsonl", "https://b.s3.amazonaws.com/rows.jsonl?X-Amz-Signature=hunter2",
        "https://example.org/rows.jsonl?a=1&api_key=hunter2", "https://a.blob.core.windows.net/c/r.jsonl?sig=hunter2",
    ],
)  # fmt: skip
def test_a_credential_in_a_path_is_refused_and_not_repeated(url):
    found = problem_of(BASE.replace("rows.jsonl", f"'{url}'"), base=False)
    assert found.code == "C130" and "hunter2" not in found.render().lower()


@pytest.mark.parametrize(
    ("model", "column"),
    [
        ("name_or_path: ./gone", 23),
        ("name_or_path: /gone/model", 23),
        ("name_or_path: ''", 23),
        ("name_or_path: a/b/c", 23),
        ("name_or_path: m, tokenizer: ./gone", 37),
        ("name_or_path: m, chat_template: gone.jinja", 41),
    ],
)
def test_missing_files_of_the_model(model, column):
    problem = problem_of(f"model: {{{model}}}\ndata: {{train: [{{path: rows.jsonl}}]}}\noutput_dir: x\n", base=False)
    assert (problem.code, problem.line, problem.column) == ("C130", 1, column)


def test_other_rules_of_the_model():
    Path("local").mkdir()
    Path("t.jinja").write_text("x")

    def model(text: str) -> str:
        return BASE.replace("name_or_path: smollm2-135m-instruct", text)

    load(model("name_or_path: local, chat_template: t.jinja"), base=False)
    load(model('name_or_path: org/name, revision: main, chat_template: "{{ messages }}"'), base=False)
    assert problem_of(model("name_or_path: local, revision: main"), base=False).code == "C111"
    assert (
        "filled in by Luthier"
        in problem_of(model("name_or_path: m, chat_template_kwargs: {tools: 1}"), base=False).message
    )
    assert "listed twice" in problem_of(model("name_or_path: m, new_tokens: [<a>, <a>]"), base=False).message


def test_output_dir_may_not_be_a_file():
    assert "is a file" in problem_of(BASE.replace("runs/x", "rows.jsonl"), base=False).message
    assert "is empty" in problem_of(BASE.replace("runs/x", "''"), base=False).message


def test_shipped_tasks_are_found_by_file_name_and_need_no_path():
    for name in builtin_tasks():
        load(f"evaluate: {{tasks: [{{name: {name}}}]}}\n")


def test_a_wrong_section_does_not_silence_the_others_and_invents_nothing():
    found = problems_of("train: {early_stopping_patience: 2, seed: x}\nmethod: {name: full, r: 2, lora_alpha: x}\n")
    # train and method are not valid by themselves: only what is surely wrong is said of them.
    assert [(problem.code, problem.line) for problem in found] == [("C103", 4), ("C103", 5)]
    found = problems_of("train: {early_stopping_patience: 2}\nmethod: {name: fulll}\nexport: {max_shard_size: x}\n")
    assert [(problem.code, problem.line) for problem in found] == [("C110", 4), ("C103", 5), ("C103", 6)]


def test_check_takes_a_recipe_from_anywhere():
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": "m"},
            "data": {"train": [{"path": "gone.jsonl"}]},
            "method": {"name": "full", "r": 1},
            "output_dir": "x",
        }
    )
    found = check(recipe, locate=nowhere)
    assert sorted(problem.code for problem in found) == ["C111", "C130"]
    assert all(problem.file is None for problem in found)
