"""Contract: `luthier eval` on several processes gives what one process gives; (slow) on real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from luthier.cli.on_processes import on_processes
from luthier.evaluate.harness.shared import Computing
from luthier.runtime.errors import RecipeError, RunFailed
from tests.endpoint.server import ScriptedServer, says
from tests.launch.support import ended, kill_group, start, wait_until
from tests.support.exchange import together
from tests.support.tiny import conversations, save_tiny


@pytest.mark.parametrize("size", [2, 3])
def test_what_the_harness_asks_for_is_computed_once_each_and_scored_by_process_0(size, monkeypatch):
    done: list[tuple[str, int]] = []

    def generate(model, tokenizer, prompts, *, max_new_tokens, **_):
        done.extend((model, prompt[0]) for prompt in prompts)
        return [f"{prompt[0]} in {max_new_tokens}" for prompt in prompts]

    def likelihoods(model, pairs, **_):
        return [(float(context[0]), bool(continuation)) for context, continuation in pairs]

    monkeypatch.setattr("luthier.evaluate.harness.shared.generate", generate)
    monkeypatch.setattr("luthier.evaluate.harness.shared.log_likelihoods", likelihoods)
    monkeypatch.setattr("luthier.evaluate.harness.shared.token_capacity", lambda model: None)

    def action(spread):
        computing = Computing(
            f"of {spread.rank}", None, stop_ids=[1], batch_size=4, label="sums", spread=spread,
        )  # fmt: skip
        if not spread.is_main:
            return computing.help()
        found = [
            computing.answers([[row] for row in range(13)], 6), computing.answers([[99]], 7),
            computing.likelihoods([([row], [1]) for row in range(5)]),
        ]  # fmt: skip
        computing.done()
        return found

    answers, one, pairs = together(size, action)[0]
    assert answers == [f"{row} in 6" for row in range(13)] and one == ["99 in 7"]
    assert pairs == [(float(row), True) for row in range(5)]
    assert sorted(row for _, row in done) == [*range(13), 99], "each once"
    assert {model for model, _ in done} == {f"of {rank}" for rank in range(size)}


@pytest.mark.parametrize("wrong", [lambda rows: rows[1:], lambda rows: [*rows, rows[0]]], ids=["lost", "twice"])
def test_a_row_that_is_lost_or_answered_twice_ends_the_run(wrong):
    def action(spread):
        with pytest.raises(RunFailed, match=r"process 1 gave \d results for 6 rows"):
            spread.map("task", list(range(13)), lambda rows: wrong(rows) if spread.rank else rows)

    together(2, action)


def test_processes_that_read_other_rows_are_not_put_together():
    def action(spread):
        with pytest.raises(RunFailed, match="process 1 has other rows than process 0"):
            spread.map("task", [1, 2], lambda rows: rows, digest="ab"[spread.rank])

    together(2, action)


def test_what_processes_cannot_be_used_for_is_refused(monkeypatch):
    def never(group):
        raise AssertionError

    with pytest.raises(RecipeError, match="all models are behind endpoints"):
        on_processes(never, num_gpus=None, num_processes=2, local=False)
    with pytest.raises(RecipeError, match="exclude each other"):
        on_processes(never, num_gpus=1, num_processes=2, local=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="inside a launcher of 2 processes"):
        on_processes(never, num_gpus=None, num_processes=2, local=True)
    with pytest.raises(RecipeError, match="all models are behind endpoints"):
        on_processes(never, num_gpus=None, num_processes=None, local=False)


def test_one_process_needs_no_launcher():
    sizes = []
    on_processes(lambda group: sizes.append(group.size), num_gpus=None, num_processes=1, local=True)
    on_processes(lambda group: sizes.append(group.size), num_gpus=None, num_processes=None, local=False)
    assert sizes == [1, 1]


# -- real processes

LUTHIER = (sys.executable, "-m", "luthier", "eval")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *LUTHIER[2:])
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
    *LUTHIER[2:],
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A recipe with 13 rows, answered and measured, and two tasks of the harness; beside it the scores of one process.

    The second model has other weights, so that something differs.
    """
    pytest.importorskip("lm_eval")
    from tests.evaluate.harness.support import choice_task, sums_task

    folder = tmp_path_factory.mktemp("scoring")
    save_tiny(folder / "tiny")
    save_tiny(folder / "other", seed=5)
    rows = [{"messages": row["messages"]} for row in conversations(13, seed=7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder}/tiny, dtype: float32}}
data: {{train: [{{path: {folder}/rows.jsonl}}], max_length: 128}}
output_dir: {folder}/run
evaluate:
  compare_with_base: false
  tasks:
    - {{name: words, path: {folder}/rows.jsonl, metric: exact, max_new_tokens: 8}}
    - {{name: held-out, path: {folder}/rows.jsonl, metric: loss}}
    - {{lm_eval: {sums_task(folder, rows=13)}, max_new_tokens: 6}}
    - {{lm_eval: {choice_task(folder)}}}
"""
    )
    scored(folder, LUTHIER, "one.json")
    return folder


def settings(folder: Path) -> dict[str, str]:
    return {
        "LUTHIER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TMPDIR": str(folder),
    }  # fmt: skip


def evaluating(folder: Path, command: tuple[str, ...], *words: str):
    return start(*command, str(folder / "recipe.yaml"), "--base", "--model", str(folder / "other"), *words,
                 **settings(folder))  # fmt: skip


def scored(folder: Path, command: tuple[str, ...], name: str, *words: str) -> str:
    """What the command said; its scores are in the file `name`, and nothing else on stdout."""
    process = evaluating(folder, command, *words, "--json", "--out", str(folder / name))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert json.loads(out) == json.loads((folder / name).read_text())
    return err


def leaves(value, path=""):
    """(where, value) of everything but times."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("seconds", "tokens_per_second"):
                yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path, value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "shares"),
    [
        (LUTHIER, ("--num-processes", "2"), (7, 6)),
        (LUTHIER, ("--num-processes", "3"), (5, 4, 4)),
        (TORCHRUN, (), (7, 6)),
        (ACCELERATE, (), (7, 6)),
    ],
    ids=["two", "three", "torchrun", "accelerate"],
)
def test_scores_are_those_of_one_process(world, command, words, shares):
    err = scored(world, command, "several.json", *words)
    assert f"{len(shares)} processes share the rows" in err
    dealt = f"{', '.join(map(str, shares))} by process"
    for what in ("answers to words", "losses of held-out", "sums, batch 1: answers"):
        assert err.count(f"{what}: {dealt}") == 2, "once a model"
    assert err.count("pick, batch 1: log-likelihoods") == 2
    one, several = (json.loads((world / name).read_text()) for name in ("one.json", "several.json"))
    assert [len(task["rows"]) for task in several["models"][0]["tasks"]] == [13, 13, 13, 13, 6]
    mine, theirs = dict(leaves(several)), dict(leaves(one))
    assert mine.keys() == theirs.keys()
    for place, value in theirs.items():
        if isinstance(value, float):  # batches are others: sums round otherwise
            assert mine[place] == pytest.approx(value, abs=2e-6), place
        else:
            assert mine[place] == value, place
    losses = [model["tasks"][1]["score"] for model in several["models"]]
    assert abs(losses[0] - losses[1]) > 1e-3, "two models"
    assert not [*world.glob("luthier-processes-*")], "nothing is left"


@pytest.mark.slow
def test_the_last_thing_printed_is_the_error_of_the_process_that_failed(world):
    """A task whose code fails in process 1 alone; process 0 would wait for it for ever."""
    (world / "broken.py").write_text(
        "import os\n\ndef docs(rows):\n    assert os.environ.get('RANK') != '1', 'planted'\n    return rows\n"
    )
    text = (world / "sums.yaml").read_text().replace("task: sums", "task: broken\nprocess_docs: !function broken.docs")
    (world / "broken.yaml").write_text(text)
    tasks = f"evaluate.tasks=[{{lm_eval: {world}/broken.yaml}}]"
    process = evaluating(world, LUTHIER, tasks, "--num-processes", "2")
    out, err = process.communicate(timeout=200)
    last = err[err.rindex("error[") :]
    assert process.returncode not in (0, None) and not out
    assert "process 1: " in last and "planted" in last


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_process_that_is_lost_is_named(world, how, tmp_path):
    place = {"TMPDIR": str(tmp_path), "LUTHIER_HANG_SECONDS": "8"}
    process = start(
        *LUTHIER, str(world / "recipe.yaml"), "--num-processes", "2", **{**settings(world), **place},
    )  # fmt: skip
    try:
        wait_until(lambda: [*tmp_path.glob("luthier-processes-*/processes/rank-1.json")], what="process 1")
        (beat,) = tmp_path.glob("luthier-processes-*/processes/rank-1.json")
        pid = json.loads(beat.read_text())["pid"]
        os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        err = process.communicate(timeout=120)[1]
    finally:
        kill_group(process)
    last = err[err.rindex("error[") :]
    assert process.returncode == 1
    said = "was ended by SIGKILL in `" if how == "kill" else "has not answered for"
    assert f"pid {pid})" in last and "process 1 (" in last and said in last and "checkpoint" not in last


@pytest.mark.slow
def test_prompts_are_compared_as_by_one_process(world):
    """`--baseline`, whose sets of prompts share each loaded model."""
    (world / "shots.jsonl").write_text(
        "".join(json.dumps({"messages": row["messages"]}) + "\n" for row in conversations(4, seed=99))
    )
    tasks = f"evaluate.tasks=[{{name: words, path: {world}/rows.jsonl, metric: exact, max_new_tokens: 4}}]"
    words = (tasks, "--baseline", "--shots", "1", "--shots-from", str(world / "shots.jsonl"))
    found = []
    for name, more in (("b1.json", ()), ("b3.json", ("--num-processes", "3"))):
        ended(evaluating(world, LUTHIER, *words, *more, "--out", str(world / name)))
        found.append(list(leaves(json.loads((world / name).read_text()))))
    assert found[0] == found[1]
    assert len(json.loads((world / "b3.json").read_text())["models"]) == 4


@pytest.mark.slow
def test_a_judge_is_asked_once_whatever_the_number_of_processes(world, tmp_path):
    asked, verdicts = [], []
    for size in (1, 2):
        with ScriptedServer(always=says('{"winner": "A"}')) as server:
            words = (
                f"evaluate.tasks=[{{name: words, path: {world}/rows.jsonl, metric: exact, max_new_tokens: 4}}]",
                f"evaluate.judge={{base_url: '{server.url}', model: j, compare: [pairwise], rubric: Be right.}}",
                "evaluate.compare_with_base=true",
                "--judge", "--num-processes", str(size), "--json",
            )  # fmt: skip
            process = start(
                *LUTHIER, str(world / "recipe.yaml"), "--base", "--model", str(world / "other"), *words,
                **{**settings(world), "LUTHIER_CACHE": str(tmp_path / f"cache{size}")},
            )  # fmt: skip
            out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
        asked.append(sorted(json.dumps(one["body"], sort_keys=True) for one in server.seen))
        verdicts.append(list(leaves(json.loads(out)["judged"][0]["tasks"])))
    assert len(asked[0]) == 26, "13 rows in both orders"
    assert asked[0] == asked[1] and verdicts[0] == verdicts[1]


@pytest.mark.slow
def test_a_launched_run_shares_tasks_of_the_harness(world):
    words = ("evaluate.compare_with_base=true", "method.name=full", "train.max_steps=1", "export.merge=false")
    err = ended(start(
        sys.executable, "-m", "luthier", "launch", str(world / "recipe.yaml"), "--num-processes", "2", *words,
        "train.tokens_per_step=512", "train.learning_rate=0.01", **settings(world),
    ), 280)  # fmt: skip
    assert err.count("sums, batch 1: answers: 7, 6 by process") == 2
    before = json.loads((world / "run/eval/before.json").read_text())["tasks"]
    expected = json.loads((world / "one.json").read_text())["models"][0]["tasks"]
    for (place, value), (other, wanted) in zip(leaves(before), leaves(expected), strict=True):
        assert place == other
        assert value == (pytest.approx(wanted, abs=2e-6) if isinstance(wanted, float) else wanted), place
