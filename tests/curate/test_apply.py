"""`data.dedup` in a recipe: across sources, before the split, in the manifest, in the run folder, in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.curate import apply
from luthier.curate.apply import curator
from luthier.curate.scores import read_scores
from luthier.data.prepare import Prepared, prepare
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.errors import DataError
from tests.curate.support import THEMES
from tests.data.reading import write
from tests.support.tiny import tiny_tokenizer


def line(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two sources: the second repeats a row of the first as it is, one in capitals, one with a word more."""
    write(tmp_path / "a.jsonl", [line(THEMES[0]), line(THEMES[1]), line(THEMES[2])])
    write(tmp_path / "b.jsonl", [line(THEMES[3]), line(THEMES[0]), line(THEMES[1].upper()), line(THEMES[2] + " now")])
    return tmp_path


def section(folder: Path, **keys: Any) -> DataSection:
    train = [{"path": str(folder / name)} for name in ("a.jsonl", "b.jsonl")]
    return DataSection.model_validate({"train": train, "max_length": 128, **keys})


def run(data: DataSection, *, cache_dir: Path | None = None) -> Prepared:
    curate = curator(data, cache_dir=cache_dir / "dedup" if cache_dir else None)
    return prepare(data, tiny_tokenizer(), seed=0, cache_dir=cache_dir, curate=curate)


def refs(prepared: Prepared) -> list[str]:
    return [f"{Path(row.ref.file).name}:{row.ref.line}" for row in prepared.train]


def test_sources_are_compared_in_order_and_every_dropped_row_is_named(files: Path) -> None:
    prepared = run(section(files, dedup={}))
    assert refs(prepared) == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]
    manifest = json.loads(json.dumps(prepared.manifest))
    assert (manifest["rows_read"], manifest["rows_used"], manifest["dropped"]) == (7, 4, {"duplicate": 3})
    details = [item["detail"].replace(f"{files}/", "") for item in manifest["dropped_rows"]]
    assert details[:2] == ["exact: says the same as a.jsonl:1", "exact: says the same as a.jsonl:2"]
    assert details[2].startswith("fuzzy: is 0.9") and details[2].endswith("similar to a.jsonl:3")
    told = manifest["curated"]["dedup"]
    assert told["dropped"] == {"exact": 2, "fuzzy": 1} and told["kept"] == 4
    assert told["settings"]["fuzzy"] == 0.8 and told["settings"]["on"] == "conversation"
    assert prepared.curated is not None
    assert [(Path(r["file"]).name, r["line"], r["stage"]) for r in prepared.curated.records] == [
        ("b.jsonl", 2, "exact"), ("b.jsonl", 3, "exact"), ("b.jsonl", 4, "fuzzy"),
    ]  # fmt: skip


def test_off_unless_asked_for(files: Path) -> None:
    prepared = run(section(files))
    assert len(prepared.train) == 7 and prepared.curated is None and "curated" not in prepared.manifest
    assert prepared.manifest["duplicates"] == 1  # counted all the same


def test_tokens_and_decisions_come_from_the_cache_only_for_the_same_settings(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = files / "cache"
    first = run(section(files, dedup={}), cache_dir=cache)
    calls: list[int] = []
    search = apply.deduplicate
    monkeypatch.setattr(apply, "deduplicate", lambda *given, **keys: calls.append(1) or search(*given, **keys))
    again = run(section(files, dedup={}), cache_dir=cache)
    assert calls == [] and again.manifest["cache"] == "hit" and refs(again) == refs(first)
    assert again.curated is not None and first.curated is not None
    assert again.curated.records == first.curated.records
    other = run(section(files, dedup={"fuzzy": None}), cache_dir=cache)
    assert calls == [1] and refs(other) == [*refs(first), "b.jsonl:4"]
    assert other.manifest["cache"].startswith("miss")
    whole = run(section(files), cache_dir=cache)
    assert len(whole.train) == 7
    write(files / "b.jsonl", [line(THEMES[4])])
    assert refs(run(section(files, dedup={}), cache_dir=cache))[-1] == "b.jsonl:1" and len(calls) == 2


def test_as_many_other_rows_do_not_get_the_tokens_of_those_before(files: Path) -> None:
    cache, tokenizer = files / "cache", tiny_tokenizer()
    for keep, ending in (("first", "from it"), ("longest", "from it now")):
        prepared = run(section(files, dedup={"keep": keep}), cache_dir=cache)
        assert len(prepared.train) == 4 and prepared.manifest["cache"].startswith("miss")
        texts = [tokenizer.decode(row.ids) for row in prepared.train]
        assert any(f"{ending}<|im_end|>" in text for text in texts), texts


def test_a_damaged_entry_is_found_again(files: Path) -> None:
    cache = files / "cache"
    first = run(section(files, dedup={}), cache_dir=cache)
    (entry,) = (cache / "dedup").glob("*.json")
    entry.write_text(entry.read_text("utf-8").replace('"kept": [', '"kept": [6, ', 1))
    assert refs(run(section(files, dedup={}), cache_dir=cache)) == refs(first)
    entry.write_text("{")
    assert refs(run(section(files, dedup={}), cache_dir=cache)) == refs(first)


def test_the_row_with_the_highest_score_stays(files: Path) -> None:
    write(files / "a.jsonl", [line(THEMES[0], meta={"score": 1}), line(THEMES[1], meta={"score": 5})])
    write(files / "b.jsonl", [line(THEMES[0], meta={"score": 2.5}), line(THEMES[1], meta={"score": "4"})])
    dedup = {"keep": "score", "score": "meta.score"}
    assert refs(run(section(files, dedup=dedup))) == ["a.jsonl:2", "b.jsonl:1"]
    cache = files / "cache"
    assert refs(run(section(files, dedup=dedup), cache_dir=cache)) == ["a.jsonl:2", "b.jsonl:1"]
    write(files / "a.jsonl", [line(THEMES[0], meta={"score": 3}), line(THEMES[1], meta={"score": 5})])
    assert refs(run(section(files, dedup=dedup), cache_dir=cache)) == ["a.jsonl:1", "a.jsonl:2"]


def test_every_row_without_a_score_is_told(files: Path) -> None:
    write(
        files / "a.jsonl", [line(THEMES[0], s=1), line(THEMES[1]), line(THEMES[2], s=True), line(THEMES[3], s="high")]
    )
    with pytest.raises(DataError) as caught:
        read_scores([Source(path=str(files / "a.jsonl"))], "s")
    assert [(p.code, p.line) for p in caught.value.problems] == [("D231", 2), ("D231", 3), ("D231", 4)]
    write(files / "b.jsonl", [line(THEMES[number % 4]) for number in range(1500)])
    with pytest.raises(DataError) as caught:
        read_scores([Source(path=str(files / name)) for name in ("a.jsonl", "b.jsonl")], "s")
    assert [p.line for p in caught.value.problems] == [2, 3, 4, None] and caught.value.total == 4
    assert "none of the 1,500 rows has the column `s`" in caught.value.problems[3].message
    (files / "c.json").write_text(json.dumps([line("a", s=1), line("b", s=2)]))
    with pytest.raises(DataError, match="several rows begin on this line"):
        read_scores([Source(path=str(files / "c.json"))], "s")


def test_a_run_keeps_the_list_and_a_later_one_without_the_step_removes_it(files: Path) -> None:
    from luthier.pipeline.run import run_recipe
    from luthier.recipe.load import recipe_from_dict
    from tests.support.tiny import save_tiny

    save_tiny(files / "model")

    def go(**data: Any) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
        sources = [{"path": str(files / name)} for name in ("a.jsonl", "b.jsonl")]
        value = {
            "model": {"name_or_path": str(files / "model"), "dtype": "float32"},
            "data": {"train": sources, "max_length": 128, **data},
            "output_dir": str(files / "run"),
        }
        run_recipe(recipe_from_dict(value, origin="test"), only=("data",))
        file = files / "run" / "data" / "losses.jsonl"
        manifest = json.loads((files / "run" / "data" / "manifest.json").read_text("utf-8"))
        return manifest, [json.loads(text) for text in file.read_text("utf-8").splitlines()] if file.exists() else None

    manifest, listed = go(dedup={})
    assert manifest["dropped"] == {"duplicate": 3} and listed is not None and len(listed) == 3
    assert {record["duplicate_of"] for record in listed} == {str(files / f"a.jsonl:{number}") for number in (1, 2, 3)}
    manifest, listed = go()
    assert manifest["dropped"] == {} and listed == []
