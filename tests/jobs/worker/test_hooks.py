"""Contract: a job's plan is of as many devices as the cluster gives it."""

from __future__ import annotations

import json

import pytest

from luthier.jobs.worker.hooks import plan_of
from tests.support.tiny import conversations, save_tiny


@pytest.fixture
def recipe(tmp_path):
    save_tiny(tmp_path / "tiny")
    rows = "".join(json.dumps(row) + "\n" for row in conversations(8))
    (tmp_path / "rows.jsonl").write_text(rows)
    file = tmp_path / "r.yaml"
    file.write_text(
        f"model: {{name_or_path: {tmp_path}/tiny}}\n"
        f"data: {{train: [{{path: {tmp_path}/rows.jsonl}}], max_length: 128}}\n"
        f"method: {{name: full}}\ndistributed: {{offload: all}}\noutput_dir: {tmp_path}/run\n"
    )
    return file


def test_the_plan_is_of_all_devices(recipe):
    assert plan_of(recipe, "L4") is None, "one device has no shards that could be offloaded"
    plan = plan_of(recipe, "L4", 4)
    assert plan is not None
    assert (plan["num_gpus"], plan["setting"]["way"]["offload"]) == (4, "all")
    assert plan["host"]["devices"] == 4 and plan["host"]["parts"]["states"] > 0
