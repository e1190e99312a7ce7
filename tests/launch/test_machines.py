"""Contract (slow): machines made of network namespaces train as one process does, and a lost one ends all by name.

Each "machine" is a network namespace with a host name of its own, joined to the other by a veth pair. Needs root.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.support import (
    environment,
    kill_group,
    largest_change,
    largest_difference,
    one_process,
    stage,
    start,
    wait_until,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = "train.num_train_epochs=4000"


class Machines:
    """Two network namespaces with a cable between them."""

    def __init__(self, tag: str) -> None:
        self.names = (f"{tag}a", f"{tag}b")
        self.links = (f"{tag}va", f"{tag}vb")
        self.started: list[subprocess.Popen] = []

    def __enter__(self) -> Machines:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer", "name", self.links[1],
           "netns", self.names[1])  # fmt: skip
        for number, (name, link) in enumerate(zip(self.names, self.links, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.77.7.{number}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            kill_group(process)
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)

    def command(self, rank: int, *words: str) -> list[str]:
        """As if typed on machine `rank`."""
        inside = f'hostname node{rank}; exec "$@"'
        return ["ip", "netns", "exec", self.names[rank], "unshare", "-u", "sh", "-c", inside, "sh", *words]

    def launch(self, rank: int, recipe: Path, *words: str, **more: str) -> subprocess.Popen:
        """`luthier launch` on machine `rank`."""
        process = start(*self.command(
            rank, sys.executable, "-m", "luthier", "launch", str(recipe), "--num-processes", "1", "--nodes", "2",
            "--node-rank", str(rank), "--rendezvous", "10.77.7.1:29500", *words,
        ), **more)  # fmt: skip
        self.started.append(process)
        return process

    def both(self, recipe: Path, *words: str, unshared: Path | None = None, **more: str) -> list[subprocess.Popen]:
        """On both; with `unshared` each has a run folder and a cache of its own below it."""
        places: list[tuple[list[str], dict[str, str]]] = [([], {}), ([], {})]
        if unshared is not None:
            places = [([f"output_dir={unshared}/run{rank}"], {"LUTHIER_CACHE": f"{unshared}/cache{rank}"})
                      for rank in (0, 1)]  # fmt: skip
        return [self.launch(rank, recipe, *words, *place, **env, **more) for rank, (place, env) in enumerate(places)]

    def cut(self) -> None:
        """Pull the cable."""
        ip("-n", self.names[1], "link", "set", self.links[1], "down")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[Machines]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Machines(f"lu{os.getpid() % 100000}")
    try:
        made.__enter__()
        yield made
    finally:
        made.__exit__()


def outcome(processes: list[subprocess.Popen], seconds: float = 240) -> list[tuple[int, str]]:
    """(exit code, stderr) of each."""
    return [((err := process.communicate(timeout=seconds)[1]), (process.returncode, err))[1] for process in processes]


def last_error(err: str) -> str:
    assert "error[" in err, err
    return err[err.rindex("error[") :]


def steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_two_machines_are_one_run(machines, tmp_path):
    """A shared run folder; copies of the model."""
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    (zero, one) = outcome(machines.both(recipe, "--train-only"))
    assert zero[0] == 0 and one[0] == 0, zero[1] + one[1]
    run = tmp_path / "run"
    assert stage(run, "train")["processes"] == 2
    beats = [json.loads((run / f"processes/rank-{rank}.json").read_text())["host"] for rank in (0, 1)]
    assert beats == ["node0", "node1"] and socket.gethostname() not in beats
    for (_, err), link, other in ((zero, machines.links[0], "node1"), (one, machines.links[1], "node0")):
        assert f"network: {link} (10.77.7." in err and f"({other}) is reached" in err
        assert "run folder: shared" in err
    assert "2 processes on cpu: a copy of the model each (DDP)" in zero[1]
    assert "train: tune" not in one[1], "process 0 tells, the others do not"
    one_process(recipe, tmp_path / "one")
    assert largest_change(tmp_path / "tiny", run) > 1e-3
    assert largest_difference(run, tmp_path / "one") < 5e-5


def test_machines_that_share_no_files_are_stopped_together_and_go_on(machines, tmp_path):
    """SIGTERM to one, as a preemption does; FSDP2, so each machine has a part of every checkpoint."""
    task = f"{{name: t, path: {tmp_path}/rows.jsonl, metric: exact, max_new_tokens: 4, limit: 3}}"
    more = f"distributed: {{strategy: fsdp2}}\nevaluate: {{tasks: [{task}]}}\n"
    recipe = write_recipe(tmp_path, more=more)
    words = ("train.num_train_epochs=20", "train.learning_rate=2.0e-4", "train.save_steps=10")
    run = tmp_path / "run0"
    hosts = machines.both(recipe, *words, unshared=tmp_path)
    wait_until(lambda: steps(run) >= 2, 200, "the second step")
    hosts[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    (zero, one) = outcome(hosts)
    assert time.monotonic() - began < 60
    assert (zero[0], one[0]) == (130, 130), zero[1] + one[1]
    for _, err in (zero, one):
        assert "machine 1 (node1) got SIGTERM" in last_error(err)
        assert "run folder: not shared, cache: not shared" in err
    saved = sorted((run / "checkpoints").glob("step-*"))
    assert saved, "both saved together"
    assert len(list(saved[-1].glob("shard-*.safetensors"))) == 2, "the part of machine 1 is there"
    assert not list((tmp_path / "run1/checkpoints").glob("*")), "one place only"
    (zero, one) = outcome(machines.both(recipe, *words, unshared=tmp_path))
    assert (zero[0], one[0]) == (0, 0), zero[1] + one[1]
    assert f"going on from the checkpoint of step {saved[-1].name.removeprefix('step-')}" in zero[1]
    assert stage(run, "evaluate")["tasks"][0]["n"] == 3
    one_process(recipe_with(recipe, words, tmp_path), tmp_path / "one")
    assert largest_change(tmp_path / "tiny", run) > 1e-3
    assert largest_difference(run, tmp_path / "one") < 5e-5


def recipe_with(recipe: Path, words: tuple[str, ...], folder: Path) -> Path:
    """The recipe with its overrides inside."""
    from luthier.recipe.load import dump_yaml, load_recipe

    file = folder / "whole.yaml"
    loaded = load_recipe(recipe, list(words)).recipe
    file.write_text(dump_yaml(loaded.model_dump(mode="json", exclude_unset=True)))
    return file


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_a_lost_machine_ends_all_within_a_minute_by_its_name(machines, tmp_path, how):
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    run = tmp_path / "run0"
    hosts = machines.both(recipe, LONG, "--train-only", unshared=tmp_path)
    wait_until(lambda: steps(run) >= 2, 200, "the second step")
    began = time.monotonic()
    if how == "killed":
        hosts[1].kill()
        (zero,) = outcome(hosts[:1])
    else:
        machines.cut()
        (zero, one) = outcome(hosts)
        assert one[0] == 7, one[1]
        assert "machine 0 (node0) is lost" in last_error(one[1])
    assert time.monotonic() - began < 60, "within a minute"
    assert zero[0] == 7, zero[1]
    assert "machine 1 (node1) is lost: it has not answered for" in last_error(zero[1])
    if how == "killed":
        assert "the checkpoint of step" in last_error(zero[1]), "its processes saved with the others"
        assert list((run / "checkpoints").glob("step-*"))
    for name in machines.names:
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
        assert not pids.stdout.split(), f"{name} still has processes"


def test_all_start_again_after_a_process_was_killed(machines, tmp_path):
    """--max-restarts: the second attempt goes on from a checkpoint."""
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    words = ("train.num_train_epochs=20", "train.learning_rate=2.0e-4", "train.save_steps=2")
    run = tmp_path / "run0"
    hosts = machines.both(recipe, *words, "--train-only", "--max-restarts", "1", unshared=tmp_path)
    wait_until(lambda: steps(run) >= 4, 200, "the fourth step")
    beat = json.loads((tmp_path / "run1/processes/rank-1.json").read_text())
    assert beat["host"] == "node1"
    os.kill(beat["pid"], signal.SIGKILL)
    (zero, one) = outcome(hosts)
    assert (zero[0], one[0]) == (0, 0), zero[1] + one[1]
    told = f"machine 1 (node1): process 1 (pid {beat['pid']}) was ended by SIGKILL"
    for _, err in (zero, one):
        assert "restart 1 of 1, from the newest checkpoint" in err and told in err
    assert "going on from the checkpoint of step" in zero[1]
    one_process(recipe_with(recipe, words, tmp_path), tmp_path / "one")
    assert largest_difference(run, tmp_path / "one") < 5e-5


def test_a_process_that_hangs_on_another_machine_is_named(machines, tmp_path):
    """Its heartbeat stands still; no file of it is on machine 0 but for the launchers."""
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    hosts = machines.both(recipe, LONG, "--train-only", unshared=tmp_path, LUTHIER_HANG_SECONDS="8")
    wait_until(lambda: steps(tmp_path / "run0") >= 2, 200, "the second step")
    beat = json.loads((tmp_path / "run1/processes/rank-1.json").read_text())
    os.kill(beat["pid"], signal.SIGSTOP)
    (zero, one) = outcome(hosts)
    for code, err in (zero, one):
        assert code == 1, err
        assert (
            f"L142]  machine 0 (node0): process 0: the run hangs: process 1 (node1, pid {beat['pid']})"
            in last_error(err)
        )


def test_hosts_are_started_through_ssh(machines, tmp_path):
    """An `ssh` that goes into a namespace; the one who asked is on neither machine."""
    recipe = write_recipe(tmp_path, more="distributed: {strategy: ddp}\n")
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "ssh").write_text(
        '#!/bin/bash\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done\n'
        f"case $1 in 10.77.7.1) name={machines.names[0]};; *) name={machines.names[1]};; esac\n"
        'exec ip netns exec $name unshare -u sh -c "hostname on$1; exec bash -s"\n'
    )
    (fake / "ssh").chmod(0o755)
    ours = start(
        sys.executable, "-m", "luthier", "launch", str(recipe), "--hosts", "10.77.7.1,10.77.7.2", "--num-processes",
        "1", "--train-only", "--json", PATH=f"{fake}:{os.environ['PATH']}",
    )  # fmt: skip
    machines.started.append(ours)
    out, err = ours.communicate(timeout=240)
    assert ours.returncode == 0, err
    # DeepSpeed, where it is installed, says on stdout that it finds no GPU.
    assert json.loads(out[out.index("{\n") :])["stages"]["train"]["processes"] == 2
    assert "10.77.7.1 | 2 machines, processes on each: on10.77.7.1: 1, on10.77.7.2: 1" in err
    assert "10.77.7.2 |   network: " in err


def test_machines_with_different_rows_do_not_start(machines, tmp_path):
    recipe = write_recipe(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (other / "rows.jsonl").write_text("\n".join([*rows[:-1], rows[0]]) + "\n")
    hosts = [
        machines.launch(0, recipe, "--train-only", f"output_dir={tmp_path}/run0", LUTHIER_CACHE=f"{tmp_path}/cache0"),
        # The same path, other rows: a mount namespace.
        machines.started.append(mounted := start(*machines.command(
            1, "unshare", "-m", "sh", "-c", f'mount --bind {other}/rows.jsonl {tmp_path}/rows.jsonl && exec "$@"', "sh",
            sys.executable, "-m", "luthier", "launch", str(recipe), "--num-processes", "1", "--nodes", "2",
            "--node-rank", "1", "--rendezvous", "10.77.7.1:29500", "--train-only", f"output_dir={tmp_path}/run1",
        ), **{"LUTHIER_CACHE": f"{tmp_path}/cache1"})) or mounted,
    ]  # fmt: skip
    for code, err in outcome(hosts):
        assert code == 4, err
        told = last_error(err)
        assert "L215" in told and "the prepared data differ between machines: machine 0 (node0) " in told
        assert "machine 1 (node1) " in told
    assert environment()
