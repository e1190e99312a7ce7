"""Import lm-evaluation-harness without side effects that outlive the call.

Importing `lm_eval` sets two variables of the environment (`HF_XET_HIGH_PERFORMANCE`, and `HF_HUB_ENABLE_HF_TRANSFER`
when that package is there); they are put back. Its metrics stay in its own registry. `simple_evaluate`, which seeds
`random`, NumPy and torch, is not used: `evaluate` draws worked examples from a generator of its own. What its tasks and
data readers draw from the process' generators is undone as well.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["INSTALL", "import_harness", "undisturbed", "version"]

INSTALL = "pip install 'luthier[lm-eval]'"


def import_harness() -> ModuleType:
    """The package, with its evaluator and task manager loaded.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EnvironmentProblem(code="E542", message="tasks with `lm_eval` need lm-evaluation-harness", hint=INSTALL)
    with undisturbed():
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.tasks
    module: ModuleType = lm_eval
    return module


@contextmanager
def undisturbed() -> Iterator[None]:
    """Environment and the random generators of Python, NumPy and torch are afterwards as they were before."""
    import torch

    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update({name: text for name, text in environment.items() if os.environ.get(name) != text})
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


def version() -> str:
    """Its version, part of every result."""
    return str(import_harness().__version__)
