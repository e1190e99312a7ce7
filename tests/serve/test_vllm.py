"""Contract: the vLLM command names the same models, with what vLLM needs to load them; keys are not in it."""

import json
import shutil

import pytest

from luthier.pipeline.serving import resolve, resolve_all
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.serve.host import Target
from luthier.serve.settings import ServeSettings
from luthier.serve.vllm import check_installed, vllm_command
from tests.serve.serving import adapter_folder
from tests.support.tiny import CHATML, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vllm")
    base = save_tiny(root / "base")
    return {
        "base": base, "one": adapter_folder(root / "one", base, seed=1),
        "two": adapter_folder(root / "two", base, seed=2, r=20),
        "dora": adapter_folder(root / "dora", base, seed=2, use_dora=True),
    }  # fmt: skip


def command(targets, tmp_path, **settings):
    settings = ServeSettings(**{"api_key": "secret-of-tests", **settings})
    return vllm_command(
        targets, settings, max_batch_size=16, dtype="auto", template_folder=tmp_path / "templates", write=True
    )


def test_a_model_alone(folders, tmp_path):
    assert command(resolve_all([f"tuned={folders['base']}"]), tmp_path, port=9000) == [
        "vllm", "serve", str(folders["base"]), "--served-model-name", "tuned", "--host", "127.0.0.1", "--port", "9000",
        "--max-num-seqs", "16", "--dtype", "auto", "--max-model-len", "512",
    ]  # fmt: skip


def test_adapters_on_one_base_with_the_rank_vllm_knows(folders, tmp_path):
    made = command(resolve_all([str(folders["one"]), str(folders["two"])]), tmp_path)
    assert made[2] == str(folders["base"])
    assert made[made.index("--served-model-name") + 1] == "base"
    tail = made[made.index("--enable-lora") :]
    assert tail == [
        "--enable-lora", "--max-lora-rank", "32", "--max-loras", "2", "--lora-modules", f"one={folders['one']}",
        f"two={folders['two']}",
    ]  # fmt: skip
    assert "secret-of-tests" not in made


def test_the_recipes_template_goes_along(folders, tmp_path):
    section = ModelSection(name_or_path=str(folders["base"]), chat_template=CHATML)
    made = command([Target(name="x", section=section)], tmp_path)
    file = made[made.index("--chat-template") + 1]
    assert open(file).read() == CHATML  # noqa: PTH123, SIM115


def test_what_vllm_cannot_serve_is_refused(folders, tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)S613.*merge"):
        command(resolve_all([str(folders["dora"])]), tmp_path)
    other = save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(RecipeError, match="S612"):
        command(resolve_all([str(folders["one"]), str(other)]), tmp_path)


def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EnvironmentProblem, match=r"(?s)S614.*pip install vllm"):
        check_installed()


def test_names_and_targets(folders, tmp_path):
    assert resolve(str(folders["one"])).name == "one" and resolve(str(folders["one"])).base_name == "base"
    assert resolve(f"my={folders['one']}").name == "my"
    assert resolve("org/Some-Model").name == "Some-Model" and resolve("org/Some-Model").folder is None
    with pytest.raises(RecipeError, match="S609"):
        resolve_all([str(folders["one"]), str(folders["one"])])
    run = tmp_path / "run"
    run.mkdir()
    manifest = {"recipe": {"model": {"name_or_path": "x"}, "data": {"train": [{"path": "y"}]}, "output_dir": "z"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecipeError, match="S616"):
        resolve(str(run))
    lonely = shutil.copytree(folders["one"], tmp_path / "lonely")
    (lonely / "luthier.json").unlink()
    config = json.loads((lonely / "adapter_config.json").read_text())
    (lonely / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(RecipeError, match="S617"):
        resolve(str(lonely))
