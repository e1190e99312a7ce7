"""Contract: a run whose template, stop tokens or BOS were changed after training is not served, scored, merged or
exported as if nothing had happened, and it is said which token differs."""

from __future__ import annotations

import json
import shutil

import pytest

from luthier.export.gguf.export import export_gguf
from luthier.pipeline.serving import open_host, resolve
from luthier.runtime.errors import LuthierError
from luthier.serve.engine.scheduler import EngineLimits
from tests.cli.calling import caller, make_world, write_recipe
from tests.support.tiny import CHATML, save_tiny

WRONG = CHATML.replace("'\n' + message['content']", "': ' + message['content']")
OTHER = WRONG.replace("assistant\n", "assistant: ")
NO_END = CHATML.replace("'<|im_end|>' + '\n'", "('<|im_end|>' if message['role'] != 'assistant' else '') + '\n'")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained, merged run, its base and its recipe."""
    from luthier.recipe.load import load_recipe

    folder = make_world(tmp_path_factory.mktemp("prompts"))
    (folder / "own.jinja").write_text(CHATML + "{# own #}", "utf-8")
    tasks = [{"name": "words", "path": str(folder / "test.jsonl"), "metric": "exact", "max_new_tokens": 2}]
    write_recipe(
        folder / "recipe.yaml", folder, evaluate={"tasks": tasks, "compare_with_base": False},
        model={"chat_template": str(folder / "own.jinja")},
    )  # fmt: skip
    from luthier.pipeline.run import run_recipe

    run_recipe(load_recipe(folder / "recipe.yaml").recipe, recipe_text=(folder / "recipe.yaml").read_text("utf-8"))
    return folder


@pytest.fixture
def world(made, tmp_path):
    """A copy of everything; the run's paths point into it."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    for name in ("recipe.yaml", "run/manifest.json", "run/recipe.yaml"):
        text = (copy / name).read_text("utf-8")
        (copy / name).write_text(text.replace(str(made), str(copy)), "utf-8")
    return copy


@pytest.fixture
def call(monkeypatch, capfd):
    return caller(monkeypatch, capfd)


def change(folder, *, template=None, stops=None, keep_record=False):
    """Edit a model folder by hand, as users do."""
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    if stops is not None:
        for name in ("generation_config.json", "config.json"):
            if (folder / name).is_file():
                value = json.loads((folder / name).read_text("utf-8"))
                (folder / name).write_text(json.dumps({**value, "eos_token_id": stops}), "utf-8")
    if not keep_record:
        (folder / "luthier.json").unlink()


def serve(path):
    host = open_host([resolve(str(path))], limits=EngineLimits(max_batch_size=2), dtype="float32")
    host.close()


def score(call, world, *more):
    return lambda path: _done(call("eval", world / "recipe.yaml", "--model", path, "--json", *more))


def talk(path):
    from luthier.pipeline.talk import open_talkers

    open_talkers(str(path), ("tuned",), system=None, max_new_tokens=2, temperature=0.0)


def export(path):
    export_gguf(path, path.parent / "gguf", ["f16"], name="x")


def _done(said):
    if said.code:
        raise Refused([(problem["code"], problem["message"]) for problem in said.json["problems"]])


class Refused(Exception):
    """What a command refused."""


def problems(action, *arguments):
    try:
        action(*arguments)
    except LuthierError as error:
        return [(problem.code, problem.message) for problem in error.problems]
    except Refused as refused:
        return refused.args[0]
    return []


def test_untouched_everything_works(world, call):
    frozen = json.loads((world / "run" / "manifest.json").read_text("utf-8"))["prompts"]
    assert frozen["stops"][0]["token"] == "<|im_end|>" and len(frozen["talks"]) == 4
    for path in (world / "run", world / "run" / "merged", world / "run" / "final"):
        assert problems(serve, path) == []
    for path in (world / "run" / "merged", world / "run" / "final"):
        assert problems(score(call, world), path) == []
    assert problems(talk, world / "run") == [] == problems(talk, world / "run" / "merged")
    assert call("merge", world / "run").code == 0
    assert problems(export, world / "run" / "merged") == []


@pytest.mark.parametrize("template", [WRONG, NO_END], ids=["wrong", "no end of turn"])
def test_a_merged_folder_with_another_template(world, call, template):
    merged = world / "run" / "merged"
    change(merged, template=template)
    for action in (serve, score(call, world), export, talk):
        found = problems(action, merged)
        assert [code for code, _ in found] == ["E580"], action
        assert "in training it was" in found[0][1] and " token " in found[0][1]
    assert not (world / "run" / "gguf").exists()


def test_a_template_that_was_moved_into_tokenizer_config(world, call):
    merged = world / "run" / "merged"
    (merged / "chat_template.jinja").unlink()
    file = merged / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "chat_template": WRONG}), "utf-8")
    change(merged)
    for action in (serve, score(call, world), export):
        assert [code for code, _ in problems(action, merged)] == ["E580"], action


def test_with_its_record_the_changed_file_itself_is_named(world, call):
    merged = world / "run" / "merged"
    change(merged, template=WRONG, keep_record=True)
    for action in (export, score(call, world)):
        found = problems(action, merged)
        assert found and all(code in {"M317", "E580"} for code, _ in found), action
    assert problems(export, merged)[0][0] == "M317"


def test_an_adapter_with_another_template(world, call):
    final = world / "run" / "final"
    change(final, template=WRONG)
    for action, path in ((serve, world / "run"), (serve, final), (score(call, world), final), (talk, world / "run")):
        assert [code for code, _ in problems(action, path)] == ["E580"], action
    shutil.rmtree(world / "run" / "merged")
    said = call("merge", world / "run", "--json")
    assert said.code == 1 and said.json["problems"][0]["code"] == "E580"
    assert not (world / "run" / "merged").exists()


def test_a_stop_token_taken_out_of_the_files(world, call):
    merged = world / "run" / "merged"
    change(merged, stops=[0])
    for action in (serve, score(call, world), export):
        found = problems(action, merged)
        assert [code for code, _ in found] == ["E581"], action
        assert "'<|im_end|>' (id 2) ended answers in training" in found[0][1]


def test_a_recipe_with_another_template_than_the_run(world, call, tmp_path):
    file = tmp_path / "wrong.jinja"
    file.write_text(WRONG, "utf-8")
    final, override = world / "run" / "final", f"model.chat_template={file}"
    assert [code for code, _ in problems(score(call, world, override), final)] == ["E580"]
    checkpoint = sorted((world / "run" / "checkpoints").glob("step-*"))[-1]
    said = call("eval", world / "recipe.yaml", "--checkpoint", checkpoint, override, "--json")
    assert said.json["problems"][0]["code"] == "E580"
    said = call("eval", world / "recipe.yaml", "--model", final, override, "--json", "--other-prompts")
    assert said.code == 0 and "note [E580]: the recipe: another prompt than in training" in said.err
    assert call("eval", world / "recipe.yaml", "--base", override, "--json").code == 0, "a base was not trained here"


def test_the_recipes_template_file_was_edited_after_training(world):
    from luthier.pipeline.data_stage import data_depends
    from luthier.pipeline.score_stages import scoring_depends
    from luthier.pipeline.session import Session
    from luthier.recipe.load import load_recipe
    from luthier.runs.folder import RunFolder

    session = Session(load_recipe(world / "recipe.yaml").recipe, RunFolder(world / "run"))
    before = [what(session) for what in (data_depends, scoring_depends)]
    (world / "own.jinja").write_text(OTHER, "utf-8")
    assert [code for code, _ in problems(serve, world / "run")] == ["E580"]
    after = [what(session) for what in (data_depends, scoring_depends)]
    assert all(one != other for one, other in zip(before, after, strict=True)), "`luthier run` would reuse old stages"


def test_the_base_got_another_template_after_training(world):
    """A run without a template of its own renders with the base's."""
    manifest = world / "run" / "manifest.json"
    value = json.loads(manifest.read_text("utf-8"))
    del value["recipe"]["model"]["chat_template"]
    manifest.write_text(json.dumps(value), "utf-8")
    assert problems(serve, world / "run") == [], "the comment in the run's own template changes no token"
    (world / "base" / "chat_template.jinja").write_text(WRONG, "utf-8")
    assert [code for code, _ in problems(serve, world / "run")] == ["E580"]


def test_a_merged_folder_far_from_its_run_still_knows(world, call, tmp_path):
    away = tmp_path / "away"
    shutil.copytree(world / "run" / "merged", away)
    assert problems(serve, away) == []
    file = tmp_path / "wrong.jinja"
    file.write_text(WRONG, "utf-8")
    assert [code for code, _ in problems(score(call, world, f"model.chat_template={file}"), away)] == ["E580"]


def test_a_model_of_somebody_else_that_begins_twice(tmp_path, call):
    folder = make_world(tmp_path)
    base = save_tiny(folder / "twice")
    (base / "chat_template.jinja").write_text("{{ bos_token + bos_token }}" + CHATML, "utf-8")
    tasks = [{"name": "words", "path": str(folder / "test.jsonl"), "metric": "exact", "max_new_tokens": 2}]
    write_recipe(folder / "recipe.yaml", folder, evaluate={"tasks": tasks}, model={"name_or_path": str(base)})
    assert [code for code, _ in problems(serve, base)] == ["E582"]
    assert [code for code, _ in problems(export, base)] == ["E582"]
    assert call("eval", folder / "recipe.yaml", "--json").json["problems"][0]["code"] == "E582"


@pytest.mark.parametrize(
    ("template", "said"),
    [("{{ bos_token }}" + CHATML, "begins with two '<|im_start|>' tokens"), (NO_END, "end")],
    ids=["two bos", "no end of turn"],
)
def test_training_refuses_it(tmp_path, call, template, said):
    folder = make_world(tmp_path)
    (folder / "t.jinja").write_text(template, "utf-8")
    write_recipe(folder / "recipe.yaml", folder, model={"chat_template": str(folder / "t.jinja")})
    told = call("run", folder / "recipe.yaml", "--json")
    assert told.code in (1, 3), told
    assert any(said in problem["message"] for problem in told.json["problems"]), told.json
    assert not (folder / "run" / "final").exists()
    assert "asks in other words than the base's own chat template" in told.err
