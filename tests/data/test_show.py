"""What is shown is what is trained on: ids, labels, positions and documents of the very examples the trainer gets."""

import io
import json

import pytest

from luthier.data.batch import collate
from luthier.data.branches import collate_branched
from luthier.data.prepare import prepare
from luthier.data.show import IGNORED, packed_records, row_records, row_text, show_rows
from luthier.data.types import Example, RowRef
from luthier.recipe.schema import DataSection
from tests.data.preferring import pairs
from tests.data.preferring import prepared as prepared_pairs
from tests.support.tiny import conversations, tiny_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in conversations(12)))
    section = DataSection(train=[{"path": str(path)}], max_length=128)
    return prepare(section, tiny_tokenizer(), seed=0, template_kwargs={}, cache_dir=None)


def test_rows_show_ids_labels_positions_and_trained_text(prepared):
    tokenizer = tiny_tokenizer()
    records = row_records(prepared, tokenizer, start=2, count=3)
    assert [record["row"] for record in records] == [2, 3, 4]
    assert json.loads(json.dumps(records)) == records
    for record, example in zip(records, prepared.train[2:5], strict=True):
        assert record["ids"] == list(example.ids) and record["positions"] == list(range(len(example)))
        assert record["labels"] == [t if w else IGNORED for t, w in zip(example.ids, example.weights, strict=True)]
        assert record["document"] == [0] * len(example) and record["refs"] == [str(example.ref)]
        assert record["trained_text"][0].endswith("<|im_end|>") and "<|im_start|>" not in record["trained_text"][0]
        assert "".join(record["texts"]) == tokenizer.decode(example.ids)


def test_packs_show_what_collate_gives_the_trainer(prepared):
    for record, item in zip(packed_records(prepared, tiny_tokenizer(), count=99), prepared.packs, strict=True):
        batch = collate([prepared.train[row] for row in item.examples])
        assert record["rows"] == list(item.examples)
        assert record["ids"] == batch.input_ids.tolist() and record["positions"] == batch.position_ids.tolist()
        assert record["document"] == batch.doc_ids.tolist()
        trained = [place for place, label in enumerate(record["labels"]) if label != IGNORED]
        assert trained == (batch.source_index + 1).tolist()
        assert [record["labels"][place] for place in trained] == batch.target_ids.tolist()


def test_characters_of_several_tokens_are_shown_once():
    tokenizer = tiny_tokenizer()
    text = "👍🏽 漢字 é\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    example = Example(ids=ids, weights=[0.0] * len(ids), ref=RowRef("f", 1))
    texts = show_rows([example], tokenizer)[0]["texts"]
    assert len(texts) == len(ids) and "".join(texts) == text


def test_colours_name_what_is_trained_and_data_is_never_markup():
    from rich.console import Console

    tokenizer = tiny_tokenizer()
    ids = tokenizer("[red]x[/] \x1b[31m", add_special_tokens=False)["input_ids"] + [2]
    example = Example(
        ids=ids, weights=[0.0] * (len(ids) - 2) + [1.0, 0.5], ref=RowRef("f.jsonl", 9), notes=("boundary split",)
    )
    text = row_text(show_rows([example], tokenizer)[0])
    assert "[red]x[/] ␛[31m<|im_end|>" in text.plain and "\x1b" not in text.plain
    assert f"-- f.jsonl:9: {len(ids)} tokens, 2 trained  (boundary split)" in text.plain
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["<|im_end|>"] == "bold green underline"
    stream = io.StringIO()
    Console(file=stream, force_terminal=False, width=200).print(text)
    assert "[red]x" in stream.getvalue()


def test_untrained_control_tokens_are_shown_as_special(prepared):
    record = row_records(prepared, tiny_tokenizer(), count=1)[0]
    kinds = dict(zip(record["texts"], record["kinds"], strict=True))
    assert kinds["<|im_start|>"] == "special"
    assert record["kinds"][-2:] == ["trained", "context"]  # the end of turn, then the line feed behind it


# --- preferences --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    rows = [{**row, "margin": 0.5} for row in pairs(12)]
    return prepared_pairs(tmp_path_factory.mktemp("pairs"), rows, max_length=64)


def test_pairs_show_what_collate_gives_the_trainer(preferences):
    assert len(preferences.packs) < 12
    for record, item in zip(packed_records(preferences, tiny_tokenizer(), count=99), preferences.packs, strict=True):
        batch = collate_branched([preferences.train[row] for row in item.examples])
        assert json.loads(json.dumps(record)) == record
        assert record["ids"] == batch.input_ids.tolist() and record["positions"] == batch.position_ids.tolist()
        assert record["document"] == batch.doc_ids.tolist() and record["refs"] == [str(ref) for ref in batch.refs]
        labels = [label for label in record["labels"] if label != IGNORED]
        assert labels == batch.target_ids.tolist()
        assert [row["documents"] for row in record["rows_of"]] == [["chosen", "rejected"]] * len(item.examples)
        assert [row["margin"] for row in record["rows_of"]] == [0.5] * len(item.examples)


def test_parts_and_kinds_of_a_pair_and_its_colours(preferences):
    record = row_records(preferences, tiny_tokenizer(), count=1)[0]
    row = preferences.train[0]
    assert record["parts"] == (
        ["prompt"] * len(row.prompt) + ["chosen"] * len(row.answers[0]) + ["rejected"] * len(row.answers[1])
    )
    assert all(text.endswith("<|im_end|>") for text in record["trained_text"])
    text = row_text(record)
    assert f"-- {row.ref}: {len(row)} tokens, {row.trained_tokens} trained  (margin 0.5)\nprompt (" in text.plain
    assert text.plain.index("\nchosen (") < text.plain.index("\nrejected (")
    styles = [str(span.style) for span in text.spans]
    counts = [record["kinds"].count(kind) for kind in ("chosen", "rejected")]
    assert [styles.count("bold green"), styles.count("bold red")] == counts
    assert styles.count("dim dim cyan") + styles.count("dim") == len(row.prompt)


def test_the_first_row_of_a_pack_has_its_own_headline(preferences):
    record = packed_records(preferences, tiny_tokenizer(), count=1)[0]
    lines = [line for line in row_text(record).plain.splitlines() if line.startswith("-- ")]
    rows = [preferences.train[row] for row in record["rows"]]
    assert lines == [f"-- {row.ref}: {len(row)} tokens, {row.trained_tokens} trained  (margin 0.5)" for row in rows]


@pytest.mark.parametrize(("label", "word", "colour"), [(True, "desired", "green"), (False, "not desired", "red")])
def test_a_rated_answer_says_whether_it_is_desired(tmp_path, label, word, colour):
    found = prepared_pairs(tmp_path, [{"prompt": "day", "completion": "night", "label": label}], kind="rated")
    record = row_records(found, tiny_tokenizer())[0]
    text = row_text(record)
    assert text.plain.splitlines()[0].endswith(f"trained  ({word})")
    assert f"bold {colour}" in {str(span.style) for span in text.spans}
    assert record["rows_of"] == [
        {"ref": record["refs"][0], "label": label, "margin": None, "documents": ["chosen" if label else "rejected"]}
    ]
