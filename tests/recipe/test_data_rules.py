"""Contract: shares, mixture and streaming that do not fit together are told with their key and the smallest fix."""

from __future__ import annotations

import pytest

from luthier.recipe.data_rules import needs_all_rows
from luthier.recipe.emit import dump_yaml
from luthier.recipe.load import load_recipe
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import DataSection
from tests.recipe.support import load, problem_of

pytestmark = pytest.mark.usefixtures("work")

HEAD = "model: {name_or_path: smollm2-135m-instruct}\noutput_dir: runs/x\n"


def data(first: str, second: str, more: str = "") -> str:
    rows = f"[{{path: rows.jsonl{first}}}, {{path: more.jsonl{second}}}]"
    return f"{HEAD}data: {{train: {rows}{more}}}\n"


@pytest.mark.parametrize(
    ("text", "code", "says", "hint"),
    [
        (data(", share: 0.3", ""), "C110", "names no share", "share: 0.7"),
        (data(", share: 0.3", ", share: 0.9"), "C110", "add up to 1.2", "0.25, 0.75"),
        (data(", share: 0.3, weight: 2", ", share: 0.7"), "C110", "exclude each other", "keep one"),
        (data("", "", ", mix: {by: rows}"), "C111", "no source names a `share`", "share: 0.5"),
        (data(", share: 0.3", ", share: 0.7", ", mix: {size: 9, stop: largest_once}"), "C111", "no effect", "remove"),
        (data("", "", ", streaming: true, dedup: {}"), "C110", "`data.dedup`", "streaming: false"),
        (
            data("", "", ", streaming: true, validation: {fraction: 0.1, near_duplicates: 0.9}"),
            "C110", "`data.validation.near_duplicates`", "streaming: false",
        ),
        (data("", "", ", streaming: true") + "objective: {name: dpo}\n", "C110", "objective dpo", "streaming: false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(text, code, says, hint):
    found = problem_of(text, base=False)
    assert (found.code, says in found.message, hint in (found.hint or "")) == (code, True, True), found.render()


def test_prompts_of_online_rl_are_not_mixed_by_trained_tokens():
    text = data(", share: 0.3", ", share: 0.7") + "objective: {name: grpo, grpo: {rewards: [{name: exact_match}]}}\n"
    assert "no trained tokens" in problem_of(text, base=False).message
    load(text.replace("share: 0.7}]", "share: 0.7}], mix: {by: rows}"), base=False)


def test_a_mixture_survives_being_written_out(tmp_path):
    for mix in ("mix: {size: 9}", "mix: {stop: all_exhausted, by: tokens}", "streaming: false"):
        recipe = load(data(", share: 0.3", ", share: 0.7", f", {mix}"), base=False)
        (tmp_path / "again.yaml").write_text(dump_yaml(recipe_to_dict(recipe)))
        assert load_recipe(tmp_path / "again.yaml").recipe == recipe


def test_a_key_that_nobody_thought_of_here_asks_for_all_rows():
    """New sections of `data` are refused with streaming until they are known to go row by row."""
    section = DataSection(train=[{"path": "a"}], dedup={})
    assert [key for key, _ in needs_all_rows(section, "sft")] == ["data.dedup"]
    assert needs_all_rows(DataSection(train=[{"path": "a"}], max_length=7, packing=False), "sft") == []
