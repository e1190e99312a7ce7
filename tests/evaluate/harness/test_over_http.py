"""Contract: lm-evaluation-harness over our own server gives what it gives in process: every answer, every score."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")

from luthier.endpoint.client import Endpoint
from luthier.endpoint.settings import EndpointSettings
from luthier.evaluate.run import run_tasks
from luthier.evaluate.served import run_served
from luthier.evaluate.tasks import load_tasks
from luthier.model.load import load_tuned
from luthier.model.tokenizer import load_tokenizer
from luthier.recipe.schema import ModelSection, TaskSpec
from luthier.runtime.device import pick_device
from luthier.serve.host import Target
from tests.evaluate.harness.support import sums_task
from tests.serve.serving import KEY, adapter_folder, serving
from tests.support.tiny import CHATML, save_tiny

OWN = "{{ '<|im_start|>system\n' + rule + '<|im_end|>\n' }}" + CHATML
KWARGS = {"rule": "count"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing may be looked up, and the cache of rows is this test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def tasks_of(folder):
    return load_tasks([TaskSpec.model_validate({"lm_eval": sums_task(folder, rows=8), "max_new_tokens": 12})])


def over_http(server, name, tasks, *, concurrency):
    settings = EndpointSettings(
        base_url=f"{server.url}/v1", model=name, api_key_env="A_KEY", concurrency=concurrency, max_retries=0
    )
    with Endpoint(settings) as endpoint:
        return run_served(endpoint, tasks)


def answers(result):
    keys = ("reference", "output", "extracted", "score", "secondary", "finish_reason", "new_tokens")
    return [{key: row[key] for key in keys} for row in result.rows]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_answers_and_scores_are_equal_to_the_last_character(tmp_path, concurrency):
    base = save_tiny(tmp_path / "base")
    tuned = adapter_folder(tmp_path / "final", base, seed=3)
    own = ModelSection(name_or_path=str(base), chat_template=OWN, chat_template_kwargs=KWARGS)
    model = load_tuned(own, tuned, device=pick_device(), dtype="float32")
    here = run_tasks(model, load_tokenizer(own), tasks_of(tmp_path), batch_size=8, template_kwargs=KWARGS)
    served = Target(name="tuned", section=own, folder=tuned, base_name="base")
    with serving([served], api_key=KEY) as server:
        there = over_http(server, "tuned", tasks_of(tmp_path), concurrency=concurrency)
        base_scores = over_http(server, "base", tasks_of(tmp_path), concurrency=8)
    assert [result.name for result in here] == ["sums.strict-match", "sums.flexible-extract"]
    for one, other in zip(here, there, strict=True):
        assert answers(one) == answers(other)
        assert (one.name, one.n, one.score, one.low, one.high) == (
            other.name, other.n, other.score, other.low, other.high
        )  # fmt: skip
    assert answers(here[0]) != answers(base_scores[0]), "the adapter answers, not its base"
    assert len({row["output"] for row in here[0].rows}) > 2, "answers that depend on the question"


def test_another_template_on_the_server_is_seen(tmp_path):
    """What the test above could miss if answers did not depend on the prompt's form."""
    base = save_tiny(tmp_path / "base")
    section = ModelSection(name_or_path=str(base))
    model = load_tuned(section, base, device=pick_device(), dtype="float32")
    (here, _) = run_tasks(model, load_tokenizer(section), tasks_of(tmp_path), batch_size=8)
    wrong = section.model_copy(update={"chat_template": OWN, "chat_template_kwargs": KWARGS})
    with serving([Target(name="m", section=wrong)], api_key=KEY) as server:
        (there, _) = over_http(server, "m", tasks_of(tmp_path), concurrency=8)
    assert answers(here) != answers(there)
