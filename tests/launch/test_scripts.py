"""Contract: submission files say what the plan says, and nothing in a name can become a command (F27)."""

import json
import os
import signal
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.launch.kubernetes import kube_name, manifest
from luthier.launch.resources import resources_of
from luthier.launch.settings import LaunchSettings, launch_settings
from luthier.launch.skypilot import task_file
from luthier.launch.slurm import batch_script, slurm_time
from luthier.launch.task import Resources, Task
from luthier.recipe.emit import dump_yaml
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import RecipeError

HOSTILE = ["a;touch marker", "$(touch marker)", "`touch marker`", "a\ntouch marker\n", "-rf", "'; touch marker; '",
           '"; touch marker; "', "#SBATCH --wrap=x", "a b",
           "é\u2028x", "${IFS}", "$$(HOME)", "*", "!!", "\\"]  # fmt: skip


def _task(folder, *, command=("python", "-m", "luthier", "run", "recipe.yaml"), **changes):
    return Task(**{
        "name": "ftjob-AbC_1.2", "command": tuple(command), "folder": folder, "out": folder / "out.json",
        "err": folder / "err.log", "exit_file": folder / "exit", "environment": {"OMP_NUM_THREADS": "8"},
        "secrets": ("HF_TOKEN",), "resources": Resources(gpus=1, gpu_type="h100", cpus=8, memory_bytes=40 << 30,
                                                         seconds=93_784), **changes,
    })  # fmt: skip


def _bash(script, folder, **environment):
    file = folder / "script.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(["bash", str(file)], env=env, cwd=folder, capture_output=True, text=True, check=False)


def test_the_batch_script_asks_for_what_the_task_needs(tmp_path):
    settings = launch_settings({"kind": "slurm", "slurm": {"partition": "gpu", "account": "lab", "setup": ["true"]}})
    script = batch_script(_task(tmp_path), settings)
    directives = {line.split(" ", 1)[1] for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert directives >= {
        "--job-name=ftjob-AbC_1.2", "--gres=gpu:h100:1", "--cpus-per-task=8", "--mem=40960M", "--time=1-02:03:04",
        "--requeue", "--signal=B:USR1@300", "--export=HF_TOKEN", "--partition=gpu", "--account=lab", "--nodes=1",
    }  # fmt: skip
    assert slurm_time(59) == "0-00:00:59"
    assert "export OMP_NUM_THREADS=8" in script


def test_without_secrets_nothing_of_this_environment_is_exported(tmp_path):
    assert "#SBATCH --export=NONE\n" in batch_script(_task(tmp_path, secrets=()), LaunchSettings())


def test_the_script_runs_the_command_and_leaves_its_exit_code(tmp_path):
    task = _task(tmp_path, command=("sh", "-c", "echo $OMP_NUM_THREADS; echo said >&2; exit 3"))
    done = _bash(batch_script(task, LaunchSettings()), tmp_path)
    assert done.returncode == 3
    assert (tmp_path / "exit").read_text() == "3\n"
    assert (tmp_path / "out.json").read_text() == "8\n"
    assert (tmp_path / "err.log").read_text() == "said\n"


SAVES = "trap 'echo saved; exit 130' TERM; echo ready; for i in $(seq 200); do sleep 0.05; done; exit 9"


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_lets_the_run_save_and_only_the_time_limit_puts_it_in_line_again(tmp_path, sent, requeued):
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/requeued"\n')
    (tmp_path / "scontrol").chmod(0o755)
    task = _task(tmp_path, command=("bash", "-c", SAVES))
    (tmp_path / "script.sh").write_text(batch_script(task, LaunchSettings()))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    shell = subprocess.Popen(["bash", str(tmp_path / "script.sh")], env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.json").is_file() or "ready" not in (tmp_path / "out.json").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shell.send_signal(sent)
    assert shell.wait(60) == (0 if requeued else 130)
    assert (tmp_path / "out.json").read_text() == "ready\nsaved\n"
    assert (tmp_path / "requeued").is_file() is requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"
        assert not (tmp_path / "exit").exists()
    else:
        assert (tmp_path / "exit").read_text() == "130\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_argument_path_or_value_becomes_a_command(tmp_path, text):
    folder = tmp_path / ("x" + text.replace("/", ""))
    folder.mkdir()
    task = _task(
        folder, command=("printf", "%s|", text, "--", text), environment={"VALUE": text}, out=folder / "out",
        err=folder / "err", exit_file=folder / "exit",
    )  # fmt: skip
    for script in (batch_script(task, LaunchSettings()), "set -e\n" + task_file(task, LaunchSettings())["run"]):
        assert _bash(script, tmp_path).returncode == 0
        assert (folder / "out").read_text() == f"{text}|--|{text}|"
        assert not list(tmp_path.rglob("marker"))
        lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        assert all(line.isascii() and "touch" not in line and "wrap" not in line for line in lines)
    for value in (manifest(task, LaunchSettings()), task_file(task, LaunchSettings())):
        assert parse_yaml(dump_yaml(value), origin="x").value == json.loads(json.dumps(value))


@pytest.mark.parametrize("name", [*HOSTILE, "", "x" * 101, "a/b", "../x"])
def test_a_hostile_name_is_refused_everywhere(tmp_path, name):
    task = _task(tmp_path, name=name)
    for make in (batch_script, manifest, task_file):
        with pytest.raises(RecipeError) as caught:
            make(task, LaunchSettings())
        assert caught.value.problems[0].code == "L151"


def test_variable_names_and_nul_are_refused_together(tmp_path):
    with pytest.raises(RecipeError) as caught:
        batch_script(_task(tmp_path, environment={"A=B;x": "1"}, command=("a\0b",)), LaunchSettings())
    assert [problem.code for problem in caught.value.problems] == ["L152", "L153"]


@pytest.mark.parametrize("change", [
    {"slurm": {"partition": "a;b"}}, {"slurm": {"partition": "-p"}}, {"slurm": {"account": "a\n#SBATCH --x"}},
    {"slurm": {"qos": "$(id)"}}, {"kubernetes": {"namespace": "A b"}}, {"kubernetes": {"image": "a b"}},
    {"gpu_type": "h100\n"}, {"gpus": 65}, {"kind": "pbs"}, {"unknown": 1},
])  # fmt: skip
def test_configuration_that_cannot_be_right_names_its_key(change):
    with pytest.raises(RecipeError) as caught:
        launch_settings(change)
    key = next(iter(change))
    assert caught.value.problems[0].code == "L150"
    assert f"`launch.{key}" in caught.value.problems[0].message


def test_time_and_memory_come_from_the_plan():
    plan = {"time": {"steps": 1000, "seconds_per_step": 2.0, "seconds_before": 100.0},
            "memory": {"total": 30 << 30}, "disk": {"base": 16 << 30, "final": 0}}  # fmt: skip
    settings = LaunchSettings(time_margin=1.5, overhead_minutes=30, memory_gib=4, cpus=6, gpu_type="a100")
    needs = resources_of(plan, settings)
    assert needs.seconds == 83 * 60  # (2100 s x 1.5 + 1800 s) = 4950 s = 82.5 min, rounded up
    assert needs.memory_bytes == 28 << 30  # 16 x 1.25 + 8
    assert (needs.gpus, needs.gpu_type, needs.cpus) == (1, "a100", 6)
    assert resources_of(plan, LaunchSettings(gpus=0, memory_gib=4)).memory_bytes == 58 << 30
    parts = {"processes": 3 << 30, "loading": 1 << 30, "states": 90 << 30, "weights": 0, "checkpoint": 8 << 30}
    offloaded = {**plan, "host": {"devices": 1, "parts": {**parts, "result": 5 << 30}}}
    assert resources_of(offloaded, LaunchSettings(memory_gib=4)).memory_bytes == (3 + 90 + 8 + 8) << 30
    assert resources_of(plan, LaunchSettings(max_minutes=40)).seconds == 40 * 60
    assert resources_of(None, LaunchSettings(max_minutes=77)).seconds == 77 * 60


def test_the_job_of_kubernetes(tmp_path):
    settings = launch_settings({
        "kind": "kubernetes",
        "kubernetes": {"namespace": "tuning", "image": "registry.local/luthier:1", "secret": "tokens",
                       "volumes": [{"claim": "data", "path": "/data", "sub_path": "luthier"}],
                       "node_selector": {"gpu": "h100"}, "priority_class": "low"},
    })  # fmt: skip
    value = parse_yaml(dump_yaml(manifest(_task(tmp_path), settings)), origin="x").value
    assert (value["apiVersion"], value["kind"]) == ("batch/v1", "Job")
    assert value["metadata"]["namespace"] == "tuning" and value["metadata"]["name"] == kube_name("ftjob-AbC_1.2")
    spec = value["spec"]
    assert spec["activeDeadlineSeconds"] == 93_784
    assert spec["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert 130 not in spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"], "an interrupted run goes on"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] == 120 and pod["nodeSelector"] == {"gpu": "h100"}
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"memory": "40960Mi", "nvidia.com/gpu": "1"}
    assert container["command"][-5:] == ["python", "-m", "luthier", "run", "recipe.yaml"]
    assert container["env"][1] == {
        "name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "HF_TOKEN", "optional": True}},
    }  # fmt: skip
    assert container["volumeMounts"][0] == {"name": "volume-0", "mountPath": "/data", "subPath": "luthier"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "data"}


def test_the_trainjob_of_kubeflow(tmp_path):
    settings = launch_settings({"kind": "kubernetes", "kubernetes": {"form": "trainjob", "runtime": "luthier"}})
    value = manifest(_task(tmp_path), settings)
    assert (value["apiVersion"], value["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = value["spec"]["trainer"]
    assert trainer["numNodes"] == 1 and trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"
    assert value["spec"]["runtimeRef"] == {"name": "luthier"}


def test_the_task_of_skypilot(tmp_path):
    settings = launch_settings({"kind": "skypilot", "skypilot": {"mounts": {"/data": "s3://bucket"}, "cloud": "aws"}})
    value = parse_yaml(dump_yaml(task_file(_task(tmp_path), settings)), origin="x").value
    assert value["resources"] == {
        "infra": "aws", "accelerators": "h100:1", "cpus": "8+", "memory": "40+", "use_spot": True,
    }  # fmt: skip
    assert value["file_mounts"] == {"/data": {"source": "s3://bucket", "mode": "MOUNT"}}


@given(st.text(max_size=120))
def test_names_of_kubernetes_are_labels_and_differ(text):
    name = kube_name(text)
    assert len(name) <= 63 and name.strip("-") == name
    assert all(char in "abcdefghijklmnopqrstuvwxyz0123456789-" for char in name)
    assert kube_name(text + "x") != name
