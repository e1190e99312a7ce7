"""Every test starts from the same place: no network, no user cache, one thread, default types."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.often import often

# The same examples on every machine, and no failure because a machine is busy.
settings.register_profile(
    "luthier",
    deadline=None,
    derandomize=True,
    max_examples=often(100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("luthier")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _open_file(handle) -> None:
    """In place of `os.fsync`: the same complaint of a closed file, no waiting."""
    os.fstat(handle if isinstance(handle, int) else handle.fileno())


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path_factory):
    """Own cache folder, no colours, no launcher variables, no waiting for disks; torch's default type is restored."""
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # A checkpoint waits for the disk a dozen times; who waits for it, and when, `tests/runtime/test_atomic.py` proves.
    monkeypatch.setattr(os, "fsync", _open_file)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "luthier-cache"))
    yield
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        assert torch.get_default_dtype() == torch.float32, "a test changed torch's default type"


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at it again, which many tests wait for."""
    gc.collect()
    gc.freeze()
