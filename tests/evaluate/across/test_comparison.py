"""Contract: of several runs only what differs is shown, and only what is comparable is tested, all words together."""

from __future__ import annotations

import json
import random

import pytest

from luthier.evaluate.across import compare_runs
from luthier.evaluate.compare import BINDING
from luthier.evaluate.stats import holm
from luthier.runtime.errors import RecipeError, RunFailed
from tests.evaluate.across.make_runs import SETTINGS, make_run
from tests.evaluate.test_compare import result

RIGHT, WRONG = [1.0] * 30, [0.0] * 30


def test_only_settings_that_differ_with_the_reason_of_the_derived_one(tmp_path):
    why = {"train.gradient_checkpointing": "it fits without"}
    a = make_run(tmp_path / "a", reasons=why)
    b = make_run(tmp_path / "b", changes={"train.learning_rate": 2e-3, "method.target_modules": ["q_proj"]})
    c = make_run(tmp_path / "c", changes={"train.gradient_checkpointing": 0, "train.label": None}, reasons=why)
    found = {item.key: item for item in compare_runs([a, b, c]).settings}
    assert list(found) == [
        "method.target_modules", "train.learning_rate", "train.gradient_checkpointing", "train.label",
    ]  # fmt: skip
    assert found["train.learning_rate"].values == (1e-3, 2e-3, 1e-3)
    assert found["method.target_modules"].values[1] == ["q_proj"], "a list of names is one value"
    assert found["train.gradient_checkpointing"].values == (False, False, 0), "0 is not false"
    assert found["train.gradient_checkpointing"].reasons == ("it fits without", "", "it fits without")
    assert found["train.label"].values == ("(absent)", "(absent)", None), "no key is not the value null"


def test_what_no_recipe_says(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", versions={"torch": "2.12.0", "peft": "1"})
    found = {item.key: item.values for item in compare_runs([a, b]).facts}
    assert found == {"versions.torch": ("2.13.0", "2.12.0"), "versions.peft": ("(absent)", "1")}


def test_runs_of_one_name_are_told_apart_and_numbers_come_from_the_files(tmp_path):
    a, b = make_run(tmp_path / "x" / "run", scores=RIGHT), make_run(tmp_path / "y" / "run", losses=(3.0, 2.5))
    value = compare_runs([a, b]).as_json()
    one, other = value["runs"]
    assert [run["name"] for run in value["runs"]] == ["x/run", "y/run"]
    assert [run["letter"] for run in value["runs"]] == ["A", "B"]
    assert one["numbers"]["final_loss"] == 1.25 and other["numbers"]["final_loss"] == 2.5
    assert one["numbers"]["peak_bytes"] == 3 * 2**29 and one["numbers"]["tokens_per_second"] == 512.0
    assert (one["train_seconds"], one["seconds"]) == (60.0, 70.0)
    (score,) = one["scores"]
    assert (score["before"], score["score"], score["verdict"]) == (0.0, 1.0, "better") and other["scores"] == []
    assert one["curves"][0] == {
        "key": "loss", "steps": [1, 2, 3], "trained_tokens": [100, 200, 300], "values": [2.0, 1.5, 1.25],
    }  # fmt: skip
    assert one["curves"][1]["key"] == "eval_loss" and one["curves"][1]["trained_tokens"] == [300]
    json.dumps(value, allow_nan=False)


def test_every_pair_is_tested_and_corrected_over_all_tasks(tmp_path):
    half = [1.0] * 15 + [0.0] * 15
    second = [result(half, name="u")]
    runs = [make_run(tmp_path / name, scores=scores, tasks=second)
            for name, scores in (("a", WRONG), ("b", half), ("c", [1.0] * 6 + [0.0] * 24))]  # fmt: skip
    found = compare_runs(runs)
    assert [(p.test.name, p.first, p.second) for p in found.pairs] == [
        ("t", "a", "b"), ("t", "a", "c"), ("t", "b", "c"), ("u", "a", "b"), ("u", "a", "c"), ("u", "b", "c"),
    ]  # fmt: skip
    raw = [pair.test.p_value for pair in found.pairs]
    assert [pair.p_adjusted for pair in found.pairs] == holm(raw)
    assert raw[1] == pytest.approx(2 / 64) and found.pairs[1].test.verdict == "better", "by itself"
    assert [pair.verdict for pair in found.pairs[:3]] == ["better", "no evidence", "worse"], (
        "a word that Holm takes away"
    )
    first = compare_runs(runs, against_first=True)
    assert [(p.first, p.second) for p in first.pairs] == [("a", "b"), ("a", "c")] * 2
    assert first.pairs[1].p_adjusted < found.pairs[1].p_adjusted


@pytest.mark.parametrize("key", ["template_hash", "data_hash", "grader", "inputs_hash"])
def test_runs_that_differ_in_more_than_the_model_are_not_tested_and_it_is_said_why(tmp_path, key):
    other = result(WRONG, settings={**SETTINGS, key: "y"})
    runs = [make_run(tmp_path / "a", scores=RIGHT), make_run(tmp_path / "b", tasks=[other]),
            make_run(tmp_path / "c", scores=WRONG), make_run(tmp_path / "d", tasks=[other]),
            make_run(tmp_path / "e")]  # fmt: skip
    found = compare_runs(runs)
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "c"), ("b", "d")]
    refused, unscored = found.not_tested
    assert (refused.runs, refused.against) == (("b", "d"), ("a", "c"))
    assert refused.reasons == (f"{BINDING[key]} differs ('x' and 'y')",)
    assert (unscored.runs, unscored.reasons) == (("e",), ("not scored",))
    assert [changed.runs for changed in found.changed] == [("a", "c"), ("b", "d")]


def test_rows_that_are_not_the_same_question_are_refused_whatever_the_hashes_say(tmp_path):
    one, other = result(RIGHT), result(WRONG)
    other.rows[7]["reference"] = "changed"
    runs = [make_run(tmp_path / "a", tasks=[one]), make_run(tmp_path / "b", tasks=[other])]
    found = compare_runs(runs)
    assert found.pairs == () and "reference of row 7" in found.not_tested[0].reasons[0]


def test_rows_by_who_is_right(tmp_path):
    a = [1.0] * 20 + [0.0] * 4 + [1.0] * 6
    b = [1.0] * 20 + [1.0] * 4 + [0.0] * 6
    c = [1.0] * 20 + [1.0] * 4 + [0.0] * 5 + [1.0]
    runs = [make_run(tmp_path / name, scores=scores) for name, scores in (("a", a), ("b", b), ("c", c))]
    (changed,) = compare_runs(runs, rows=4).changed
    assert changed.indices == tuple(range(20, 30)) and changed.rows == 30
    assert [(p["right"], p["wrong"], p["rows"]) for p in changed.patterns] == [
        (["a"], ["b", "c"], 5), (["b", "c"], ["a"], 4), (["a", "c"], ["b"], 1),
    ]  # fmt: skip
    assert [row["index"] for row in changed.shown] == [24, 20, 29, 25], "patterns take turns"
    row = changed.shown[0]
    assert (row["question"], row["reference"]) == ("q24", "r24")
    assert [(one["run"], one["right"], one["answer"]) for one in row["outcomes"]] == [
        ("a", True, "o1.0"), ("b", False, "o0.0"), ("c", False, "o0.0"),
    ]  # fmt: skip


def test_scores_between_0_and_1_have_no_patterns(tmp_path):
    chooser = random.Random(1)
    scores = [[chooser.random() for _ in range(12)] for _ in range(2)]
    runs = [make_run(tmp_path / str(index), scores=one) for index, one in enumerate(scores)]
    found = compare_runs(runs, rows=2)
    (changed,) = found.changed
    assert not changed.right_or_wrong and changed.patterns == () and len(changed.indices) == 12
    gaps = sorted((abs(x - y) for x, y in zip(*scores, strict=True)), reverse=True)
    shown = [abs(row["outcomes"][0]["score"] - row["outcomes"][1]["score"]) for row in changed.shown]
    assert shown == pytest.approx(gaps[:2])
    assert found.pairs[0].test.test == "paired permutation"


def test_twenty_runs(tmp_path):
    chooser = random.Random(2)
    runs = [make_run(tmp_path / f"r{i}", scores=[float(chooser.random() < 0.5) for _ in range(99)]) for i in range(20)]
    found = compare_runs(runs)
    assert len(found.pairs) == 190
    assert {pair.verdict for pair in found.pairs} == {"no evidence"}, (
        "coins: without a correction some would be told apart"
    )
    assert any(pair.test.verdict != "no evidence" for pair in found.pairs)


def test_bad_folders_are_named_at_once(tmp_path):
    a = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError) as caught:
        compare_runs([a, a, tmp_path / "empty", tmp_path / "gone"])
    assert [problem.code for problem in caught.value.problems] == ["E570", "R730", "R730"]
    with pytest.raises(RecipeError, match="got 1"):
        compare_runs([a])


@pytest.mark.parametrize("name", ["eval/after.json", "manifest.json", "resolved.yaml", "measured.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    a, b = make_run(tmp_path / "a", scores=RIGHT), make_run(tmp_path / "b")
    (a / name).write_text("{[")
    with pytest.raises(RunFailed) as caught:
        compare_runs([a, b])
    assert name in str(caught.value)
