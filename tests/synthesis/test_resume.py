"""Contract: after a kill at any point the same command pays for no journalled answer again, and ends with the same
files as a run that nobody killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from luthier.synthesis.load import load_spec
from luthier.synthesis.run import Files, synthesize
from tests.synthesis.support import DOCUMENT, Server, key_of, rows_of, spec_text, unruly, without_times

_FORK = multiprocessing.get_context("fork")


def prepare(tmp_path, url, mode):
    if mode == "documents":
        (tmp_path / "mill.md").write_text(DOCUMENT)
        section = {"paths": [str(tmp_path / "mill.md")], "chunk_tokens": 30, "overlap_tokens": 6, "quote_words": 3}
        more = {"judge": {"rubric": "good", "accept": 2.0}, "dedup": {"fuzzy": None}}
    else:
        file = tmp_path / "seeds.jsonl"
        rows = [{"question": f"How many legs have {n} chairs?", "answer": str(n % 3 + 2)} for n in range(6)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"path": str(file), "map": {"user": "question", "assistant": "answer"}}
        section = {
            "seeds": {"examples": source, "rows": 10, "prompts": 2, "round_requests": 3},
            "evolve": {"source": source, "rounds": 2},
            "rejection": {"source": source, "n": 3, "scorer": {"name": "number"}, "keep": "all"},
        }[mode]
        more = {}
    file = tmp_path / f"{mode}.yaml"
    file.write_text(spec_text(url, mode, section, endpoint={"concurrency": 4}, **more))
    return file


def job(spec_file, out):
    spec = load_spec(spec_file)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    synthesize(spec, Files.of(spec, out))
    os._exit(0)


def killed(spec_file, out, server, after) -> bool:
    """Run the job in a process that dies when the server has seen `after` more requests; False: it was done before."""
    process = _FORK.Process(target=job, args=(spec_file, out))
    begun = len(server.seen)
    server.most = server.attempts.total() + after  # it must not be done before this process gets its turn to kill it
    server.let_go.clear()
    process.start()
    while process.is_alive() and len(server.seen) < begun + after:
        time.sleep(0.001)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.let_go.set()
    return alive


def journalled(path) -> set[str]:
    """Requests with an answer in the journal, read without `Journal`; a torn last line holds none."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {key_of(entry["request"]) for line in lines if "request" in (entry := json.loads(line))}


@pytest.mark.parametrize("mode", ["documents", "seeds", "evolve", "rejection"])
def test_a_job_killed_again_and_again_pays_once_and_ends_like_one_that_was_not(tmp_path, mode):
    chooser = random.Random(mode)
    with Server(unruly, seconds=0.005) as server:
        spec_file = prepare(tmp_path, server.url, mode)
        out = tmp_path / "killed" / "rows.jsonl"
        safe: set[str] = set()
        kills = 0
        for _ in range(8):
            with server.lock:
                before = dict(server.attempts)
            alive = killed(spec_file, out, server, chooser.randint(1, 9))
            time.sleep(0.03)  # what was in flight arrives
            again = {key for key in safe if server.attempts[key] != before.get(key, 0)}
            assert again == set(), "an answer in the journal was asked for again"
            safe = journalled(out.with_name("rows.journal.jsonl"))
            kills += alive
            if not alive:
                break
        else:
            assert not killed(spec_file, out, server, 10**9)
        assert kills >= 2
        assert max(server.paid.values()) <= 1 + kills
        twice = sum(count - 1 for count in server.paid.values())
        assert twice <= 4 * kills, "paid twice is at most what was in flight at a kill"
    with Server(unruly) as fresh:
        text = spec_file.read_text().replace(server.url, fresh.url)
        spec_file.write_text(text)
        whole = tmp_path / "whole" / "rows.jsonl"
        spec = load_spec(spec_file)
        told = synthesize(spec, Files.of(spec, whole))
    for name in ("rows.jsonl", "rows.rejected.jsonl"):
        ours, theirs = (rows_of(file.with_name(name)) for file in (out, whole))
        assert without_times(ours) == without_times(theirs)
    summary = json.loads(out.with_name("rows.summary.json").read_text())
    assert summary["outcomes"] == told["outcomes"] and told["rows"] > 0


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    with Server(seconds=0.1) as server:
        spec_file = prepare(tmp_path, server.url, "rejection")
        command = [
            sys.executable,
            "-m",
            "luthier",
            "data",
            "synth",
            str(spec_file),
            "--out",
            str(tmp_path / "rows.jsonl"),
        ]
        server.most = 5
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while len(server.seen) < 5:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        server.let_go.set()
        server.most = float("inf")
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 130 and "D273" in error and "the same command goes on" in error
        assert not (tmp_path / "rows.jsonl").exists()
        kept = journalled(tmp_path / "rows.journal.jsonl")
        assert set(server.paid) == kept, "what was in flight was waited for and kept"
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=180)
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["rows"] == len(rows_of(tmp_path / "rows.jsonl"))
    assert max(server.paid.values()) == 1 and told["answers_new"] == 18 - len(kept)
