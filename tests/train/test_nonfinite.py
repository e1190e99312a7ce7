"""Contract: rows of a step that is not finite are named once, however many processes have them."""

from types import SimpleNamespace

import pytest

from luthier.runtime.errors import RunFailed
from luthier.train.nonfinite import SHOWN, report_non_finite


def test_processes_that_share_sequences_name_them_once(monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda found: found * 2)
    trainer = SimpleNamespace(world_size=2, engine=SimpleNamespace(passes_together=True))
    for count, end in ((3, "r2"), (SHOWN + 5, f"r{SHOWN - 1} and 5 more")):
        step = [SimpleNamespace(batch=SimpleNamespace(refs=[f"r{number}" for number in range(count)]))]
        with pytest.raises(RunFailed) as caught:
            report_non_finite(trainer, step, step=0)
        named = caught.value.problems[0].message.partition("rows of the step: ")[2]
        assert named.startswith("r0, r1, r2") and named.endswith(end) and named.count("r0,") == 1
