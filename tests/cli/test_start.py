"""Contract: help and plan answer fast and never load torch; wrong usage exits 2 with a suggestion."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.tiny import conversations, save_tiny

NO_TORCH = """
import sys
sys.argv = ["luthier", *{arguments!r}]
from luthier.cli.main import main
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "accelerate", "scipy") if name in sys.modules]
print("HEAVY", heavy, file=sys.stderr)
sys.exit(code)
"""


def _luthier(*arguments, **kwargs):
    script = NO_TORCH.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, **kwargs)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(8)))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{name_or_path: {folder / 'model'}}}\n"
        f"data: {{train: [{{path: {rows}}}]}}\n"
        f"output_dir: {folder / 'run'}\n"
    )
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "--help"], ["schema"], ["runs", "ls"]])
def test_help_and_schema_load_nothing_heavy(arguments):
    done = _luthier(*arguments)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_plan_loads_no_torch_and_counts_the_adapter(recipe):
    done = _luthier("plan", str(recipe), "--json")
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr
    plan = json.loads(done.stdout)
    # r x (in + out) over q, k, v, o, gate, up, down of two layers with hidden 64
    per_layer = 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 2 * (64 + 128) + (128 + 64))
    assert plan["trainable"] == 2 * per_layer


def test_help_and_plan_answer_in_about_a_second(recipe):
    """In units of an interpreter that loads the libraries they need (0.16 s of CPU where this was measured), best of
    three: help takes 3 and a plan 7. Seconds would fail where the machine is slow or busy."""

    def spent(call):
        before = os.times()
        assert call().returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    libraries = [sys.executable, "-c", "import pydantic, typer, yaml"]
    for arguments in (["--help"], ["plan", str(recipe)]):
        times = [(spent(lambda: subprocess.run(libraries, check=False)), spent(lambda: _luthier(*arguments)))  # noqa: B023
                 for _ in range(3)]  # fmt: skip
        unit, ours = (min(found) for found in zip(*times, strict=True))
        assert ours < 12 * unit, (arguments, times)


def test_help_fits_on_a_screen_and_names_every_verb():
    done = _luthier("--help", env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"})
    assert len(done.stdout.splitlines()) <= 50
    verbs = "quickstart init run plan data train launch eval compare merge lr-find sweep chat rerun runs doctor schema"
    for verb in [*verbs.split(), "api", "jobs", "studio"]:
        assert f" {verb} " in done.stdout


def test_an_unknown_command_exits_2_and_suggests():
    done = _luthier("trian")
    assert done.returncode == 2
    assert "train" in done.stderr


def test_a_stray_argument_is_never_ignored(recipe):
    done = _luthier("plan", str(recipe), "--frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr


def test_errors_as_json_on_stdout_with_the_exit_code(tmp_path):
    done = _luthier("plan", str(tmp_path / "none.yaml"), "--json")
    assert done.returncode == 2
    problems = json.loads(done.stdout)["problems"]
    assert "none.yaml" in json.dumps(problems)


def test_both_spellings_of_an_override_mean_the_same(recipe):
    plans = [
        json.loads(_luthier("plan", str(recipe), "--json", *spelling).stdout)["trainable"]
        for spelling in (["method.r=4"], ["--method.r", "4"], ["--method.r=4"])
    ]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0] == json.loads(_luthier("plan", str(recipe), "--json").stdout)["trainable"] // 4


def test_what_deepspeed_logs_is_not_in_stdout():
    """It puts a handler on stdout while it is imported, after the command line has begun."""
    said = (
        "import logging, sys\n"
        "import luthier.cli.main as main\n"
        "sys.argv = ['luthier', '--version']\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        "logger = logging.getLogger('DeepSpeed')\n"
        "logger.addHandler(logging.StreamHandler(sys.stdout))\n"
        "logger.warning('something of the accelerator')\n"
        "logger.warning('Setting accelerator to CPU. If you have GPU')\n"  # of every run on a CPU: no news
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    assert "accelerator" not in done.stdout
    assert "DeepSpeed: something of the accelerator" in done.stderr and "Setting" not in done.stderr
