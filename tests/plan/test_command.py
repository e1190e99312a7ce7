"""Contract: `luthier plan` answers for any known model, without hub, weights, GPU or torch, in about a second."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from luthier.cli.plan import plan as command
from luthier.pipeline import planning
from luthier.pipeline.run import run_recipe
from luthier.plan.calibrate import Measured, calibration_file, record
from luthier.plan.devices import find_device
from luthier.plan.inputs import documents_of, shape_of
from luthier.public import load_recipe, plan
from luthier.runtime.env import read_env
from tests.support.tiny import conversations, save_tiny

GIB = 2**30


def luthier(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from luthier.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'peft', 'datasets', 'scipy') if name in sys.modules]\n"
        "print('HEAVY', heavy, file=sys.stderr); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name_or_path: meta-llama/Llama-3.1-8B}\n"
        "data: {train: [{path: org/set-on-a-hub}]}\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    return path


def test_a_hub_model_and_hub_data_need_neither_network_nor_torch(recipe, tmp_path):
    before = os.times()
    done = luthier("plan", str(recipe), "--gpu", "L4 24GB", "--json", LUTHIER_CACHE=str(tmp_path / "cache"))
    after = os.times()
    assert done.returncode == 0 and "HEAVY []" in done.stderr, done.stderr
    value = json.loads(done.stdout)
    assert (value["fits"], value["device"], value["parameters"]) == (True, "L4", 8_030_261_248)
    assert "table that ships" in value["model"] and "assumed" in value["data"]
    assert sum(value["memory"]["parts"].values()) == value["memory"]["total"] <= value["memory"]["device"]
    assert sum(value["time"]["parts"].values()) == pytest.approx(value["time"]["seconds_per_step"])
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 3.0  # of CPU; 0.9 measured


def test_the_table_says_how_each_number_is_known(recipe):
    done = luthier("plan", str(recipe), "--gpu", "H200", "--num-gpus", "2", "--rows", "1000", "--mean-tokens", "250")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "exact: parameters x bytes", "formula: what the layers keep", "stated constant", "on H200 (4% stay free): fits",
            "of 139.8 GiB on each device, ",
        "1,000 rows, 250 tokens a row", "tokens/s", "MFU", "the whole step at once", "other settings:", "disk: base",
        "2 devices on one host; start it with `luthier launch`, strategy ddp", "distributed.strategy: ",
    ):  # fmt: skip
        assert words in text, words


def test_what_does_not_fit_is_told_with_changes(recipe):
    done = luthier("plan", str(recipe), "--gpu", "L4", "method.name=full")
    assert done.returncode == 0, done.stderr
    assert "does not fit: needs" in done.stdout and "smallest change that helps: method.name=lora" in done.stdout
    assert "method.name=lora:" in done.stdout and "seconds of a step" not in done.stdout
    moved = luthier("plan", str(recipe), "--gpu", "A100 80GB", "method.name=full")
    for words in ("fits:", "distributed.offload: without it at least", "host memory: ", "GB/s a device is assumed"):
        assert words in " ".join(moved.stdout.split()), words
    share = luthier("plan", str(recipe), "--gpu", "H100", "--gpu-memory-gib", "20", "--json")
    assert json.loads(share.stdout)["memory"]["device"] == 20 * 2**30
    unlisted = luthier("plan", str(recipe), "--gpu-memory-gib", "48", "--json")
    assert "rates of RTXA6000 assumed" in json.loads(unlisted.stdout)["device_found"]


def test_what_one_device_offloads_is_said_and_why_it_cannot(recipe):
    recipe.write_text(recipe.read_text() + "method: {name: full}\n")
    moved = luthier("plan", str(recipe), "--gpu", "H100")
    text = " ".join(moved.stdout.split())
    for words in ("optimizer 0.00 in host memory", "optimizer offloaded", "of a host with this device"):
        assert words in text, f"{words}: {text}"
    recipe.write_text(recipe.read_text() + "train: {optim: muon}\n")
    refused = luthier("plan", str(recipe), "--gpu", "H100")
    assert "does not fit" in refused.stdout
    assert "optimizer offloaded: not looked at: `distributed.offload: optimizer` beside `train.optim: muon`" in (
        " ".join(refused.stdout.split())
    )


@pytest.mark.parametrize(("free", "fits"), [(100 * GIB, True), (GIB, False)])
def test_what_this_host_has_free_is_asked_of_this_machine_alone(recipe, monkeypatch, capsys, free, fits):
    recipe.write_text(recipe.read_text() + "method: {name: full}\n")
    monkeypatch.setattr("luthier.plan.machine.this_machine", lambda: (find_device("H100"), "this machine"))
    monkeypatch.setattr("luthier.runtime.host_memory.free_memory_bytes", lambda: free)
    monkeypatch.setenv("COLUMNS", "200")
    command(recipe)
    text = " ".join(capsys.readouterr().out.split())
    if fits:
        assert "of a host with this device; 100.0 GiB are free here" in text and "does not fit" not in text
    else:
        assert "does not fit this host: 36.7 GiB would do, and 97.7 GiB of host memory, of which 1.0 GiB" in text
        assert "smallest change that helps" in text
    command(recipe, gpu="H100")
    text = " ".join(capsys.readouterr().out.split())
    assert "are free" not in text and "does not fit" not in text


def test_the_function_and_a_run_ask_what_this_host_has_free(recipe, monkeypatch):
    monkeypatch.setattr("luthier.plan.machine.this_machine", lambda: (find_device("H100"), "this machine"))
    monkeypatch.setattr("luthier.runtime.host_memory.free_memory_bytes", lambda: GIB)
    recipe.write_text(recipe.read_text() + "method: {name: full}\n")
    here = plan(recipe)
    assert not here.fits and here.chosen.host_available == GIB
    assert plan(recipe, gpu="H100").fits
    loaded = load_recipe(recipe)
    session = SimpleNamespace(
        recipe=loaded, shape=shape_of(loaded), selection=None,
        device=SimpleNamespace(type="cuda", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB),
    )  # fmt: skip
    monkeypatch.setattr(planning, "_documents", lambda session: documents_of(session.recipe))
    monkeypatch.setattr(planning, "free_memory_bytes", lambda: 2 * GIB)
    assert planning.run_request(session).host_memory == 2 * GIB


def test_wrong_options_are_refused(recipe):
    done = luthier("plan", str(recipe), "--gpu", "H20")
    assert done.returncode == 2 and 'did you mean "H200"' in done.stderr
    assert luthier("plan", str(recipe), "--num-gpus", "0").returncode == 2


# -- the plan of a run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


def _run(base, tmp_path, **train):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(24)))
    recipe = load_recipe(
        {
            "model": {"name_or_path": str(base)},
            "data": {"train": [{"path": str(rows)}], "max_length": 256},
            "train": {"max_steps": 2, "tokens_per_step": 400, **train},
            "export": {"merge": False},
            "output_dir": str(tmp_path / "run"),
        }
    )
    run_recipe(recipe, only=("data", "train"))
    return recipe, json.loads((tmp_path / "run" / "plan.json").read_text())


def test_a_run_keeps_its_plan(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    recipe, value = _run(base, tmp_path)
    assert value["fits"] is True
    assert sum(value["memory"]["parts"].values()) == value["memory"]["total"]
    assert value["memory"]["peak"] > 400 * 2**20 and value["time"]["seconds_per_step"] > 0
    assert value["data"].startswith("exact")
    resolved = (tmp_path / "run" / "resolved.yaml").read_text()
    size = value["setting"]["per_device_train_batch_size"]
    assert f"per_device_train_batch_size: {size}  # at most 1,024 tokens" in resolved
    assert "gradient_checkpointing: false  # the step needs" in resolved
    # The public function says the same of the finished data stage.
    again = plan(recipe)
    assert again.predicted()["key"] == value["predicted"]["key"]
    assert (again.tokens, again.steps) == (value["time"]["tokens"], value["time"]["steps"])


def test_a_run_that_goes_on_keeps_its_decisions(base, tmp_path, monkeypatch):
    """Another run's measurements in between would shrink the plan; the stored decision stands."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    _, first = _run(base, tmp_path)
    said = first["predicted"]
    huge = Measured(peak_bytes=2 * said["peak_bytes"], seconds_per_step=9 * said["seconds_per_step"])
    record(calibration_file(read_env().cache_dir), said, huge)
    (tmp_path / "run" / "stages" / "train.json").unlink()
    _, second = _run(base, tmp_path)
    assert second["decision"] == first["decision"] and second["fingerprint"] == first["fingerprint"]
    assert second["predicted"]["correction"]["runs"] >= 1
    _, other = _run(base, tmp_path, seed=1)
    assert other["fingerprint"] != first["fingerprint"]
    assert other["decision"] != first["decision"]  # made anew, with what was measured: its reasons name more memory


def test_a_plan_is_made_before_there_are_data(tmp_path):
    text = (
        "model: {name_or_path: meta-llama/Llama-3.1-8B}\n"
        "data: {train: [{path: not-yet/chats.jsonl}], validation: {path: not-yet/held_out.jsonl}}\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    done = luthier("plan", str(path), "--gpu", "H200")
    assert done.returncode == 0, done.stderr
    assert "not there yet" in done.stderr and "not-yet/chats.jsonl, not-yet/held_out.jsonl" in done.stderr
    assert "10,000 rows (assumed)" in done.stdout
    value = json.loads(luthier("plan", str(path), "--gpu", "H200", "--json").stdout)
    assert value["missing_files"] == ["not-yet/chats.jsonl", "not-yet/held_out.jsonl"]
    # A slip of the pen, another mistake beside it, or a model that is not there are errors as ever.
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for old, new in (
        ("not-yet/chats.jsonl", str(tmp_path / "rovs.jsonl")), ("data:", "date:"),
        ("meta-llama/Llama-3.1-8B", "./base"),
    ):  # fmt: skip
        path.write_text(text.replace(old, new))
        wrong = luthier("plan", str(path), "--gpu", "H200")
        assert wrong.returncode == 2 and ("C130" in wrong.stderr) == (old != "data:"), wrong.stderr
