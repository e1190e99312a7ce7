"""Contract: freed memory stays with the process on glibc, and elsewhere the report says why not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from luthier.runtime import malloc

CHURN = """
import resource, sys
import torch
from luthier.runtime.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()[0]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(30):
    [torch.ones(1 << 22) for _ in range(4)]
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_pages_are_faulted_in_once_instead_of_in_every_step():
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", CHURN, mode], check=True, capture_output=True, text=True).stdout
        )
        for mode in ("keep", "leave")
    }
    assert faults["keep"] < faults["leave"] / 4


def test_another_system_is_told_apart(monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    done, why = malloc.keep_freed_memory()
    assert not done
    assert "darwin" in why
