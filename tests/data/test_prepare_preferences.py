# ruff: noqa: E501 - templates and tables of cases
"""Contract: rows of preferences are prepared as others are: nothing lost in silence, cached or not, exact counts.

Mutations tried by hand (each makes tests here fail): the cache without answers' lengths, label or margin; equal pairs
left out without an error; validation drawn by the row instead of the prompt; packs of `max_length`.
"""

from __future__ import annotations

import json

import pytest

from luthier.data.branches import collate_branched
from luthier.data.cache import key_parts
from luthier.data.describe import token_records
from luthier.data.encode import Encoder
from luthier.data.preference_stats import preference_lines, preference_stats
from luthier.data.prepare import prepare
from luthier.data.template import ChatTemplate
from luthier.data.types import Branched, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError, RecipeError
from tests.data.preferring import pairs, prepared, says, user
from tests.data.reading import write
from tests.support.tiny import tiny_tokenizer


def row(question, chosen, rejected, **fields):
    return {"prompt": [user(question)], "chosen": [says(chosen)], "rejected": [says(rejected)], **fields}


def contents(found):
    return [
        (list(r.prompt), [list(a) for a in r.answers], [list(w) for w in r.weights], r.label, r.margin, str(r.ref))
        for r in found.train + found.validation
    ]


# --- rows and packs -----------------------------------------------------------------------------------------------


def test_pairs_become_rows_that_share_their_prompt_and_the_manifest_adds_up(tmp_path):
    found = prepared(tmp_path, pairs())
    manifest = json.loads(json.dumps(found.manifest, allow_nan=False))
    assert len(found.train) == manifest["rows_used"] == 40 and all(isinstance(r, Branched) for r in found.train)
    assert manifest["kind"] == "pairs"
    assert manifest["tokens"] == sum(map(len, found.train)) == sum(pack.tokens for pack in found.packs)
    assert manifest["trained_tokens"] == sum(r.trained_tokens for r in found.train)
    batches = [collate_branched([found.train[i] for i in pack.examples]) for pack in found.packs]
    assert manifest["trained_tokens"] == sum(batch.trained_tokens for batch in batches)
    assert manifest["tokens"] == sum(batch.tokens for batch in batches)
    assert manifest["mask_proof"]["turns"] == 80 and manifest["mask_proof"]["rows"] == 40


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_every_row_that_is_kept_fits_into_a_pack(tmp_path, overlong):
    """Two long answers to one short question are nearly twice `max_length`, and the reason for the capacity."""
    rows = [*pairs(), row("a", "year " * 44, "week " * 44)]
    found = prepared(tmp_path, rows, max_length=64, overlong=overlong)
    assert max(map(len, found.train)) > 100 and max(r.longest for r in found.train) <= 64
    assert found.manifest["pack_capacity"] == 128
    assert sorted(i for pack in found.packs for i in pack.examples) == list(range(len(found.train)))
    assert all(pack.tokens <= 128 for pack in found.packs) and len(found.packs) < len(found.train)
    assert found.manifest["pack_efficiency"] == found.manifest["tokens"] / (128 * len(found.packs))


def test_without_packing_each_pair_is_a_sequence(tmp_path):
    found = prepared(tmp_path, pairs(), packing=False)
    assert [pack.examples for pack in found.packs] == [(i,) for i in range(40)]
    assert contents(found) == contents(prepared(tmp_path, pairs()))


def test_rated_answers_have_packs_of_max_length(tmp_path):
    rows = [{"prompt": "day", "completion": f"night {i % 2} " * (i + 1), "label": i % 2 == 0} for i in range(8)]
    found = prepared(tmp_path, rows, kind="rated", source={"map": {"user": "prompt"}})
    assert found.manifest["pack_capacity"] == 256
    assert [r.label for r in found.train] == [True, False] * 4
    stats = found.manifest["preferences"]
    assert (stats["kind"], stats["desired"], stats["undesired"], stats["tokens_saved"]) == ("rated", 4, 4, 0)


def test_pairs_for_rated_answers_are_split_and_stay_on_one_side(tmp_path, capsys):
    found = prepared(tmp_path, pairs(), kind="rated", validation={"fraction": 0.3})
    assert len(found.train) + len(found.validation) == 80 and found.manifest["rows_read"] == 40
    for side in (found.train, found.validation):
        labels = [r.label for r in side]
        assert labels == [True, False] * (len(side) // 2)
    assert "40 pairs read as two rated answers each" in str(found.manifest["sources"][0]["notes"])


# --- splits and weights -------------------------------------------------------------------------------------------


def test_all_answers_to_a_prompt_are_on_one_side_of_the_split(tmp_path):
    rows = [row(f"day {i % 12}", f"night {i}", f"week {i}") for i in range(60)]
    found = prepared(tmp_path, rows, validation={"fraction": 0.3})
    sides = [{tuple(r.prompt) for r in side} for side in (found.train, found.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(found.train) + len(found.validation) == 60


def test_weights_of_sources_repeat_and_thin_out(tmp_path):
    found = prepared(tmp_path, pairs(), source={"weight": 2.0})
    assert len(found.train) == 80
    assert found.manifest["preferences"]["tokens_unshared"] == sum(len(r) + len(r.prompt) for r in found.train[:40]), (
        "statistics are of the rows, whatever their weight"
    )
    half = prepared(tmp_path, pairs(), source={"weight": 0.5})
    assert len(half.train) + half.manifest["dropped"]["sampled_out"] == 40


def test_a_validation_file_is_read_as_pairs_too(tmp_path):
    own = write(tmp_path / "val.jsonl", pairs(5, seed=7))
    found = prepared(tmp_path, pairs(), validation={"path": str(own)})
    assert len(found.validation) == 5 and all(isinstance(r, Branched) for r in found.validation)


# --- rows that are not used ---------------------------------------------------------------------------------------

TRIMMED = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + '<|im_end|>\n' }}{% endfor %}"
TRIMMED += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def test_equal_pairs_are_errors_or_dropped_whether_as_text_or_as_tokens(tmp_path):
    rows = [row("a", "b", "c"), row("a", "b", "b"), row("a", "b", "b ")]
    tokenizer = tiny_tokenizer(chat_template=TRIMMED)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, rows, tokenizer=tokenizer)
    assert [(p.code, p.line) for p in caught.value.problems] == [("D219", 2)]
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, [rows[0], rows[2]], tokenizer=tokenizer)
    assert [(p.code, p.line, p.message) for p in caught.value.problems] == [
        ("D219", 2, "chosen and rejected are the same tokens")
    ]
    found = prepared(tmp_path, rows, tokenizer=tokenizer, on_empty="drop")
    assert found.manifest["dropped"] == {"equal": 2} and len(found.train) == 1
    assert [item["ref"][-1] for item in found.manifest["dropped_rows"]] == ["2", "3"]


def test_overlong_pairs_are_dropped_cut_or_an_error_and_always_counted(tmp_path):
    rows = [row("a", "b", "c"), row("a", "year " * 60, "c"), row("year " * 60, "b", "c")]
    found = prepared(tmp_path, rows, max_length=40)
    assert found.manifest["dropped"] == {"overlong": 2} and found.manifest["cut_tokens"] > 120
    cut = prepared(tmp_path, rows, max_length=40, overlong="truncate")
    assert cut.manifest["dropped"] == {"empty": 1} and cut.manifest["truncated"] == 1
    assert cut.manifest["notes"] == {"truncated": 1}
    (listed,) = cut.manifest["truncated_rows"]
    full = next(r for r in prepared(tmp_path, rows, max_length=200).train if r.ref.line == 2)
    assert listed["detail"] == f"truncated {len(full)} -> {len(cut.train[1])}"
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, rows, max_length=40, overlong="error")
    assert [(p.code, p.line) for p in caught.value.problems] == [("D220", 2), ("D220", 3)]


def test_the_prompt_may_not_count(tmp_path):
    with pytest.raises(RecipeError, match="would count the prompt") as caught:
        prepared(tmp_path, pairs(4), loss_on="all")
    assert caught.value.exit_code == 2


def test_rows_for_another_objective_stop_before_anything_is_tokenised(tmp_path):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, pairs(4), kind="tokens")
    assert caught.value.problems[0].code == "D218"


def test_raw_text_for_a_model_with_a_template_is_warned_about(tmp_path, capsys):
    rows = [{"prompt": "day", "chosen": " night", "rejected": " week"}]
    said = []
    for source, tokenizer in (
        ({}, None),
        ({"map": {"user": "prompt"}}, None),
        ({}, tiny_tokenizer(chat_template=None)),
    ):
        prepared(tmp_path, rows, source=source, tokenizer=tokenizer)
        said.append("raw text" in capsys.readouterr().err.replace("\n", " "))
    assert said == [True, False, False]


# --- statistics ---------------------------------------------------------------------------------------------------


def branched(prompt, *answers, **fields):
    weights = [[1.0] * len(answer) for answer in answers]
    return Branched(prompt=prompt, answers=answers, weights=weights, ref=RowRef("f", 1), **fields)


def test_lengths_bias_and_savings_are_counted_exactly():
    rows = [
        branched([1, 2, 3], [4, 5], [6]),
        branched([1, 2], [4], [6, 7, 8]),
        branched([1], [4, 5], [6, 7], margin=0.0),
        branched([9], [4, 5, 6], [7, 8]),
    ]
    stats = preference_stats([*rows, rows[0]])
    assert (stats["chosen_longer"], stats["rejected_longer"], stats["same_length"]) == (2, 1, 1)
    assert stats["tokens_saved"] == 3 + 2 + 1 + 1
    assert stats["tokens_unshared"] == sum(len(r.prompt) * 2 + sum(map(len, r.answers)) for r in rows)
    assert (stats["prompt_tokens"]["max"], stats["chosen_tokens"]["max"], stats["rejected_tokens"]["max"]) == (3, 3, 3)
    assert stats["with_margin"] == 1 and stats["conflicts"] == 0
    lines = preference_lines(stats)
    assert "chosen is the longer answer in 2 of 4 pairs (50%), rejected in 1" in lines
    assert "prompts are computed once a pair: 7 of 30 tokens saved (23%)" in lines


def test_contradictions_are_rows_that_say_the_opposite():
    a, b = branched([1], [2], [3]), branched([1], [3], [2])
    assert preference_stats([a, b, branched([1], [2], [4]), branched([5], [3], [2])])["conflicts"] == 2
    assert preference_stats([a, a])["conflicts"] == 0
    shifted = branched([1, 2], [9], [3]), branched([1], [3], [2, 9])
    assert preference_stats(shifted)["conflicts"] == 0
    good, bad = branched([1], [2], label=True), branched([1], [2], label=False)
    assert preference_stats([good, bad, branched([1], [3], label=True)])["conflicts"] == 2


def test_contradictions_and_copies_are_said_aloud(tmp_path, capsys):
    rows = [row("a", "b", "c"), row("a", "c", "b"), row("a", "b", "c"), row("a", "x", "y")]
    found = prepared(tmp_path, rows)
    assert found.manifest["preferences"]["conflicts"] == 3 and found.manifest["duplicates"] == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "3 rows say the opposite of another row" in said and "1 rows repeat an earlier row" in said


def test_samples_show_prompt_and_answers_token_by_token(tmp_path):
    found = prepared(tmp_path, pairs(5))
    for sample, r in zip(found.manifest["samples"], found.train, strict=False):
        assert [token["id"] for token in sample["tokens"]] == [*r.prompt, *r.answers[0], *r.answers[1]]
        begins = {token["begins"]: place for place, token in enumerate(sample["tokens"]) if "begins" in token}
        assert begins == {"chosen": len(r.prompt), "rejected": len(r.prompt) + len(r.answers[0])}
        kinds = [token["kind"] for token in sample["tokens"]]
        assert kinds.count("chosen") + kinds.count("rejected") == r.trained_tokens
        assert set(kinds[: len(r.prompt)]) == {"special", "context"}
    bad = branched([5], [6, 2], label=False)
    assert [token["kind"] for token in token_records(bad, Encoder(tiny_tokenizer()))] == [
        "context",
        "rejected",
        "rejected",
    ]


def test_the_hash_is_that_of_what_is_trained_on(tmp_path):
    rows = pairs(6)
    base = prepared(tmp_path, rows).manifest["hash"]
    assert prepared(tmp_path, rows).manifest["hash"] == base
    swapped = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    others = [swapped, [{**r, "margin": 1.0} for r in rows], rows[:5]]
    hashes = [prepared(tmp_path, other).manifest["hash"] for other in others]
    hashes += [
        prepared(tmp_path, rows, kind="rated").manifest["hash"],
        prepared(tmp_path, rows, packing=False).manifest["hash"],
    ]
    assert len({base, *hashes}) == 6


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pairs", "rated"])
def test_cached_rows_are_the_same_rows(tmp_path, kind):
    rows = [{**r, "margin": i / 2} if i % 3 else r for i, r in enumerate(pairs(9))] + [row("a", "b", "b ")]
    options = {
        "kind": kind,
        "cache_dir": tmp_path / "cache",
        "tokenizer": tiny_tokenizer(chat_template=TRIMMED),
        "on_empty": "drop",
    }
    first, second = prepared(tmp_path, rows, **options), prepared(tmp_path, rows, **options)
    assert first.manifest["cache"].startswith("miss") and second.manifest["cache"] == "hit"
    assert contents(first) == contents(second)
    assert [list(r.notes) for r in first.train] == [list(r.notes) for r in second.train]
    assert {**first.manifest, "cache": ""} == {**second.manifest, "cache": ""}
    assert first.manifest["dropped"] == ({"equal": 1} if kind == "pairs" else {})


def test_the_key_holds_the_kind_of_rows(tmp_path):
    template = ChatTemplate(tiny_tokenizer())
    section = DataSection(train=[{"path": "x"}])
    keys = [key_parts(["a"], template, section, kind) for kind in ("tokens", "pairs", "rated")]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 3


def test_a_file_that_serves_two_objectives_is_prepared_for_each(tmp_path):
    both = [{"messages": [user("a"), says("b")], **row("a", "b", "c")}] * 3
    path = write(tmp_path / "a.jsonl", both)
    section = DataSection(train=[{"path": str(path)}])
    cache = tmp_path / "cache"
    for kind, size in (("tokens", 1), ("pairs", 2), ("tokens", 1)):
        found = prepare(section, tiny_tokenizer(), seed=0, cache_dir=cache, kind=kind)
        assert [getattr(r, "answers", (r,)).__len__() for r in found.train] == [size] * 3
