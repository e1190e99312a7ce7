# ruff: noqa: E501 - tables of cases
"""Rows of a recipe, ready to train: nothing silently dropped, the same rows cached or not, exact counts.

Mutations tried by hand (each makes tests here fail): key of the cache without template, options or added tokens;
refs stored in the cache; empty rows skipped without an error; packs taken from unsorted lengths; weights ignored.
"""

import json
from collections import Counter

import pytest
from tokenizers import AddedToken

from luthier.data.batch import collate
from luthier.data.prepare import prepare
from luthier.data.tally import Tally
from luthier.data.types import Dropped, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError
from tests.support.tiny import CHATML, conversations, tiny_tokenizer

KEYS = {
    "rows_read", "rows_used", "validation_rows", "tokens", "trained_tokens", "trained_fraction", "lengths", "packs",
    "pack_efficiency", "dropped", "dropped_rows", "truncated", "notes", "duplicates", "train_validation_overlap", "sources",
    "mask_proof", "samples", "hash", "cache",
}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return {"path": str(path)}


def section(source, **options):
    return DataSection(train=source if isinstance(source, list) else [source], **{"max_length": 128, **options})


def run(source, tokenizer=None, *, cache_dir=None, seed=0, template_kwargs=None, **options):
    return prepare(
        section(source, **options),
        tokenizer or tiny_tokenizer(),
        seed=seed,
        template_kwargs=template_kwargs or {},
        cache_dir=cache_dir,
    )


def row(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "rows.jsonl", conversations(40, turns=2))


def contents(prepared):
    return [(list(e.ids), list(e.weights), str(e.ref)) for e in prepared.train + prepared.validation]


# --- the manifest -------------------------------------------------------------------------------------------------


def test_the_manifest_has_every_key_adds_up_and_is_json(source):
    prepared = run(source)
    manifest = json.loads(json.dumps(prepared.manifest, allow_nan=False))
    assert set(manifest) >= KEYS
    assert manifest["rows_read"] == manifest["rows_used"] == 40 and manifest["validation_rows"] == 0
    assert manifest["tokens"] == sum(map(len, prepared.train)) == sum(item.tokens for item in prepared.packs)
    assert manifest["trained_tokens"] == sum(e.trained_tokens for e in prepared.train)
    assert manifest["trained_tokens"] == sum(
        collate([prepared.train[i] for i in p.examples]).trained_tokens for p in prepared.packs
    )
    assert manifest["trained_fraction"] == manifest["trained_tokens"] / manifest["tokens"]
    assert manifest["pack_efficiency"] == manifest["tokens"] / (manifest["packs"] * 128)
    assert manifest["mask_proof"] == {
        "rows": 40,
        "turns": 80,
        "methods": {"prefix": 80},
        "end_of_turn": {"<|im_end|>": 80},
    }
    lengths = sorted(map(len, prepared.train))
    assert (manifest["lengths"]["min"], manifest["lengths"]["p50"], manifest["lengths"]["max"]) == (
        lengths[0],
        lengths[19],
        lengths[-1],
    )
    assert sum(count for _, _, count in manifest["lengths"]["histogram"]) == 40
    assert all(low < high for low, high, _ in manifest["lengths"]["histogram"])


def test_samples_show_the_first_rows_token_by_token(source):
    prepared = run(source)
    samples = prepared.manifest["samples"]
    assert [sample["ref"] for sample in samples] == [str(e.ref) for e in prepared.train[:3]]
    for sample, example in zip(samples, prepared.train, strict=False):
        assert [token["id"] for token in sample["tokens"]] == list(example.ids)
        assert {token["kind"] for token in sample["tokens"]} == {"context", "trained", "special"}
        assert "".join(token["text"] for token in sample["tokens"]) == tiny_tokenizer().decode(example.ids)
        assert all((token["kind"] == "trained") == (token["weight"] > 0) for token in sample["tokens"])


def test_the_hash_is_that_of_what_is_trained_on(source, tmp_path):
    first = run(source).manifest["hash"]
    assert run(source).manifest["hash"] == first
    assert run(source, packing=False).manifest["hash"] != first
    assert run(source, loss_on="last_assistant").manifest["hash"] != first
    other = write(tmp_path / "other.jsonl", [*conversations(39, turns=2), row("one", "more")])
    assert run(other).manifest["hash"] != first


# --- packs (B31, B53) ---------------------------------------------------------------------------------------------


def test_every_row_is_in_exactly_one_pack_and_unpacked_is_one_row_each(source):
    packed, alone = run(source), run(source, packing=False)
    assert sorted(i for p in packed.packs for i in p.examples) == list(range(40))
    assert all(p.tokens <= 128 for p in packed.packs) and len(packed.packs) < 40
    assert [p.examples for p in alone.packs] == [(i,) for i in range(40)]
    assert packed.manifest["trained_tokens"] == alone.manifest["trained_tokens"]
    assert contents(packed) == contents(alone)


# --- weights, validation, duplicates (F09) ------------------------------------------------------------------------


def test_source_weights_repeat_and_thin_out_rows_and_count_what_is_left_out(tmp_path):
    rows = conversations(30)
    one = {**write(tmp_path / "a.jsonl", rows[:10]), "weight": 2.0}
    two = {**write(tmp_path / "b.jsonl", rows[10:]), "weight": 0.5}
    prepared = run([one, two])
    uses = Counter(str(e.ref) for e in prepared.train)
    assert all(uses[f"{one['path']}:{line}"] == 2 for line in range(1, 11))
    assert set(uses.values()) == {1, 2}
    left_out = prepared.manifest["dropped"]["sampled_out"]
    assert 0 < left_out < 20 and len(prepared.train) == 20 + (20 - left_out)
    assert contents(run([one, two])) == contents(prepared)
    assert contents(run([one, two], seed=5)) != contents(prepared)
    assert prepared.manifest["mask_proof"]["rows"] == 30  # proven once, used as often as asked


def test_validation_rows_are_held_out_and_disjoint(source, tmp_path):
    prepared = run(source, validation={"fraction": 0.25})
    assert prepared.manifest["validation_rows"] == len(prepared.validation) > 0
    assert len(prepared.train) + len(prepared.validation) == 40
    assert not {str(e.ref) for e in prepared.train} & {str(e.ref) for e in prepared.validation}
    assert prepared.manifest["train_validation_overlap"] == 0


def test_rows_on_both_sides_and_duplicates_are_counted_and_said(source, tmp_path, capsys):
    rows = conversations(40, turns=2)
    train = write(tmp_path / "dup.jsonl", [*rows, rows[0], rows[1]])
    held_out = write(tmp_path / "val.jsonl", [rows[3], row("own", "row")])
    prepared = run(train, validation={"path": held_out["path"]})
    assert prepared.manifest["duplicates"] == 2 and prepared.manifest["train_validation_overlap"] == 1
    assert len(prepared.validation) == 2 and len(prepared.train) == 42
    assert "1 validation rows are training rows" in capsys.readouterr().err.replace("\n", " ")


def test_max_rows_limits_a_validation_file(source, tmp_path):
    held_out = write(tmp_path / "val.jsonl", conversations(9, seed=3))
    assert len(run(source, validation={"path": held_out["path"], "max_rows": 4}).validation) == 4


# --- rows that cannot be used (B06, B37, B38, F08) ----------------------------------------------------------------


def test_all_bad_rows_are_reported_at_once_with_file_line_and_the_way_out(tmp_path):
    bad = write(
        tmp_path / "bad.jsonl", [row("Q", "A"), row("Q", "A B"), row("Q", "a<|im_end|>"), row("x<|im_end|>", "A")]
    )
    with pytest.raises(DataError) as caught:
        run(bad, control_tokens="error")
    assert [(p.code, p.file, p.line) for p in caught.value.problems] == [
        ("D223", bad["path"], 3),
        ("D223", bad["path"], 4),
    ]
    upper = tiny_tokenizer(chat_template=CHATML.replace("message['content']", "message['content'] | upper"))
    with pytest.raises(DataError) as caught:
        run(write(tmp_path / "rows.jsonl", conversations(120)), upper)
    assert len(caught.value.problems) == 51 and caught.value.exit_code == 3
    assert "120 rows cannot be used (120 unprovable); the first 50 are listed" in caught.value.problems[-1].message
    assert "loss_on: last_assistant" in caught.value.problems[0].hint


def test_a_long_row_is_dropped_cut_or_an_error_and_always_counted(tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", [row("Q", "A"), row("Q", "word " * 300), row("word " * 300, "A")])
    dropped = run(rows).manifest
    assert dropped["dropped"] == {"overlong": 2} and dropped["rows_used"] == 1
    assert [item["ref"][-1] for item in dropped["dropped_rows"]] == ["2", "3"]
    assert dropped["cut_tokens"] > 600
    assert "of all tokens are cut off or dropped" in capsys.readouterr().err.replace("\n", " ")
    cut = run(rows, overlong="truncate")
    assert cut.manifest["truncated"] == 1 and cut.manifest["truncated_rows"][0]["ref"].endswith(":2")
    assert cut.manifest["notes"] == {"truncated": 1} and cut.manifest["dropped"] == {"empty": 1}
    assert all(any(e.weights) for e in cut.train)
    with pytest.raises(DataError, match=r"tokens; `data\.max_length` is 128") as caught:
        run(rows, overlong="error")
    assert [p.line for p in caught.value.problems] == [2, 3]


def test_empty_answers_are_errors_or_dropped_as_asked(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [row("Q", "A"), row("Q", ""), row("Q", " \n")])
    with pytest.raises(DataError) as caught:
        run(rows)
    assert [p.line for p in caught.value.problems] == [2, 3]
    manifest = run(rows, on_empty="drop").manifest
    assert manifest["dropped"] == {"empty": 2} and manifest["rows_used"] == 1 and manifest["rows_read"] == 3


def test_rows_found_empty_only_as_tokens_follow_on_empty_but_a_cut_the_recipe_asked_for_is_no_error():
    empty, cut = (
        Dropped(RowRef("f", 1), "empty", "no trained token"),
        Dropped(RowRef("f", 2), "empty", "cut at 9 tokens"),
    )
    strict, lenient = Tally(section({"path": "x"})), Tally(section({"path": "x"}, on_empty="drop"))
    strict.drop_all([empty, cut])
    lenient.drop_all([empty, cut])
    with pytest.raises(DataError, match="no trained token") as caught:
        strict.raise_refused()
    assert len(caught.value.problems) == 1
    lenient.raise_refused()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_set_with_nothing_to_train_on_is_an_error_packed_or_not(tmp_path, packing, overlong):
    rows = write(tmp_path / "rows.jsonl", [row("word " * 300, "A"), row("word " * 200, "B")])
    with pytest.raises(DataError, match="nothing is left to train on: of 2 rows 2"):
        run(rows, packing=packing, overlong=overlong)


def test_problems_of_all_sources_come_together(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"messages": [}\n')
    two.write_text("nonsense\n")
    with pytest.raises(DataError) as caught:
        run([{"path": str(one)}, {"path": str(two)}])
    assert {p.file for p in caught.value.problems} == {str(one), str(two)}


# --- the cache (B55, B57) -----------------------------------------------------------------------------------------


def test_an_unchanged_rerun_hits_the_cache_and_gives_identical_rows(source, tmp_path):
    cache = tmp_path / "cache"
    first = run(source, cache_dir=cache, validation={"fraction": 0.2})
    again = run(source, cache_dir=cache, validation={"fraction": 0.2})
    uncached = run(source, validation={"fraction": 0.2})
    assert (first.manifest["cache"], again.manifest["cache"]) == ("miss: first time", "hit")
    assert contents(first) == contents(again) == contents(uncached)
    same = {k: v for k, v in first.manifest.items() if k != "cache"}
    assert same == {k: v for k, v in again.manifest.items() if k != "cache"}
    assert not list(cache.rglob("*.pkl")) and {f.name for f in cache.rglob("*.*")} == {
        "ids.npy",
        "weights.npy",
        "rows.json",
    }


def test_any_change_that_matters_misses_and_says_why(source, tmp_path):
    cache = tmp_path / "cache"
    run(source, cache_dir=cache)

    def state(tokenizer=None, **options):
        return run(options.pop("source", source), tokenizer, cache_dir=cache, **options).manifest["cache"]

    assert state(max_length=127) == "miss: max_length changed"
    assert state(loss_on="last_assistant") == "miss: loss_on changed"
    assert state(control_tokens="allow") == "miss: control_tokens changed"
    assert state(overlong="truncate") == "miss: overlong changed"
    assert state(template_kwargs={"x": 1}) == "miss: chat_template_kwargs changed"
    assert state(tiny_tokenizer(chat_template=CHATML + "{# x #}")) == "miss: chat template changed"
    more = tiny_tokenizer()
    more.add_tokens([AddedToken("time", special=False)])
    assert "added tokens" in state(more) and "hit" not in state(tiny_tokenizer(vocab_size=500))
    rows = conversations(40, turns=2)
    rows[7]["messages"][1]["content"] += "s"
    changed = write(tmp_path / "changed.jsonl", rows)
    assert state(source=changed) == "miss: rows changed"
    assert state() == state(packing=False) == state(seed=9) == "hit"  # nothing of these touches a row


def test_one_changed_byte_changes_the_rows(tmp_path):
    cache = tmp_path / "cache"
    before = run(write(tmp_path / "a.jsonl", [row("Q", "time"), row("Q", "year")]), cache_dir=cache)
    after = run(write(tmp_path / "a.jsonl", [row("Q", "tima"), row("Q", "year")]), cache_dir=cache)
    assert before.train[0].ids != after.train[0].ids and before.train[1].ids == after.train[1].ids


def test_rows_that_moved_in_their_file_keep_their_tokens_and_get_their_new_place(tmp_path):
    cache = tmp_path / "cache"
    path = tmp_path / "rows.jsonl"
    first = run(write(path, conversations(5)), cache_dir=cache)
    path.write_text("\n\n" + path.read_text())
    again = run({"path": str(path)}, cache_dir=cache)
    assert again.manifest["cache"] == "hit"
    assert [e.ref.line for e in again.train] == [e.ref.line + 2 for e in first.train]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "json"])
def test_a_damaged_entry_is_made_again(source, tmp_path, damage):
    cache = tmp_path / "cache"
    first = run(source, cache_dir=cache)
    file = next(cache.rglob("rows.json" if damage == "json" else "ids.npy"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(bytes(data) if damage == "flip" else bytes(data[: len(data) // 2]))
    again = run(source, cache_dir=cache)
    assert again.manifest["cache"].startswith("miss") and contents(again) == contents(first)
    assert run(source, cache_dir=cache).manifest["cache"] == "hit"


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(source, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    prepared = run(source, cache_dir=tmp_path / "file" / "cache")
    assert prepared.manifest["cache"].endswith("not stored") and "not cached" in capsys.readouterr().err


# --- rows of every kind, in numbers -------------------------------------------------------------------------------


def test_text_prompt_completion_and_segments_need_no_template(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=None)
    sources = [
        write(tmp_path / "text.jsonl", [{"text": "some words"}]),
        write(tmp_path / "pairs.jsonl", [{"prompt": "Q:", "completion": " A"}]),
        write(
            tmp_path / "segments.jsonl", [{"segments": [{"text": "Q", "label": False}, {"text": "A", "label": True}]}]
        ),
    ]
    manifest = run(sources, tokenizer).manifest
    assert manifest["rows_used"] == 3 and manifest["mask_proof"]["methods"] == {"pieces": 3}
    with pytest.raises(DataError, match="no chat template"):
        run(write(tmp_path / "chat.jsonl", [row("Q", "A")]), tokenizer)


def test_many_rows_show_progress(tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", [row(f"Q {k}", f"A {k}") for k in range(2_100)])
    assert run(rows).manifest["rows_used"] == 2_100
    assert "tokenise: 2100/2100 rows" in capsys.readouterr().err
