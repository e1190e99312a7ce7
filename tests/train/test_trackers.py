"""Contract: a tracker that fails is told of and left out; the run goes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.runtime.errors import EnvironmentProblem
from luthier.train import trackers


class Tracker:
    """Of accelerate's shape; fails from a step on."""

    def __init__(self, name: str, *, until: int = 99) -> None:
        self.name, self.until, self.seen = name, until, []

    def log(self, values: dict, step: int) -> None:
        if step >= self.until:
            raise ConnectionError("no answer")
        self.seen.append(step)

    def finish(self) -> None:
        if self.until < 99:
            raise ConnectionError("still no answer")


def test_the_others_go_on(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(trackers, "note", lambda text, **_: said.append(text))
    bad, good = Tracker("bad", until=2), Tracker("good")
    accelerator = SimpleNamespace(trackers=[bad, good])
    for step in (1, 2, 3):
        trackers.log(accelerator, {"loss": 1.0}, step=step)
    assert (bad.seen, good.seen) == ([1], [1, 2, 3])
    assert len(said) == 1
    assert "tracker bad failed (ConnectionError: no answer); nothing is sent to it after step 2" in said[0]
    trackers.finish(SimpleNamespace(trackers=[bad, good]))
    assert len(said) == 2 and "still no answer" in said[1]


def test_one_that_cannot_be_opened_is_an_error_before_the_first_step():
    def init_trackers(project: str, config: dict) -> None:
        raise OSError("no key")

    accelerator = SimpleNamespace(log_with=["x"], init_trackers=init_trackers)
    with pytest.raises(EnvironmentProblem, match="could not be opened: OSError: no key"):
        trackers.start(accelerator, project="p", config={})
