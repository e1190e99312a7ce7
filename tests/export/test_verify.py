"""Contract: the numbers of a merge report are the textbook ones, and no NaN passes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from luthier.export.verify import check_prompts, compare_logits, mean_kl
from tests.support.tiny import tiny_tokenizer


def test_kl_of_two_coins():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.5 ln 2 + 0.5 ln(2 / 3)
    assert mean_kl([p], [q]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert mean_kl([p, q], [p, q]) == 0.0


def test_kl_is_a_mean_over_positions_not_over_prompts():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    single = mean_kl([p], [q])
    assert mean_kl([p, torch.cat([q, q, q])], [q, torch.cat([q, q, q])]) == pytest.approx(single / 4, rel=1e-9)


def test_the_bound_is_a_ten_thousandth_of_the_largest_logit():
    reference = [torch.tensor([[1.0, -50.0]])]
    base = [torch.tensor([[9.0, -50.0]])]
    off = [torch.tensor([[1.004, -50.0]])]
    found = compare_logits(reference, off, off, off, base)
    assert found["bound"] == pytest.approx(5e-3)
    assert found["merging"] == found["max_logit_difference"] == pytest.approx(4e-3, rel=1e-4)
    assert found["passed"] and found["writing"] == 0
    off = [torch.tensor([[1.006, -50.0]])]
    assert not compare_logits(reference, off, off, off, base)["passed"]
    assert not compare_logits(reference, reference, reference, off, base)["passed"], "written wrongly"
    assert compare_logits(reference, reference, reference, reference, None)["effect"] is None


def test_of_an_adapter_that_does_little_the_bound_is_a_hundredth_of_that():
    reference, base = [torch.tensor([[1.0, -50.0]])], [torch.tensor([[1.1, -50.0]])]
    found = compare_logits(reference, reference, reference, reference, base)
    assert found["effect"] == pytest.approx(0.1, rel=1e-5) and found["bound"] == pytest.approx(1e-3, rel=1e-5)
    base = [torch.tensor([[1.0001, -50.0]])]
    assert compare_logits(reference, reference, reference, reference, base)["bound"] == pytest.approx(5e-4), "noise"


def test_rounding_is_told_and_loosens_nothing():
    reference, base = [torch.tensor([[0.0, 2.0]])], [torch.zeros(1, 2)]
    rounded = [torch.tensor([[0.0, 2.5]])]
    found = compare_logits(reference, reference, rounded, rounded, base)
    assert found["passed"] and found["rounding"] == found["max_logit_difference"] == 0.5
    assert not compare_logits(reference, reference, rounded, [torch.tensor([[0.0, 2.501]])], base)["passed"]


def test_nan_never_passes():
    reference = [torch.zeros(2, 3)]
    bad = torch.zeros(2, 3)
    bad[1, 1] = float("nan")
    good = [reference, reference, reference, reference]
    assert compare_logits(*good, reference)["passed"]
    for place in range(4):
        assert not compare_logits(*[[bad] if index == place else one for index, one in enumerate(good)], None)["passed"]


def test_agreement_counts_positions():
    reference = [torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])]
    other = [torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])]
    found = compare_logits(reference, reference, other, other, None)
    assert (found["argmax_agreement"], found["prompts"], found["tokens"]) == (0.75, 2, 4)


def test_prompts_hold_text_a_chat_turn_the_runs_rows_and_the_new_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    plain = check_prompts(tokenizer, run_folder=tmp_path, extra_ids=[])
    (tmp_path / "data").mkdir()
    samples = [
        {"ref": "a:1", "tokens": [{"text": "x", "kind": "trained", "id": 40 + row, "weight": 1}] * 300}
        for row in range(9)
    ]
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"samples": samples}))
    full = check_prompts(tokenizer, run_folder=tmp_path, extra_ids=[290, 291])
    assert any(tokenizer.decode(prompt).startswith("<|im_start|>user") for prompt in plain)
    assert (
        len(check_prompts(tiny_tokenizer(chat_template=None), run_folder=tmp_path / "no", extra_ids=[]))
        == len(plain) - 1
    )
    assert full[: len(plain)] == plain
    assert full[len(plain)][:2] == [290, 291]
    assert full[len(plain) + 1 :] == [[40 + row] * 128 for row in range(4)]
    assert max(map(len, full)) <= 128
