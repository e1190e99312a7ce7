"""Contract: what runs measured corrects the next plan of the same kind, and nothing else; odd lines move little."""

import json
from dataclasses import replace

import pytest

from luthier.plan.calibrate import Correction, Measured, calibration_file, correction, record
from luthier.plan.search import make_plan
from tests.plan.support import request


def test_measured_over_predicted_corrects_the_next_plan(tmp_path):
    asked = replace(request(), cache_dir=tmp_path)
    before = make_plan(asked)
    said = before.predicted()
    measured = Measured(peak_bytes=round(1.1 * said["peak_bytes"]), seconds_per_step=1.25 * said["seconds_per_step"])
    record(calibration_file(tmp_path), said, measured)
    after = make_plan(asked)
    assert after.chosen.correction.runs == 1
    same = next(c for c in [after.chosen] if c.setting == before.chosen.setting)
    assert same.seconds == pytest.approx(1.25 * before.chosen.seconds)
    assert same.peak_bytes == pytest.approx(1.1 * before.chosen.peak_bytes, rel=1e-6)
    # The record is of the uncorrected prediction: a second equal run leaves the correction where it is.
    record(calibration_file(tmp_path), after.predicted(), measured)
    assert make_plan(asked).chosen.correction.seconds == pytest.approx(1.25)
    assert make_plan(replace(request(gpu="H100"), cache_dir=tmp_path)).chosen.correction == Correction()
    assert make_plan(replace(request({"name": "full"}), cache_dir=tmp_path)).chosen.correction == Correction()


def test_a_correction_can_change_the_choice(tmp_path):
    asked = replace(request(gpu="RTX4090", tokens_per_step=65_536), cache_dir=tmp_path)
    before = make_plan(asked)
    said = before.predicted()
    record(calibration_file(tmp_path), said, Measured(
        peak_bytes=round(1.2 * said["peak_bytes"]), seconds_per_step=said["seconds_per_step"]))  # fmt: skip
    after = make_plan(asked)
    assert before.fits and after.chosen.memory.peak < before.chosen.memory.peak


def test_the_median_of_the_last_five_and_bounds(tmp_path):
    file = tmp_path / "deep" / "calibration.jsonl"
    key = {"device": "H200", "model": "llama 8.0e+09", "method": "lora plain 2 bytes x1"}
    said = {"key": key, "peak_bytes": 100, "seconds_per_step": 1.0}
    for seconds in (9.0, 1.0, 1.1, 1.2, 100.0, 1.3):
        record(file, said, Measured(peak_bytes=110, seconds_per_step=seconds))
    found = correction(file, key)
    assert (found.seconds, found.memory, found.runs) == (1.2, 1.1, 6)
    record(file, {**said, "key": {**key, "device": "x"}}, Measured(peak_bytes=10_000, seconds_per_step=0.001))
    bounded = correction(file, {**key, "device": "x"})
    assert (bounded.seconds, bounded.memory) == (0.2, 2.0)


def test_damaged_lines_and_a_missing_file_correct_nothing(tmp_path):
    assert correction(tmp_path / "none.jsonl", {"device": "x"}) == Correction()
    file = tmp_path / "calibration.jsonl"
    file.write_text('{"key": {"device": "x"}, "predicted"\n[]\n{"key": {"device": "x"}}\nnull\n')
    assert correction(file, {"device": "x"}) == Correction()
    good = {"key": {"device": "x"}, "predicted": {"peak_bytes": 1, "seconds_per_step": 1},
            "measured": {"peak_bytes": 1, "seconds_per_step": 2}}  # fmt: skip
    file.write_text(file.read_text() + json.dumps(good) + "\n")
    assert correction(file, {"device": "x"}).seconds == 2.0
