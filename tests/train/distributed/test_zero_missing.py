"""Without DeepSpeed its strategies end before anything is loaded, with the line that installs it."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from luthier.runtime.errors import EnvironmentProblem
from luthier.train.distributed.zero import import_deepspeed, require_deepspeed


def test_a_missing_deepspeed_is_told_with_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'luthier\[deepspeed\]'") as caught:
        import_deepspeed(torch.device("cpu"))
    assert caught.value.problems[0].code == "L170" and caught.value.exit_code == 4


def test_it_is_looked_for_without_importing_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="L170"):
        require_deepspeed()
