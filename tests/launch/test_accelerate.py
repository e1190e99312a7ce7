"""Contract: configurations of accelerate start what they say, and (slow) real launches of every kind train alike."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.launch.accelerate import Asked, with_accelerate
from luthier.recipe.load import load_recipe, recipe_from_dict
from luthier.runtime.errors import RecipeError
from tests.launch.test_processes import start, write_recipe
from tests.recipe.accelerate.support import FSDP1, config

MACHINES = config("MULTI_GPU", "main_process_ip: 10.0.0.1\nmain_process_port: 29500\n", processes=16).replace(
    "num_machines: 1", "num_machines: 2"
).replace("machine_rank: 0", "machine_rank: 1")  # fmt: skip


@pytest.fixture
def asked_of(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    def ask(text: str, **words) -> Asked:
        (tmp_path / "accelerate.yaml").write_text(text)
        value = {
            "model": {"name_or_path": "some/model"}, "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
            "output_dir": str(tmp_path / "run"),
            "distributed": {"accelerate_config": str(tmp_path / "accelerate.yaml")},
        }  # fmt: skip
        return with_accelerate(recipe_from_dict(value, origin="test"), Asked(**words))

    return ask


def test_processes_and_machines_are_taken_where_the_command_line_does_not_say(asked_of):
    assert asked_of(config()) == Asked(num_gpus=2, nodes=1, node_rank=0)
    assert asked_of(config("MULTI_CPU", "")) == Asked(num_processes=2, nodes=1, node_rank=0)
    assert asked_of(config(), num_processes=2) == Asked(num_processes=2, nodes=1, node_rank=0)
    assert asked_of(config() + "gpu_ids: 1,2\n").visible_devices == "1,2"
    assert asked_of(config() + "gpu_ids: all\n").visible_devices is None
    assert asked_of(MACHINES) == Asked(num_gpus=8, nodes=2, node_rank=1, rendezvous="10.0.0.1:29500")


def test_each_machine_may_say_its_own_number(asked_of):
    assert asked_of(MACHINES, node_rank=0).node_rank == 0


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (config(), {"num_gpus": 4}, "`num_processes: 2`.*`--num-gpus 4`"),
        (config(), {"num_processes": 1}, "`num_processes: 2`.*`--num-processes 1`"),
        (config("MULTI_CPU", ""), {"num_gpus": 2}, "--num-gpus 2"),
        (MACHINES, {"nodes": 4}, "`num_machines: 2`.*`--nodes 4`"),
        (MACHINES, {"num_gpus": 16}, "`num_processes: 16`.*`--num-gpus 16` on each of 2 machines"),
        (MACHINES, {"rendezvous": "other:1"}, "10.0.0.1:29500"),
    ],
)
def test_a_contradiction_names_both(asked_of, text, words, said):
    with pytest.raises(RecipeError, match=said) as caught:
        asked_of(text, **words)
    (problem,) = caught.value.problems
    assert problem.code == "L185" and problem.line


def test_gpu_ids_beside_visible_devices(asked_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RecipeError, match="CUDA_VISIBLE_DEVICES=0"):
        asked_of(config() + "gpu_ids: 1,2\n")


# -- real processes

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "luthier", "train")
CPU = config("MULTI_CPU", "").replace("use_cpu: false", "use_cpu: true")


def launched_by_accelerate(recipe: Path, text: str, *words: str) -> subprocess.Popen:
    """As users do; with a file of FSDP or MULTI_GPU accelerate starts as many as it says, on CPUs, too."""
    return start(
        "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", file_of(recipe, text),
        "--main_process_port", "0", "-m", "luthier", "train", str(recipe), *words, "--json",
    )  # fmt: skip


def launched_by_us(recipe: Path, text: str, *words: str) -> subprocess.Popen:
    file = file_of(recipe, text)
    return start("-m", "luthier", "launch", str(recipe), *words, "--train-only", "--accelerate-config", file)


def file_of(recipe: Path, text: str) -> str:
    file = recipe.with_name(f"{abs(hash(text))}.yaml")
    file.write_text(text)
    return str(file)


def finished(process: subprocess.Popen, folder: Path) -> tuple[dict, str]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out[-2000:] + err[-4000:]
    return json.loads((folder / "stages/train.json").read_text())["result"], out + err


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "final/model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """The recipe, and beside it the folder `one`: the run of one process that takes the same steps."""
    recipe = write_recipe(tmp_path_factory.mktemp("accelerate"))
    one = recipe.with_name("one")
    finished(
        start("-m", "luthier", "train", str(recipe), f"output_dir={one}", "train.gradient_accumulation_steps=4"), one
    )
    return recipe


WAYS = {
    "torchrun fsdp2": lambda recipe, out: start(*TORCHRUN, str(recipe), out, "distributed.strategy=fsdp2"),
    "accelerate fsdp2": lambda recipe, out: launched_by_accelerate(recipe, config(), out),
    "accelerate fsdp1": lambda recipe, out: launched_by_accelerate(recipe, config(rest=FSDP1), out),
    "accelerate no_shard": lambda recipe, out: launched_by_accelerate(
        recipe, config(rest=FSDP1.replace("FULL_SHARD", "NO_SHARD")), out
    ),
    "accelerate multi": lambda recipe, out: launched_by_accelerate(
        recipe, config("MULTI_GPU", ""), out, "distributed.strategy=ddp"
    ),
    "launch fsdp2": lambda recipe, out: launched_by_us(recipe, config(), out, "--num-processes", "2"),
    "launch multi": lambda recipe, out: launched_by_us(recipe, CPU, out, "distributed.strategy=ddp"),
}
CHOSEN = {
    "accelerate fsdp2": "fsdp2",
    "accelerate fsdp1": "fsdp2",
    "accelerate no_shard": "ddp",
    "launch fsdp2": "fsdp2",
}
"""Where the strategy is a file's or the environment's, not the recipe's."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_start_two_processes_trains_the_same(shared, name):
    """Number of processes and class of the wrapper, which exit codes do not tell."""
    folder = shared.with_name(name.replace(" ", "_"))
    result, _ = finished(WAYS[name](shared, f"output_dir={folder}"), folder)
    wrapper = "Passes" if "fsdp" in name else "DistributedDataParallel"
    assert (result["processes"], result["wrapper"]) == (2, wrapper)
    assert float((weights(folder) - weights(shared.with_name("one"))).abs().max()) <= 5e-5
    recorded = json.loads((folder / "manifest.json").read_text())["configured"]["taken"]
    said = {one["key"]: one["value"] for one in recorded}
    assert said.get("distributed.strategy") == CHOSEN.get(name)
    if name == "launch fsdp2":
        again = load_recipe(folder / "resolved.yaml").recipe.distributed
        assert (again.strategy, again.accelerate_config) == ("fsdp2", None), "the file is not needed again"


@pytest.mark.slow
def test_the_environment_and_the_recipe_may_not_contradict_each_other(shared):
    folder = shared.with_name("contradiction")
    process = launched_by_accelerate(shared, config(), "distributed.strategy=ddp", f"output_dir={folder}")
    out, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "L184" in out + err and "FSDP_VERSION=2" in out + err
    assert not folder.exists(), "nothing is half-written"


MPIRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("mpirun (Open MPI) 4.1, stand-in"))
at = words.index("{python}")
size = words[words.index("-n") + 1]
ranks = [
    subprocess.Popen(words[at:], env={{
        **os.environ, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": size,
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": size,
    }})
    for rank in range(int(size))
]
sys.exit(max(rank.wait() for rank in ranks))
"""
"""Open MPI's launcher as far as accelerate uses it: there is none here."""


@pytest.mark.slow
def test_processes_of_mpirun_find_each_other(shared, monkeypatch):
    """`accelerate launch` of MULTI_CPU with mpirun_config: ranks are MPI's."""
    program = shared.with_name("bin") / "mpirun"
    program.parent.mkdir()
    program.write_text(MPIRUN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    folder = shared.with_name("mpi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = CPU + f"mpirun_config: {{mpirun_hostfile: hosts}}\nmain_process_port: {port}\n"
    process = start(
        "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", file_of(shared, text),
        "-m", "luthier", "train", str(shared), f"output_dir={folder}", "distributed.strategy=ddp",
    )  # fmt: skip
    result, _ = finished(process, folder)
    assert (result["processes"], result["wrapper"]) == (2, "DistributedDataParallel")
    assert float((weights(folder) - weights(shared.with_name("one"))).abs().max()) <= 5e-5


@pytest.mark.slow
def test_one_process_on_a_cpu_is_told(shared):
    folder = shared.with_name("alone")
    result, said = finished(launched_by_accelerate(shared, CPU, f"output_dir={folder}"), folder)
    assert result["processes"] == 1 and "one process, started by `accelerate launch`" in said
