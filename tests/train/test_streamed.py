"""Contract: rows from disk give the losses and weights of rows in memory, bit for bit; a resumed run, too."""

from __future__ import annotations

import pytest

from luthier.data.prepare import prepare
from luthier.data.stored import StoredRows
from luthier.recipe.schema import DataSection
from luthier.train import running
from tests.data.test_prepare import write
from tests.support.tiny import conversations, tiny_tokenizer
from tests.train.support import FULL, distance, train

SETTINGS = {"method": FULL, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
            "save_steps": 1, "eval_steps": 2}  # fmt: skip


@pytest.fixture
def prepared(tmp_path):
    """The same rows in memory and on disk."""
    sources = [
        {**write(tmp_path / "a.jsonl", conversations(30, turns=2)), "share": 0.5},
        {**write(tmp_path / "b.jsonl", conversations(30, seed=1)), "share": 0.5},
    ]

    def rows(streaming: bool):
        section = DataSection(train=sources, validation={"fraction": 0.2}, max_length=128, streaming=streaming)
        return prepare(section, tiny_tokenizer(), seed=0, cache_dir=tmp_path / "cache")

    memory, disk = rows(False), rows(True)
    assert isinstance(disk.train, StoredRows) and not isinstance(memory.train, StoredRows)
    return memory, disk


def test_the_trajectory_is_the_same_and_so_it_is_after_a_kill(tmp_path, prepared, monkeypatch):
    memory, disk = prepared
    first, second = train(tmp_path / "memory", memory, **SETTINGS), train(tmp_path / "disk", disk, **SETTINGS)
    assert first.metrics == second.metrics and len(first.losses) >= 4 and first.moved > 1e-3
    assert distance(first, second) == 0.0

    real = running.update

    def dies(trainer, micro_batches, *, step, stop_requested):
        if step == 2:
            raise KeyboardInterrupt
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", disk, **SETTINGS)
    monkeypatch.setattr(running, "update", real)
    resumed = train(tmp_path / "killed", disk, **SETTINGS)
    assert distance(first, resumed) == 0.0 and resumed.metrics == first.metrics
