"""Contract: online RL on two processes is that of one, asks each prompt once and pays a judge once.

One torchrun launch (gloo) runs all cases of `worker.py`; `luthier launch`: tests/launch/test_online.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RecipeError
from tests.endpoint.server import ScriptedServer, says
from tests.launch.support import ROOT, environment
from tests.online.support import metrics, train
from tests.online.worker import FORCED, forced, make_world, stopping

pytestmark = pytest.mark.slow  # `make test-processes`, which CI runs


def judge(body):
    """A score by the length of the answer."""
    shown = body["messages"][1]["content"].split("answer to score]\n")[1].rsplit("\n", 1)[0]
    return json.dumps({"score": len(shown) % 11})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(world of the two-process runs, what the judge was asked)."""
    folder = tmp_path_factory.mktemp("two")
    world = make_world(folder)
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.online.worker", str(folder),
    ]  # fmt: skip
    with ScriptedServer(always=says(judge)) as server:
        env = environment(JUDGE_URL=server.url, LUTHIER_CACHE=str(folder / "cache"))
        done = subprocess.run(launch, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return world, server.seen


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The forced cases in this process."""
    world = make_world(tmp_path_factory.mktemp("one"))
    torch.set_num_threads(1)
    for name, case in FORCED.items():
        with forced():
            train(case(world, world.folder / name, 1))
    return world


def facts(two, rank: int) -> dict:
    return json.loads((two[0].folder / f"facts-{rank}.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "final").glob("*.safetensors")))


def far(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and a
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def events(run: Path, kind: str) -> list[dict]:
    return [event for event in RunFolder(run).read_lines("events.jsonl") if event["event"] == kind]


def asked(world, rank: str) -> list[dict]:
    return [json.loads(line) for line in (world.folder / f"seen-{rank}.jsonl").read_text().splitlines()]


def test_there_really_are_two_processes_under_ddp(two):
    for rank in (0, 1):
        for name in FORCED:
            found = facts(two, rank)[name]
            assert (found["processes"], found["wrapper"]) == (2, "DistributedDataParallel")
            assert (found["result"]["processes"], found["result"]["wrapper"]) == (2, "DistributedDataParallel")
    (begun,) = events(two[0].folder / "full", "training_started")
    assert (begun["processes"], begun["strategy"], begun["device"]) == (2, "ddp", "cpu")


@pytest.mark.parametrize("name", list(FORCED))
def test_the_same_completions_give_the_trajectory_of_one_process(two, one, name):
    """Planted and seen to fail: steps with the prompts of one process; gradients that are not exchanged."""
    ours, theirs = metrics(two[0].folder / name), metrics(one.folder / name)
    assert len(ours) == len(theirs) and [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            assert value == pytest.approx(other[key], abs=5e-5, rel=5e-5), (line["step"], key)
    assert any(abs(line.get("loss", 0.0)) > 1e-3 for line in ours)
    start = load_file(one.folder / "model/model.safetensors") if name == "full" else None
    moved = weights(one.folder / name)
    assert max(float((moved[key] - (start[key] if start else 0)).abs().max()) for key in moved) > 3e-3
    assert far(two[0].folder / name, one.folder / name) < 5e-5


def test_each_process_asks_its_own_part_and_an_epoch_asks_each_prompt_once(two, one):
    held = {json.loads(line)["messages"][0]["content"] for line in (one.folder / "held.jsonl").read_text().splitlines()}
    parts = [[line for line in asked(two[0], rank) if not held & {*line["asked"]}] for rank in ("0", "1")]
    whole = [line for line in asked(one, "one") if not held & {*line["asked"]}]
    assert [len(part) for part in parts] == [6, 6] and len(whole) == 6
    for first, second, all_of_it in zip(*parts, whole, strict=True):
        assert first["step"] == second["step"] == all_of_it["step"]
        assert not {*first["asked"]} & {*second["asked"]}, "disjoint"
        assert first["asked"] + second["asked"] == all_of_it["asked"], "and in the order of one process"
    times = Counter(prompt for part in parts for line in part for prompt in line["asked"])
    assert len(times) == 24 and set(times.values()) == {8}


def test_held_out_prompts_are_answered_once_each(two):
    """5 prompts on 2 processes: the sixth place is filled up, and neither scored nor counted."""
    parts = [asked(two[0], rank) for rank in ("0", "1")]
    held = {
        json.loads(line)["messages"][0]["content"] for line in (two[0].folder / "held.jsonl").read_text().splitlines()
    }
    for step in (3, 6):
        found = [
            prompt for part in parts for line in part for prompt in line["asked"]
            if line["step"] == step and prompt in held
        ]  # fmt: skip
        assert sorted(found) == sorted(held)


def test_samples_show_a_group_of_each_process_whole_and_in_order(two):
    folder = two[0].folder
    for name, count in (("full", 2), ("torn", 1)):
        lines = RunFolder(folder / name).read_lines("samples.jsonl")
        steps = Counter(line["step"] for line in lines)
        assert set(steps.values()) == {count} and all(len(line["completions"]) == 8 for line in lines)
    first = [line["prompt"][-1]["content"] for line in RunFolder(folder / "full").read_lines("samples.jsonl")][:2]
    assert first == [asked(two[0], rank)[0]["asked"][0] for rank in ("0", "1")]


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_they_go_on_exactly(two):
    folder = two[0].folder
    for rank in (0, 1):
        assert facts(two, rank)["halved"]["result"] == {
            "code": "T480", "message": "stopped after step 3 of 6; its checkpoint is saved"
        }  # fmt: skip
        assert facts(two, rank)["resumed"]["result"]["resumed_from"] == 3
    kept = folder / "kept/checkpoints/checkpoint-3"
    names = {file.relative_to(kept).as_posix() for file in kept.rglob("*") if file.is_file()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "luthier.json"} <= names
    sealed = json.loads((kept / "luthier.json").read_text())
    assert set(sealed["files"]) | {"luthier.json"} == names and sealed["progress"]["processes"] == 2
    assert metrics(folder / "halved") == metrics(folder / "whole")
    assert far(folder / "halved", folder / "whole") == 0.0
    lines = [RunFolder(folder / name).read_lines("samples.jsonl") for name in ("halved", "whole")]
    assert lines[0] == lines[1] and len(lines[0]) == 12


def test_another_number_of_processes_goes_on_where_a_step_has_as_many_completions(two, tmp_path):
    world = two[0]
    shutil.copytree(world.folder / "kept", tmp_path / "run")
    smaller = stopping(world, tmp_path / "run", 2)
    with pytest.raises(RecipeError, match="completions_per_step: 32 -> 16") as caught:
        train(smaller)
    assert caught.value.problems[0].code == "T432"
    result = train(stopping(world, tmp_path / "run", 1)).stages["train"]
    assert (result["resumed_from"], result["processes"], result["steps"]) == (3, 1, 6)
    (told,) = events(tmp_path / "run", "resumed_on_other_processes")
    assert (told["step"], told["processes"]) == (3, [2, 1])
    assert metrics(tmp_path / "run")[:3] == metrics(world.folder / "whole")[:3]


def test_a_judge_is_asked_once_for_each_answer_of_all_processes_and_its_scores_reach_them(two):
    world, requests = two
    run = world.folder / "judged"
    line = [line for line in metrics(run) if "judge_cost_usd" in line][-1]
    texts = [body["body"]["messages"][1]["content"].split("]\n", 1)[1] for body in requests]
    assert len(texts) == len(set(texts)), "no answer is paid twice"
    assert 0 < len(requests) <= 1 + 2 * 16 + 5, "to try it, two steps, five held-out prompts"
    usage = facts(two, 0)["judged"]["result"]["judge"]
    assert usage["requests"] == len(requests) - 1 and line["judge_cost_usd"] <= usage["cost_usd"] <= 1.0
    for sample in RunFolder(run).read_lines("samples.jsonl"):
        for completion in sample["completions"]:
            assert completion["rewards"]["judge"] == pytest.approx(len(completion["text"]) % 11 / 10)
