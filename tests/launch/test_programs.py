"""Contract: launchers against stand-in programs that keep what they were called with."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from luthier.launch.choose import launcher_of
from luthier.launch.kubernetes import kube_name
from luthier.launch.local import Local
from luthier.launch.settings import LaunchSettings, launch_settings
from luthier.launch.task import Resources, Task
from luthier.runtime.env import child_environment
from luthier.runtime.errors import EnvironmentProblem

STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
name = pathlib.Path(__file__).name
with (here / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
answers = json.loads((here / "answers.json").read_text())
for start, code, out, err in answers.get(name, []):
    if all(part in sys.argv for part in start):
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""


class Programs:
    """Stand-ins for a cluster's programs, first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "sacct", "scancel", "kubectl", "sky"):
            (folder / name).write_text(STAND_IN.format(python=sys.executable))
            (folder / name).chmod(0o755)
        self.answer()

    def answer(self, **answers) -> None:
        """For each program: [arguments that must be there, exit code, stdout, stderr]."""
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Programs(folder)


def _task(folder, command=("true",), **changes):
    return Task(**{
        "name": "ftjob-1", "command": tuple(command), "folder": folder, "out": folder / "out", "err": folder / "err",
        "exit_file": folder / "exit", "environment": child_environment(), "resources": Resources(gpus=0), **changes,
    })  # fmt: skip


def _ended(launcher, handle):
    deadline = time.monotonic() + 60
    while (status := launcher.status(handle)).phase != "ended":
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def test_slurm_submits_asks_and_ends(programs, tmp_path):
    slurm = launcher_of(launch_settings({"kind": "slurm", "gpus": 0}))
    programs.answer(sbatch=[[[], 0, "4711;cluster\n", ""]], squeue=[[[], 0, "PENDING\n", ""]])
    task = _task(tmp_path)
    assert slurm.submit(task) == "4711"
    assert programs.calls() == [["sbatch", "--parsable", str(tmp_path / "ftjob-1.sbatch")]]
    assert (tmp_path / "ftjob-1.sbatch").read_text().startswith("#!/bin/bash\n#SBATCH ")
    assert slurm.status("4711").phase == "waiting"
    programs.answer(squeue=[[[], 0, "RUNNING\n", ""]])
    assert slurm.status("4711").phase == "running"
    slurm.stop("4711", hard=False)
    slurm.stop("4711", hard=True)
    assert [call for call in programs.calls() if call[0] == "scancel"] == [
        ["scancel", "--batch", "--signal=TERM", "4711"], ["scancel", "--state=PENDING", "4711"], ["scancel", "4711"],
    ]  # fmt: skip


@pytest.mark.parametrize(("record", "left", "code"), [
    ("COMPLETED|0:0", None, 0), ("FAILED|2:0", None, 2), ("FAILED|130:0", None, 130),
    ("OUT_OF_MEMORY|0:125", None, -125),
    ("CANCELLED by 1000|0:0", None, -9), ("TIMEOUT|0:0", None, -9), ("NODE_FAIL|0:0", None, -9),
    ("PREEMPTED|0:15", None, -15), ("", "3", 3), ("COMPLETED|0:0", "0", 0), ("CANCELLED|0:0", "130", 130),
])  # fmt: skip
def test_the_end_of_a_job_of_slurm(programs, tmp_path, record, left, code):
    slurm = launcher_of(launch_settings({"kind": "slurm"}))
    programs.answer(
        sbatch=[[[], 0, "7\n", ""]], squeue=[[[], 1, "", "slurm_load_jobs error: Invalid job id specified\n"]],
        sacct=[[[], 0, record + "\n", ""]],
    )  # fmt: skip
    handle = slurm.submit(_task(tmp_path))
    if left is not None:
        (tmp_path / "exit").write_text(left + "\n")
    status = slurm.status(handle)
    assert (status.phase, status.exit_code) == ("ended", code)


def test_a_requeued_job_is_running_and_one_nobody_knows_is_unknown(programs):
    slurm = launcher_of(launch_settings({"kind": "slurm"}))
    programs.answer(squeue=[[[], 1, "", ""]], sacct=[[[], 0, "REQUEUED|0:0\n", ""]])
    assert slurm.status("7").phase == "running"
    programs.answer(squeue=[[[], 1, "", ""]], sacct=[[[], 1, "", "no accounting"]])
    assert slurm.status("7").phase == "unknown"


def test_a_job_is_found_by_its_name_so_it_is_not_submitted_twice(programs, tmp_path):
    slurm = launcher_of(launch_settings({"kind": "slurm"}))
    programs.answer(squeue=[[["--name=ftjob-1"], 0, "  88\n", ""]])
    assert slurm.find(_task(tmp_path)) == "88"
    programs.answer(squeue=[[[], 0, "", ""]])
    assert slurm.find(_task(tmp_path)) is None


def test_a_refusal_is_one_clear_error(programs, tmp_path, monkeypatch):
    slurm = launcher_of(launch_settings({"kind": "slurm"}))
    programs.answer(sbatch=[[[], 1, "", "sbatch: error: invalid partition specified: gpu\n"]])
    with pytest.raises(EnvironmentProblem, match="invalid partition") as caught:
        slurm.submit(_task(tmp_path))
    assert caught.value.problems[0].code == "L162"
    programs.answer(sbatch=[[[], 0, "Submitted\n", ""]])
    with pytest.raises(EnvironmentProblem, match="no job number"):
        slurm.submit(_task(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="`sbatch` is not installed") as caught:
        slurm.submit(_task(tmp_path))
    assert caught.value.problems[0].code == "L160"
    with pytest.raises(EnvironmentProblem, match="no job number"):
        slurm.stop("7; touch x", hard=True)


def _job(**status):
    return json.dumps({"kind": "Job", "status": status})


def test_kubernetes_applies_one_object_and_reads_its_end(programs, tmp_path):
    kube = launcher_of(launch_settings({"kind": "kubernetes", "kubernetes": {"namespace": "tuning"}}))
    task, name = _task(tmp_path), kube_name("ftjob-1")
    assert kube.find(task) is None
    handle = kube.submit(task)
    assert handle == name
    assert programs.calls()[-1] == ["kubectl", "--namespace", "tuning", "apply", "-f", str(tmp_path / f"{name}.yaml")]
    programs.answer(kubectl=[[["get"], 0, _job(active=1), ""]])
    assert kube.status(handle).phase == "running" and kube.find(task) == name
    programs.answer(kubectl=[[["get"], 0, _job(conditions=[{"type": "Complete", "status": "True"}]), ""]])
    assert kube.status(handle).exit_code == 0
    pods = {"items": [
        {"metadata": {"creationTimestamp": stamp},
         "status": {"containerStatuses": [{"state": {"terminated": {"exitCode": code}}}]}}
        for stamp, code in (("2026-01-02", 3), ("2026-01-01", 137))
    ]}  # fmt: skip
    failed = _job(conditions=[{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}])
    programs.answer(kubectl=[[["pods"], 0, json.dumps(pods), ""], [["get"], 0, failed, ""]])
    assert kube.status(handle).exit_code == 3
    kube.stop(handle, hard=False)
    assert programs.calls()[-1][3:6] == ["delete", "job", name]


def test_what_ended_is_removed_before_it_is_applied_again(programs, tmp_path):
    kube = launcher_of(launch_settings({"kind": "kubernetes"}))
    programs.answer(kubectl=[[["get"], 0, _job(conditions=[{"type": "Complete", "status": "True"}]), ""]])
    kube.submit(_task(tmp_path))
    verbs = [call[3] for call in programs.calls()]
    assert verbs == ["get", "delete", "delete", "apply"]


def test_skypilot_launches_and_reads_the_exit_code(programs, tmp_path):
    sky = launcher_of(launch_settings({"kind": "skypilot"}))
    task = _task(tmp_path, secrets=("HF_TOKEN",))
    assert sky.find(task) is None
    handle = sky.submit(task)
    assert programs.calls()[0][1:8] == ["jobs", "launch", "--yes", "--detach-run", "--name", "ftjob-1", "--secret"]
    assert sky.status(handle).phase == "running"
    assert launcher_of(launch_settings({"kind": "skypilot"})).find(task) == "ftjob-1"
    (tmp_path / "exit").write_text("5\n")
    assert sky.status(handle).exit_code == 5
    assert sky.find(task) is None


def test_a_local_task_gives_its_code_and_output(tmp_path):
    local = launcher_of(LaunchSettings())
    handle = local.submit(_task(tmp_path, [sys.executable, "-c", "import sys; print('hi'); sys.exit(7)"]))
    assert _ended(local, handle).exit_code == 7
    assert (tmp_path / "out").read_text() == "hi\n"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_local_task_is_asked_and_then_killed_with_all_it_started(tmp_path):
    local = Local()
    script = "import signal, subprocess, time; signal.signal(15, lambda *_: open('asked', 'w')); " \
             "child = subprocess.Popen(['sleep', '60']); open('pid', 'w').write(str(child.pid)); print(flush=True)\n" \
             "while True: time.sleep(0.05)"  # fmt: skip
    handle = local.submit(_task(tmp_path, [sys.executable, "-c", script]))
    _wait_for(lambda: (tmp_path / "out").is_file() and (tmp_path / "out").read_text())
    local.stop(handle, hard=False)
    _wait_for(lambda: (tmp_path / "asked").exists())
    assert local.status(handle).phase == "running"
    local.stop(handle, hard=True)
    assert _ended(local, handle).exit_code == -signal.SIGKILL
    _wait_for(lambda: not _alive(int((tmp_path / "pid").read_text())))


COUNTS = """
import os, signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
from luthier.launch.here import PARENT, stop_when_orphaned
if sys.argv[1:] == ["late"]:
    while os.getppid() == int(os.environ[PARENT]):
        time.sleep(0.02)
stop_when_orphaned()
print(PARENT in os.environ, flush=True)
while not seen:
    time.sleep(0.02)
time.sleep(0.3)
print(len(seen), flush=True)
"""


@pytest.mark.parametrize("when", ["in time", "late"])
def test_a_local_task_is_asked_once_when_its_parent_is_killed(tmp_path, when):
    """A parent of many threads, of which the one that started the task has ended; also one that is gone before."""
    script = (
        "import sys, pathlib, threading, time\n"
        "from luthier.launch.local import Local\nfrom luthier.launch.task import Task\n"
        "from luthier.runtime.env import child_environment\n"
        "f = pathlib.Path(sys.argv[1])\n"
        "for _ in range(8): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "t = Task(name='x', command=(sys.executable, '-c', sys.argv[2], *sys.argv[3:]), folder=f, out=f / 'out',\n"
        "         err=f / 'err', exit_file=f / 'exit', environment=child_environment())\n"
        "start = lambda: (f / 'pid').write_text(Local().submit(t))\n"
        "one = threading.Thread(target=start); one.start(); one.join()\ntime.sleep(60)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path), COUNTS, *(["late"] if when == "late" else [])]
    parent = os.posix_spawn(sys.executable, words, os.environ)
    _wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 30)
    pid = int((tmp_path / "pid").read_text())
    if when == "in time":
        _wait_for(lambda: (tmp_path / "out").is_file() and (tmp_path / "out").read_text() == "False\n", 30)
    assert _alive(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _wait_for(lambda: not _alive(pid), 30)
    assert (tmp_path / "out").read_text() == "False\n1\n"


def test_secrets_are_taken_out_of_a_childs_environment(monkeypatch):
    for name, value in {"HF_TOKEN": "hf_x", "MY_API_KEY": "abc", "DATABASE_URL": "postgres://u:p@host/db",
                        "LUTHIER_ADMIN_KEY": "zzz", "SOME_PATH": "/tmp"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    kept = child_environment(keep=("HF_TOKEN",))
    assert kept["HF_TOKEN"] == "hf_x" and kept["SOME_PATH"] == "/tmp"
    assert not {"MY_API_KEY", "DATABASE_URL", "LUTHIER_ADMIN_KEY"} & set(kept)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
