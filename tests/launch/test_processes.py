"""Which error a launch ends with, and (slow) that it does on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from luthier.launch.processes import _cause, choose_processes
from luthier.launch.several import _stopping
from luthier.runtime.errors import DataError, EnvironmentProblem, Interrupted, RecipeError, RunFailed
from luthier.runtime.failure import leave_failure, read_failure
from tests.support.tiny import conversations, save_tiny

ROOT = Path(__file__).parents[2]


def failure(tmp_path, monkeypatch, error, rank: int):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", str(rank))
    file = tmp_path / f"{rank}" / "error.json"
    leave_failure(error, file=file)
    return read_failure(file)


def died(code: int) -> SimpleNamespace:
    return SimpleNamespace(exitcode=code, pid=4711)


def test_the_cause_is_an_error_of_its_own_before_those_that_followed(tmp_path, monkeypatch):
    follows = failure(tmp_path, monkeypatch, RunFailed(code="L141", message="lost the others"), 0)
    cause = failure(tmp_path, monkeypatch, DataError(code="D210", message="row 7 is wrong"), 2)
    error = _cause([follows, cause], {0: died(1), 2: died(3)}, None, run=tmp_path, logs=[])
    assert isinstance(error, DataError)
    assert "process 2: row 7 is wrong" in str(error)


def test_a_killed_process_is_the_cause_of_lost_contact(tmp_path, monkeypatch):
    follows = failure(tmp_path, monkeypatch, RunFailed(code="L141", message="lost the others"), 2)
    folder = tmp_path / "processes"
    folder.mkdir()
    beat = {
        "rank": 1, "host": "h", "pid": 4711, "beat": 3, "count": 9, "operation": "average gradients", "step": 5,
        "exchange": True, "watched": True, "idle_seconds": 0.1,
    }  # fmt: skip
    (folder / "rank-1.json").write_text(json.dumps(beat))
    error = _cause([follows], {0: died(-15), 1: died(-9), 3: died(-15)}, None, run=tmp_path, logs=[])
    assert "process 1 (pid 4711) was ended by SIGKILL in `average gradients` of step 5" in str(error)
    assert error.exit_code == 1


def test_a_heartbeat_of_an_earlier_process_says_nothing(tmp_path):
    folder = tmp_path / "processes"
    folder.mkdir()
    beat = {
        "rank": 1, "host": "h", "pid": 17, "beat": 3, "count": 9, "operation": "average gradients", "step": 5,
        "exchange": True, "watched": True, "idle_seconds": 0.1,
    }  # fmt: skip
    (folder / "rank-1.json").write_text(json.dumps(beat))
    error = _cause([], {1: died(-9)}, None, run=tmp_path, logs=[])
    assert error.problems[0].message == "process 1 (pid 4711) was ended by SIGKILL"


def test_a_crash_without_an_error_of_ours_is_told_with_its_last_line(tmp_path):
    logs = tmp_path / "x"
    (logs / "attempt_0/1").mkdir(parents=True)
    (logs / "attempt_0/1/stderr.log").write_text("a\nSegmentation fault in libfoo\n")
    error = _cause([], {1: died(3)}, None, run=tmp_path, logs=[logs])
    assert "process 1 (pid 4711) ended with exit code 3; it said: Segmentation fault in libfoo" in str(error)


def test_stopped_by_a_signal_before_anything_was_saved(tmp_path):
    error = _cause([], {}, signal.SIGTERM, run=tmp_path, logs=[])
    assert isinstance(error, Interrupted)


def test_a_signal_before_processes_run_ends_with_an_error_and_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for words in ("could save anything", "could save more"):  # the second time a run that goes on
        said = f"stopped by SIGTERM before a process {words}"
        with pytest.raises(Interrupted, match=said) as caught, _stopping(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        (tmp_path / "checkpoints/step-3").mkdir(parents=True, exist_ok=True)
        assert caught.value.problems[0].hint
    assert caught.value.exit_code == 130 and signal.getsignal(signal.SIGTERM) == before


def test_what_followed_from_a_signal_is_not_the_cause(tmp_path, monkeypatch):
    """One process was loading and ended at once, another lost it."""
    follows = failure(tmp_path, monkeypatch, RunFailed(code="L141", message="lost the others"), 0)
    assert isinstance(_cause([follows], {}, signal.SIGTERM, run=tmp_path, logs=[]), Interrupted)


def test_a_file_of_another_program_is_not_ours(tmp_path):
    (tmp_path / "error.json").write_text('{"message": {"message": "x"}}')
    assert read_failure(tmp_path / "error.json") is None


def test_the_command_of_the_run_is_what_was_typed_not_that_of_a_process(monkeypatch):
    from luthier.launch.processes import _child_environment
    from luthier.pipeline.run import _typed
    from luthier.runtime.env import for_other_hosts, read_env

    monkeypatch.setattr(sys, "argv", ["/opt/luthier/__main__.py", "launch", "r.yaml", "--num-processes", "2"])
    assert read_env().launch_command == ()
    with _child_environment(cpu=True, unshared=False):
        typed = _typed(read_env().launch_command)
        assert "LUTHIER_LAUNCH_COMMAND" not in for_other_hosts()
    assert typed == ["python", "-m", "luthier", "launch", "r.yaml", "--num-processes", "2"]
    assert _typed(["/venv/bin/luthier", "run", "r.yaml"]) == ["/venv/bin/luthier", "run", "r.yaml"]


def test_an_error_is_found_although_the_disk_of_the_run_is_full(tmp_path, monkeypatch):
    from luthier.runtime import failure as module

    def write(path, value):
        if tmp_path / "run" in path.parents:
            raise EnvironmentProblem(code="R710", message="No space left on device")
        path.write_text(json.dumps(value))

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(module, "write_json", write)
    found = failure(tmp_path / "run", monkeypatch, EnvironmentProblem(code="R710", message="cannot write x"), 1)
    assert (found.rank, found.exit_code, found.problems[0].message) == (1, 4, "cannot write x")
    assert not [*tmp_path.glob("luthier-failure-*")], "read once"


def test_a_checkpoint_is_promised_only_where_there_is_one(tmp_path):
    error = _cause([], {1: died(-9)}, None, run=tmp_path, logs=[])
    assert "checkpoint" not in str(error) and "the same command starts it again" in str(error)
    assert "before a process could save anything" in str(_cause([], {}, signal.SIGINT, run=tmp_path, logs=[]))
    (tmp_path / "checkpoints/step-5").mkdir(parents=True)
    stopped = _cause([], {}, signal.SIGINT, run=tmp_path, logs=[])
    assert "could save more" in str(stopped) and "newest checkpoint is whole" in str(stopped)
    assert "newest checkpoint is whole" in str(_cause([], {1: died(-9)}, None, run=tmp_path, logs=[]))


def test_numbers_of_processes():
    assert choose_processes(None, 2) == (2, True)
    with pytest.raises(RecipeError, match="exclude each other"):
        choose_processes(1, 1)
    with pytest.raises(EnvironmentProblem, match="1000 GPUs were asked for"):
        choose_processes(1000, None)


# -- real processes


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path)


def write_recipe(folder: Path) -> Path:
    """Six steps of full tuning of a tiny model, four sequences each on two processes."""
    save_tiny(folder / "tiny")
    rows = "".join(json.dumps(row) + "\n" for row in conversations(13))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder}/tiny, dtype: float32}}
data: {{train: [{{path: {folder}/rows.jsonl}}], max_length: 128}}
method: {{name: full}}
train: {{learning_rate: 1.0e-3, num_train_epochs: 3, per_device_train_batch_size: 1, gradient_accumulation_steps: 2}}
export: {{merge: false}}
output_dir: {folder}/run
"""
    )
    return folder / "recipe.yaml"


def start(*words: str, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def launched(recipe: Path, *words: str, **environment: str) -> subprocess.Popen:
    return start("-m", "luthier", "launch", str(recipe), "--num-processes", "2", *words, **environment)


def wait_for_step(recipe: Path, step: int) -> dict:
    """What process 1 wrote when it was at `step`."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            beat = json.loads((recipe.parent / "run/processes/rank-1.json").read_text())
        except (OSError, ValueError):
            beat = {}
        if (beat.get("step") or 0) >= step:
            return beat
        time.sleep(0.1)
    raise AssertionError("process 1 never came so far")


@pytest.mark.slow
def test_a_launch_prints_once_and_one_process_or_two_reuse_the_result(recipe):
    process = launched(recipe, "--json")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["stages"]["train"]["processes"] == 2 and result["stages"]["train"]["strategy"] == "ddp"
    command = json.loads((recipe.parent / "run/manifest.json").read_text())["command"]
    assert command[3:] == ["launch", str(recipe), "--num-processes", "2", "--json"]
    assert err.count("train: tune") == 1
    again = start("-m", "luthier", "run", str(recipe))
    err = again.communicate(timeout=200)[1]
    assert again.returncode == 0
    assert "train: reused" in err


@pytest.mark.slow
def test_a_launch_in_shards_reads_by_rows_and_offloads(recipe):
    recipe.write_text(recipe.read_text() + "distributed: {strategy: fsdp2, offload: all}\n")
    process = launched(recipe)
    err = process.communicate(timeout=250)[1]
    assert process.returncode == 0, err
    said = " ".join(err.split())
    assert "weights are read by rows" in said and "offload all: the CPU updates with 1 threads" in said
    one = start("-m", "luthier", "run", str(recipe), f"output_dir={recipe.parent}/one")
    err = one.communicate(timeout=200)[1]
    assert one.returncode == 2 and "L241" in err, "one process has no shards"
    plain = (
        recipe.read_text()
        .replace("offload: all", "offload: none")
        .replace("accumulation_steps: 2", "accumulation_steps: 4")
    )
    recipe.write_text(plain)
    one = start("-m", "luthier", "run", str(recipe), f"output_dir={recipe.parent}/plain")
    assert one.communicate(timeout=200) and one.returncode == 0
    mine, theirs = (load_file(recipe.parent / f"{run}/final/model.safetensors") for run in ("run", "plain"))
    start_of = load_file(recipe.parent / "tiny/model.safetensors")
    assert max(float((mine[name] - start_of[name]).abs().max()) for name in mine) > 1e-3
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) <= 5e-5


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(recipe):
    """Rows are dealt and come back in order; 5 rows, so one process has one more."""
    rows = [{"messages": row["messages"]} for row in conversations(5, seed=7)]
    (recipe.parent / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"evaluate: {{tasks: [{{name: t, path: {recipe.parent}/task.jsonl, metric: exact, max_new_tokens: 8}}]}}\n"
    recipe.write_text(recipe.read_text() + task)
    two = launched(recipe)
    err = two.communicate(timeout=250)[1]
    assert two.returncode == 0, err
    after = json.loads((recipe.parent / "run/eval/after.json").read_text())["tasks"][0]
    before = json.loads((recipe.parent / "run/eval/before.json").read_text())["tasks"][0]
    one = start("-m", "luthier", "run", str(recipe), f"output_dir={recipe.parent}/one")
    err = one.communicate(timeout=250)[1]
    assert one.returncode == 0, err
    expected = json.loads((recipe.parent / "one/eval/before.json").read_text())["tasks"][0]
    assert [row["output"] for row in before["rows"]] == [row["output"] for row in expected["rows"]]
    assert (before["n"], before["score"]) == (expected["n"], expected["score"])
    assert after["n"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "freeze", "interrupt"])
def test_the_last_thing_printed_is_the_cause(recipe, how):
    process = launched(recipe, "train.num_train_epochs=4000", LUTHIER_HANG_SECONDS="6")
    try:
        beat = wait_for_step(recipe, 3)
        began = time.monotonic()
        if how == "interrupt":
            os.kill(process.pid, signal.SIGINT)
        else:
            os.kill(beat["pid"], signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        err = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    assert time.monotonic() - began < 60, "within a minute"
    last = err[err.rindex("error[") :]
    if how == "kill":
        assert process.returncode == 1
        assert f"process 1 (pid {beat['pid']}) was ended by SIGKILL in `" in last
    elif how == "freeze":
        assert process.returncode == 1
        assert f"process 1 ({beat['host']}, pid {beat['pid']}) has not answered for" in last
        assert "process 0 in `" in last
    else:
        assert process.returncode == 130
        assert "the checkpoint of step" in last


@pytest.mark.slow
def test_plain_torchrun_prints_the_cause_of_one_process_last(recipe):
    """Rows that cannot be read: process 0 says why, the other only that it stops."""
    recipe.write_text(recipe.read_text().replace("rows.jsonl", "absent.jsonl"))
    (recipe.parent / "absent.jsonl").write_text('{"messages": 7}\n')
    process = start(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "luthier", "train", str(recipe)
    )
    err = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    assert "process 0: error[D" in err[err.rindex("Root Cause") :]


def test_other_commands_are_refused_under_a_launcher(recipe):
    process = start("-m", "luthier", "launch", str(recipe), "--num-processes", "2", WORLD_SIZE="2", RANK="1")
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    assert "`luthier launch` was started by a launcher with 2 processes" in err


@pytest.mark.slow
def test_two_processes_share_each_sequence(recipe):
    process = launched(recipe, "distributed.sequence_parallel_size=2", "--json")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "each sequence is shared by 2 processes" in err
    assert "x 1 group of 2 processes" in err
    trained = json.loads(out[out.index("{") :])["stages"]["train"]
    one = start("-m", "luthier", "train", str(recipe), f"output_dir={recipe.parent}/one", "--json")
    out, err = one.communicate(timeout=250)
    assert one.returncode == 0, err
    alone = json.loads(out[out.index("{") :])["stages"]["train"]
    assert (trained["processes"], alone["processes"]) == (2, 1)
    assert trained["trained_tokens"] == alone["trained_tokens"]
    assert trained["final_loss"] == pytest.approx(alone["final_loss"], rel=1e-4)


@pytest.mark.slow
def test_four_processes_hold_two_copies_of_shards(recipe):
    words = ("distributed.strategy=fsdp2", "distributed.dp_replicate_size=2", "train.gradient_accumulation_steps=1")
    command = ("-m", "luthier", "launch", str(recipe), "--num-processes", "4", *words, "--train-only", "--json")
    process = start(*command)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "2 copies of the model in shards (HSDP), each on 2 processes of one machine" in err
    trained = json.loads(out[out.index("{") :])["stages"]["train"]
    assert (trained["processes"], trained["wrapper"]) == (4, "Passes")


@pytest.mark.slow
def test_a_launch_that_cannot_share_sequences_says_so_before_any_work(recipe):
    process = launched(recipe, "distributed.sequence_parallel_size=3")
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    assert "error[L230]" in err
    assert not (recipe.parent / "run/data").exists()
