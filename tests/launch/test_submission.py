"""Contract: `launch --print` gives one file that a cluster takes, made of recipe and plan, and (slow) it trains."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.plan.search import make_plan
from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.errors import RecipeError
from tests.launch.support import (
    environment,
    free_port,
    kill_group,
    largest_change,
    largest_difference,
    one_process,
    stage,
    start,
    wait_until,
    write_recipe,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("submission")
    write_recipe(path)
    return path


def printed(folder: Path, kind: str, *words: str) -> str:
    done = CliRunner().invoke(app, ["launch", str(folder / "recipe.yaml"), "--print", kind, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def documents(text: str) -> list:
    return [parse_yaml(part, origin="x").value for part in text.split("---\n")]


def settings(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text)
    return str(folder / "settings.yaml")


def test_the_plan_that_is_printed_is_the_one_that_the_run_makes(folder, monkeypatch):
    """With as many devices to a host as it will have, and the network that goes along with LUTHIER_ variables."""
    asked = []
    monkeypatch.setattr("luthier.plan.search.make_plan", lambda request: asked.append(request) or make_plan(request))
    monkeypatch.setenv("LUTHIER_NETWORK_GBITS", "25")
    printed(folder, "slurm", "--nodes", "2", "--num-gpus", "4", "--gpu", "H100")
    printed(folder, "slurm", "--num-gpus", "8", "--gpu", "H100")
    assert [(one.num_gpus, one.host_devices, one.device.network) for one in asked] == [
        (8, 4, 25e9 / 8),
        (8, 8, 25e9 / 8),
    ]


def test_the_slurm_script_asks_for_machines_by_recipe_and_plan(folder):
    given = settings(folder, "gpu_type: h100\npython: /opt/py\nslurm: {partition: gpu, setup: [module load cuda]}\n")
    text = printed(folder, "slurm", "--nodes", "3", "--num-gpus", "4", "--settings", given, "--", "train.seed=7")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    directives = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}
    assert directives >= {
        "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--gres=gpu:h100:4", "--partition=gpu", "--requeue",
        "--signal=B:USR1@300", "--time=0-01:01:00", "--mem=32768M",
    }  # fmt: skip
    assert text.startswith("#!/bin/bash\n") and "module load cuda\n" in text
    launcher = re.search(r"^  /opt/py .*$", text, re.M)[0]
    words = shlex.split(launcher.split(" < ")[0])
    assert words == ["/opt/py", "-m", "luthier", "launch", str(folder / "recipe.yaml"), "train.seed=7", "--num-gpus",
                     "4", "--nodes", "3"]  # fmt: skip
    assert re.search(r"^# gpus: one process for each of 4 GPUs; the plan: .* on each of 12", text, re.M)
    assert re.search(r"^# time: \d+ steps x .* s x 1.5 \+ 60 min", text, re.M)


def test_the_indexed_job_finds_its_first_pod_by_name(folder):
    text = printed(folder, "kubernetes", "--nodes", "2", "--num-gpus", "8", "--gpu", "H100")
    config, service, job = documents(text)
    name = job["metadata"]["name"]
    assert config["data"]["recipe.yaml"] == (folder / "recipe.yaml").read_text()
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == name
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == name
    command = pod["containers"][0]["command"]
    assert command[-4:] == ["--node-rank", "$(LUTHIER_NODE)", "--rendezvous", f"{name}-0.{name}:29500"]
    variables = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert "job-completion-index" in variables["LUTHIER_NODE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert 7 not in spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"], "a lost machine is started again"
    mounts = {one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert str(Path(command[4]).parent) in mounts
    assert "no volume holds output_dir" in text


def test_one_machine_needs_no_service(folder):
    _, job = documents(printed(folder, "kubernetes", "--num-gpus", "8", "--gpu", "H100"))
    assert (
        "completionMode" not in job["spec"]
        and "--nodes" not in job["spec"]["template"]["spec"]["containers"][0]["command"]
    )


@pytest.mark.parametrize("patches", ["runtimePatches", "podTemplateOverrides"])
def test_the_trainjob_takes_what_its_runtime_sets(folder, patches):
    given = settings(folder, f"kubernetes: {{form: trainjob, patches: {patches}}}\n")
    _, job = documents(
        printed(folder, "kubernetes", "--nodes", "2", "--num-gpus", "8", "--gpu", "H100", "--settings", given)
    )
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert expanded(trainer["command"], PET_NNODES="2", PET_NPROC_PER_NODE="8", PET_NODE_RANK="1",
                    PET_MASTER_ADDR="x-node-0-0.x", PET_MASTER_PORT="29400")[-8:] == [
        "--num-gpus", "8", "--nodes", "2", "--node-rank", "1", "--rendezvous", "x-node-0-0.x:29400"]  # fmt: skip
    assert patches in job["spec"]
    assert "/etc/luthier" in json.dumps(job["spec"][patches])


def test_the_task_of_skypilot_takes_files_along(folder):
    given = settings(folder, f"skypilot: {{mounts: {{{folder}/run: 's3://bucket'}}}}\n")
    text = printed(folder, "skypilot", "--nodes", "2", "--num-gpus", "8", "--gpu", "H100", "--settings", given)
    (task,) = documents(text)
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    assert task["file_mounts"][f"{folder}/run"] == {"source": "s3://bucket", "mode": "MOUNT"}
    assert task["file_mounts"][f"{folder}/rows.jsonl"] == f"{folder}/rows.jsonl"
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0
    assert "no volume holds" not in text


def test_every_file_of_the_recipe_goes_along_or_is_told_to_be_missing(folder, tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text('{"zero_optimization": {"stage": 3}}')
    words = ("--num-gpus", "8", "--gpu", "H100", f"distributed.deepspeed_config={ds}", "method.name=full")
    (task,) = documents(printed(folder, "skypilot", *words))
    assert {str(ds), f"{folder}/rows.jsonl", f"{folder}/tiny"} <= set(task["file_mounts"])
    text = printed(folder, "kubernetes", *words)
    (line,) = [line for line in text.splitlines() if "pods do not find" in line]
    assert str(ds) in line and f"{folder}/tiny" in line and "recipe.yaml" not in line, "the recipe is a ConfigMap"


def test_a_file_is_written_whole_and_stdout_stays_empty(folder, tmp_path):
    file = tmp_path / "job.sbatch"
    assert printed(folder, "slurm", "--num-processes", "2", "--output", str(file)) == ""
    assert "--num-processes 2" in file.read_text()
    told = json.loads(printed(folder, "slurm", "--num-processes", "2", "--json"))
    assert told["text"] == file.read_text() and set(told["reasons"]) == {"gpus", "memory", "disk", "time"}


@pytest.mark.parametrize(("words", "code"), [
    (["--print", "pbs"], "L210"), (["--print", "slurm"], "L211"), (["--output", "x"], "L210"),
    (["--print", "slurm", "--settings", "absent.yaml"], "L210"),
    (["--print", "slurm", "--num-processes", "2", "--hosts", "a,b"], "L210"),
    (["--print", "slurm", "--num-processes", "2", "--node-rank", "1"], "L210"),
])  # fmt: skip
def test_what_cannot_be_printed_is_refused(folder, words, code):
    done = CliRunner().invoke(app, ["launch", str(folder / "recipe.yaml"), *words])
    assert isinstance(done.exception, RecipeError) and done.exception.problems[0].code == code


def test_settings_of_another_cluster_are_refused(folder):
    given = settings(folder, "kind: slurm\n")
    with pytest.raises(RecipeError, match="--print kubernetes"):
        printed(folder, "kubernetes", "--num-processes", "1", "--settings", given)


@pytest.mark.parametrize("text", ["a b", "$(touch marker)", "'; touch marker; '", "`touch marker`"])
def test_no_override_becomes_a_command(folder, tmp_path, text):
    """The whole script runs, with an `srun` that writes down its arguments."""
    script = printed(folder, "slurm", "--num-processes", "1", "--nodes", "2", f"name={text}")
    programs = fake_programs(tmp_path, srun='printf "%s\\n" "$@" > words\n')
    (tmp_path / "job.sh").write_text(re.sub(r"^cd -- .*$", f"cd {tmp_path}", script, flags=re.M))
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "x"}
    subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=env, check=True)
    assert f"name={text}" in (tmp_path / "words").read_text().splitlines()
    assert not list(tmp_path.rglob("marker"))


# -- they train


def expanded(command: list[str], **variables: str) -> list[str]:
    """What Kubernetes makes of a command."""
    found = [re.sub(r"\$\(([A-Z_]+)\)", lambda match: variables[match[1]], part) for part in command]
    return [part.replace("$$", "$") for part in found]


def fake_programs(folder: Path, **bodies: str) -> Path:
    made = folder / "bin"
    made.mkdir(exist_ok=True)
    for name, body in {"scontrol": 'echo "$@" >> calls; [ "$1" = requeue ] || echo 127.0.0.1\n', **bodies}.items():
        (made / name).write_text("#!/bin/bash\n" + body)
        (made / name).chmod(0o755)
    return made


SRUN = """
nodes=1
while [ "${1#--}" != "$1" ]; do case "$1" in --ntasks=*) nodes="${1#--ntasks=}";; esac; shift; done
pids=
for ((node = 0; node < nodes; node++)); do SLURM_NODEID=$node "$@" & pids="$pids $!"; done
echo $pids > launchers
most=0
for pid in $pids; do code=0; wait "$pid" || code=$?; [ "$code" -gt "$most" ] && most=$code; done
exit "$most"
"""
SCANCEL = '[ "$1" = --signal=TERM ] && kill -s TERM $(cat launchers)\n'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_slurm_script_trains_on_two_hosts_and_is_put_in_line_again_before_its_time_is_up(tmp_path):
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    script = printed(tmp_path, "slurm", "--nodes", "2", "--num-processes", "1", "--train-only")
    (tmp_path / "job.sh").write_text(re.sub(r"^cd -- .*$", f"cd {tmp_path}", script, flags=re.M))
    programs = fake_programs(tmp_path, srun=SRUN, scancel=SCANCEL)
    more = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": str(free_port() - 20000),
            "SLURM_JOB_NODELIST": "h[0-1]"}  # fmt: skip
    long = (tmp_path / "job.sh").read_text().replace("--num-processes", "train.num_train_epochs=4000 --num-processes")
    (tmp_path / "long.sh").write_text(
        long.replace(f"{tmp_path}/recipe.yaml", f"{tmp_path}/recipe.yaml output_dir={tmp_path}/long")
    )
    job = start("bash", "long.sh", cwd=tmp_path, **more)
    try:
        wait_until(lambda: (tmp_path / "long/metrics.jsonl").exists(), what="the first step")
        job.send_signal(signal.SIGUSR1)
        _, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        assert (tmp_path / "calls").read_text().splitlines()[-1] == f"requeue {more['SLURM_JOB_ID']}"
        assert list((tmp_path / "long/checkpoints").glob("step-*")), "saved before it was put in line again"
    finally:
        kill_group(job)
    job = start("bash", "job.sh", cwd=tmp_path, **more)
    try:
        _, err = job.communicate(timeout=200)
        assert job.returncode == 0, err
    finally:
        kill_group(job)
    assert stage(tmp_path / "run", "train")["processes"] == 2
    one_process(recipe, tmp_path / "one")
    assert largest_change(tmp_path / "tiny", tmp_path / "run") > 1e-3
    assert largest_difference(tmp_path / "run", tmp_path / "one") < 5e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_run_section_of_skypilot_and_the_pods_of_a_trainjob_train_on_two_hosts(tmp_path):
    write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    words = ("--nodes", "2", "--num-processes", "1", "--train-only")
    given = settings(tmp_path, f"python: {sys.executable}\nkubernetes: {{form: trainjob}}\n")
    (task,) = documents(printed(tmp_path, "skypilot", *words, "--settings", given))
    port = str(free_port())
    run = task["run"].replace(":29500", f":{port}")
    hosts = [
        start("bash", "-c", run, SKYPILOT_NODE_RANK=str(node), SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.2")
        for node in (0, 1)
    ]
    _, job = documents(printed(tmp_path, "kubernetes", *words, "--settings", given))
    both_end_well(hosts)
    assert stage(tmp_path / "run", "train")["processes"] == 2
    command = job["spec"]["trainer"]["command"]
    command = [str(tmp_path / "recipe.yaml") if part == "/etc/luthier/recipe.yaml" else part for part in command]
    sets = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(free_port())}  # fmt: skip
    pods = [
        start(*expanded([*command, f"output_dir={tmp_path}/pods"], PET_NODE_RANK=str(node), **sets),
              PET_NODE_RANK=str(node), **sets)
        for node in (0, 1)
    ]  # fmt: skip
    both_end_well(pods)
    assert stage(tmp_path / "pods", "train")["processes"] == 2
    assert largest_difference(tmp_path / "run", tmp_path / "pods") == 0


def both_end_well(hosts: list[subprocess.Popen]) -> None:
    try:
        for host in hosts:
            _, err = host.communicate(timeout=200)
            assert host.returncode == 0, err
    finally:
        for host in hosts:
            kill_group(host)


def test_the_environment_of_these_tests_is_clean():
    assert "SLURM_JOB_ID" not in environment()


def test_what_is_offloaded_is_asked_for(folder):
    """The plan of 70B in full with everything offloaded has 1,864 GiB on a host; eight bases are less."""
    from luthier.launch.resources import GIB, resources_of_machine
    from luthier.launch.settings import LaunchSettings

    parts = {"processes": 24, "loading": 16, "states": 788, "weights": 263, "checkpoint": 788, "result": 5}
    plan = {
        "disk": {"base": 131 * GIB, "checkpoints": 0, "final": 131 * GIB, "merged": 0}, "num_gpus": 8,
        "memory": {"total": 75 * GIB, "device": 79 * GIB}, "setting": {"sharded": True, "words": "offloaded"},
        "time": {"steps": 3, "seconds_per_step": 1.0},
        "host": {"devices": 8, "parts": {name: size * GIB for name, size in parts.items()}},
    }  # fmt: skip
    resources, reasons = resources_of_machine(plan, LaunchSettings(), processes=8, gpus=True)
    assert resources.memory_bytes == (24 + 788 + 263 + 788 + 8) * GIB
    assert "the plan's 1863.0 GiB for 8 of its devices + 8 GiB" in reasons["memory"]
    half, _ = resources_of_machine(plan, LaunchSettings(), processes=4, gpus=True)
    assert half.memory_bytes == 1334 * GIB, "the checkpoint is whole on any host"
