"""Contract: several processes sample what one samples, batch by batch; what one lacks or loses ends the job."""

from __future__ import annotations

import json
import sys

import pytest

from luthier.runtime.errors import OutOfMemory, RunFailed
from luthier.runtime.spread import Spread
from luthier.synthesis.journal import Journal
from luthier.synthesis.run import Files, synthesize
from luthier.synthesis.sampler import Request, Sampler, Together
from tests.launch.support import start
from tests.support.exchange import together
from tests.support.tiny import save_tiny
from tests.synthesis.support import rows_of, without_times
from tests.synthesis.test_local import spec_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


class Counted(Sampler):
    """What each thread samples; tokens are drawn by a stand-in of its own, for threads share torch's generator."""

    asked: list[list[str]]

    def answers(self, requests):
        self.asked = [*getattr(self, "asked", []), [request.key for request in requests]]
        return [self._said(request, place, requests) for place, request in enumerate(requests)]

    def _said(self, request, place, requests):
        if request.body["messages"][-1]["content"].startswith("2 "):
            return "it does not fit"
        text = f"{place} of {requests[0].key[:8]}"
        return {"id": request.key, "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2}}  # fmt: skip


def job(spec, folder, size):
    """The summary of process 0, and the samplers."""
    samplers = [Counted(spec.local) for _ in range(size)]
    files = Files.of(spec, folder / "rows.jsonl")

    def process(spread):
        mine = Together(samplers[spread.rank], spread)
        return synthesize(spec, files, together=mine) if spread.is_main else mine.help()

    return together(size, process)[0], samplers


@pytest.mark.parametrize("size", [2, 3])
def test_files_are_those_of_one_process_and_each_batch_is_computed_once(tmp_path, tiny, size):
    spec = spec_of(tmp_path, tiny)
    one, (alone,) = job(spec, tmp_path / "one", 1)
    several, samplers = job(spec, tmp_path / "several", size)
    for name in ("rows.jsonl", "rows.rejected.jsonl"):
        mine, theirs = (without_times(rows_of(tmp_path / folder / name)) for folder in ("several", "one"))
        assert mine == theirs and mine
    assert one["outcomes"] == several["outcomes"] == {"ok": 12, "bad_request": 3}
    batches = alone.asked
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    for rank, sampler in enumerate(samplers):
        assert sampler.asked == batches[rank::size]
    keys = [[json.loads(line)["key"] for line in (tmp_path / folder / "rows.journal.jsonl").open()]
            for folder in ("one", "several")]  # fmt: skip
    assert keys[0] == keys[1], "in the same order, by process 0"


def test_what_is_in_the_journal_is_not_computed_again_by_anyone(tmp_path, tiny):
    spec = spec_of(tmp_path, tiny)
    job(spec, tmp_path, 1)
    journal = tmp_path / "rows.journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:5]))  # killed in the second batch
    (tmp_path / "rows.jsonl").unlink()
    told, samplers = job(spec, tmp_path, 2)
    assert told["answers_new"] == len(lines) - 5
    assert journal.read_text().count("\n") == len(lines)
    computed = sum(len(batch) for sampler in samplers for batch in sampler.asked)
    whole = sum(json.loads(line)["key"] in samplers[0].asked[0] for line in lines)
    assert computed < 15 and whole, "the first batch is whole"


def test_another_model_than_that_of_process_0_ends_the_job(tiny, tmp_path):
    other = save_tiny(tmp_path / "other", seed=9)
    spec, theirs = spec_of(tmp_path, tiny), spec_of(tmp_path, other)
    sampler = Sampler(theirs.local)
    order = (Sampler(spec.local).name, [[], [Request({}, "k")]])
    helper = Together(sampler, Spread(rank=1, size=2, exchange=lambda name, value: [order, None]))
    with pytest.raises(RunFailed) as caught:
        helper.help()
    assert caught.value.problems[0].code == "L302" and "process 1 has another model" in str(caught.value)


def test_process_0_that_fails_in_a_batch_does_not_wait_for_the_others(tiny, tmp_path):
    """They wait for its answers, so nobody would come."""
    spec = spec_of(tmp_path, tiny)
    asked: list[str] = []

    class Full(Counted):
        def answers(self, requests):
            raise OutOfMemory(code="E501", message="full")

    def exchange(name, value):
        asked.append(name)
        return [value, []]

    mine = Together(Full(spec.local), Spread(rank=0, size=2, exchange=exchange))
    with pytest.raises(OutOfMemory):
        synthesize(spec, Files.of(spec, tmp_path / "rows.jsonl"), together=mine)
    assert asked == ["batches 1: asked"]
    with Journal(tmp_path / "rows.journal.jsonl") as journal:
        assert not len(journal)


# -- real processes


@pytest.mark.slow
def test_a_command_on_two_processes_writes_the_rows_of_one(tmp_path, tiny):
    spec_of(tmp_path, tiny)
    luthier = (sys.executable, "-m", "luthier", "data", "synth", str(tmp_path / "spec.yaml"), "--json")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
                *luthier[2:])  # fmt: skip
    place = {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = {}
    for name, command in {"one": luthier, "two": (*luthier, "--num-processes", "2"), "torchrun": torchrun}.items():
        process = start(*command, "--out", str(tmp_path / name / "rows.jsonl"), **place)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert ("2 processes share" in err) == (name != "one")
        told = json.loads(out)
        assert told["answers_new"] == 15
        found[name] = without_times(rows_of(tmp_path / name / "rows.rejected.jsonl"))
    assert found["one"] == found["two"] == found["torchrun"] and len(found["one"]) == 15
    assert not [*tmp_path.glob("luthier-processes-*")]


@pytest.mark.slow
def test_a_command_on_two_processes_that_cannot_start_says_so_once(tmp_path, tiny):
    spec_of(tmp_path, tiny)
    (tmp_path / "rows.jsonl").write_text("somebody's\n")
    process = start(sys.executable, "-m", "luthier", "data", "synth", str(tmp_path / "spec.yaml"), "--num-processes",
                    "2", "--out", str(tmp_path / "rows.jsonl"))  # fmt: skip
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and err.count("error[C165]") == 1 and "processes" not in err
    assert (tmp_path / "rows.jsonl").read_text() == "somebody's\n"
