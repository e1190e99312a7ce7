"""Contract: every row read is used, held out or dropped, for each source; changes are counted apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.curate.apply import curator
from luthier.data.losses import account, loss_lines, note_records
from luthier.data.prepare import Prepared, prepare
from luthier.data.sources import SourceResult
from luthier.data.types import Dropped, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError, RunFailed
from tests.data.reading import write
from tests.support.often import often
from tests.support.tiny import WORDS, tiny_tokenizer

ANSWERS = [
    "I'm sorry, but I can't help with that.",
    "write to a@b.com",
    "the caf\u00c3\u00a9",
    "and the",
    " trimmed ",
    "yes",
]


def run(section: DataSection, kind: Any = "tokens", seed: int = 0) -> Prepared:
    tokenizer = tiny_tokenizer()
    return prepare(section, tokenizer, seed=seed, kind=kind, curate=curator(section, tokenizer=tokenizer))


def assert_adds_up(prepared: Prepared, files: list[Path], *, split: bool = False) -> None:
    """Counted from the files and from the rows themselves, not from the summary."""
    losses = prepared.manifest["losses"]
    dropped = [record for record in prepared.losses if "reason" in record]
    used = {id(row): row for row in prepared.train}.values()
    for index, (file, told) in enumerate(zip(files, losses["sources"], strict=True)):
        lines = sum(1 for text in file.read_text("utf-8").splitlines() if text.strip())
        own = [record for record in dropped if record["source"] == index]
        to_train = sum(1 for row in used if row.ref.source == index)
        held_out = sum(1 for row in prepared.validation if row.ref.source == index)
        rows = lines + told["pairs_split"]
        assert split or told["pairs_split"] == 0
        assert rows == to_train + held_out + len(own)
        assert told["rows_read"] == lines
        assert (told["used"], told["validation"], sum(told["dropped"].values())) == (to_train, held_out, len(own))
        # Each line of the file is somewhere: used, held out or listed.
        seen = {row.ref.line for row in (*used, *prepared.validation) if row.ref.source == index}
        assert seen | {record["line"] for record in own} == set(range(1, lines + 1))
    assert Counter(record["reason"] for record in dropped) == Counter(prepared.manifest["dropped"])
    assert sum(n for stages in losses["changed"].values() for n in stages.values()) == len(prepared.losses) - len(
        dropped
    )
    gone = Counter((r["source"], r["line"]) for r in dropped)
    changed = {(r["source"], r["line"]) for r in prepared.losses if "changed" in r}
    assert split or not changed & set(gone)
    assert all(record["detail"] and record["file"] for record in prepared.losses)


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    question = " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)))
    answer = draw(st.sampled_from(["", *ANSWERS])) or " ".join(draw(st.lists(st.sampled_from(WORDS), max_size=30)))
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@st.composite
def pairs(draw: st.DrawFn) -> dict[str, Any]:
    texts = st.one_of(st.sampled_from(ANSWERS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join))
    return {"prompt": draw(st.sampled_from(WORDS)), "chosen": draw(texts), "rejected": draw(texts)}


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "encoding": st.sampled_from([{}, {"action": "drop"}]), "pii": st.sampled_from([{}, {"action": "drop"}]),
        "refusals": st.just({}), "endings": st.just({}), "echo": st.just({}), "repetition": st.just({}),
        "boilerplate": st.just({"ending_rows": 2}), "length": st.just({"unit": "words", "max_answer": 12}),
    },
).filter(bool)  # fmt: skip
KEYS = st.fixed_dictionaries(
    {"on_empty": st.just("drop"), "overlong": st.sampled_from(["drop", "truncate"]), "packing": st.booleans(),
     "max_length": st.sampled_from([24, 40, 200])},
    optional={"dedup": st.sampled_from([{}, {"fuzzy": 0.6}]), "filters": FILTERS},
)  # fmt: skip


def recipe(folder: Path, sources: list[list[dict[str, Any]]], draw: Any) -> tuple[DataSection, list[Path]]:
    files = [write(folder / f"{n}.jsonl", rows) for n, rows in enumerate(sources)]
    train = [{"path": str(file), "weight": draw(st.sampled_from([1.0, 0.5, 2.0, 1.5]))} for file in files]
    keys = draw(KEYS)
    how = draw(st.sampled_from(["none", "fraction", "path"]))
    if how == "path" and len(train) > 1:
        keys["validation"] = {"path": train.pop()["path"]}
    elif how == "fraction":
        keys["validation"] = {"fraction": 0.3}
    return DataSection.model_validate({"train": train, **keys}), files


@settings(max_examples=often(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rows_add_up_for_any_recipe(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sources = data.draw(st.lists(st.lists(chats(), min_size=1, max_size=12), min_size=1, max_size=3))
    section, files = recipe(tmp_path_factory.mktemp("rows"), sources, data.draw)
    try:
        prepared = run(section)
    except DataError as error:  # nothing left to train on, or nothing to hold out: said, not silent
        assert error.problems[0].code in {"D225", "D215"}, error
        return
    assert_adds_up(prepared, files)


@settings(max_examples=often(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), kind=st.sampled_from(["pairs", "rated"]))
def test_preferences_add_up_and_pairs_read_as_rated_answers_are_two_rows(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sources = data.draw(st.lists(st.lists(pairs(), min_size=1, max_size=8), min_size=1, max_size=2))
    section, files = recipe(tmp_path_factory.mktemp("rows"), sources, data.draw)
    try:
        prepared = run(section, kind)
    except DataError as error:
        assert error.problems[0].code in {"D225", "D215"}, error
        return
    assert_adds_up(prepared, files, split=kind == "rated")
    if kind == "rated":
        for rows, told in zip(sources, prepared.manifest["losses"]["sources"], strict=True):
            different = sum(1 for row in rows if row["chosen"] != row["rejected"])
            assert told["pairs_split"] == different  # a pair of equal answers is dropped as one row


def test_a_row_that_vanishes_is_a_fault() -> None:
    result = SourceResult(
        path="a.jsonl", conversations=[], dropped=[], format="messages", verdict="", hash="", rows=3, notes=()
    )
    refs = [RowRef("a.jsonl", n) for n in (1, 2, 3)]
    gone = [Dropped(ref, "empty", "nothing") for ref in refs]
    result = SourceResult(**{**{name: getattr(result, name) for name in result.__dataclass_fields__}, "dropped": gone})
    told = account([result], used=[], held_out=[], dropped=gone, full={}, changes=[])
    assert told.summary["sources"][0]["dropped"] == {"empty": 3}
    with pytest.raises(RunFailed) as caught:
        account([result], used=[], held_out=[], dropped=gone[:2], full={}, changes=[])
    assert caught.value.problems[0].code == "D257" and "3 rows read" in caught.value.problems[0].message


def test_cut_and_altered_rows_are_changes_and_other_notes_are_none(tmp_path: Path) -> None:
    notes = ["truncated 1310 -> 1024", "template trims whitespace", "tokenizer normalizes Unicode (NFC)",
             "boundary split", "control tokens in the data kept as text"]  # fmt: skip
    assert [(r["changed"], r["detail"]) for r in note_records(RowRef("a", 1), notes)] == [
        ("cut", notes[0]), ("template", notes[1]), ("template", notes[2]),
    ]  # fmt: skip
    long = " ".join(WORDS[:10] * 5)
    file = write(tmp_path / "a.jsonl", [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]} for text in (long, "b")
    ])  # fmt: skip
    section = DataSection.model_validate({"train": [{"path": str(file)}], "max_length": 40, "overlong": "truncate"})
    prepared = run(section)
    assert [(r["line"], r["changed"]) for r in prepared.losses] == [(1, "cut")]
    assert prepared.manifest["losses"]["changed"] == {"cut": {"": 1}}
    assert loss_lines(prepared.manifest)[0] == "changed, cut: 1"
    assert json.loads(json.dumps(prepared.manifest["losses"])) == prepared.manifest["losses"]


def test_lines_say_each_reason_stage_and_source(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]} for text in ANSWERS
    ]
    file = write(tmp_path / "a.jsonl", rows)
    section = DataSection.model_validate(
        {"train": [{"path": str(file)}], "max_length": 200, "filters": {"encoding": {}, "refusals": {}, "endings": {}}}
    )
    lines = loss_lines(run(section).manifest)
    assert "dropped, filtered, refusals: 1" in lines and "changed, fixed, encoding: 1" in lines
    assert f"{file}: 6 rows = 5 to train + 0 to validate + 1 dropped (1 filtered); changed: 1 fixed" in lines
