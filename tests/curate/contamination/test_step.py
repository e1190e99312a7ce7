"""`data.decontaminate` in a recipe: report, drop, refuse; the quick look that only warns; the cache; the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.curate.apply import curator
from luthier.curate.contamination import step
from luthier.curate.contamination.step import EvaluationSet
from luthier.data.prepare import Prepared, prepare
from luthier.recipe.schema import DataSection
from luthier.report.loss_view import compared_with
from luthier.runtime.errors import DataError, RecipeError
from tests.curate.contamination.support import clean, evaluation, hand
from tests.data.reading import write
from tests.support.tiny import tiny_tokenizer


def line(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Clean rows with a copy (line 2), a rewording (4) and a problem with other numbers (6) among them."""
    rows = [line(*(str(message["content"]) for message in one.messages)) for one in clean()[:20]]
    copied = evaluation()[0].messages
    light = next(item for item in hand() if item["kind"] == "light")
    variant = (
        next(item for item in hand() if item["test_line"] == 605)["original"]
        .replace("$8", "$13")
        .replace("$100", "$250")
    )
    rows.insert(1, line(copied[0]["content"], copied[1]["content"]))
    rows.insert(3, line(light["question"], light["answer"]))
    rows.insert(5, line(variant, "13 + 26 + 104 = 143\n250 - 143 = 107\n#### 107"))
    write(tmp_path / "train.jsonl", rows)
    write(
        tmp_path / "test.jsonl", [line(*(str(message["content"]) for message in one.messages)) for one in evaluation()]
    )
    return tmp_path


def section(folder: Path, **keys: Any) -> DataSection:
    return DataSection.model_validate({"train": [{"path": str(folder / "train.jsonl")}], "max_length": 4096, **keys})


def run(data: DataSection, *, tasks: bool = False, cache_dir: Path | None = None) -> Prepared:
    evaluate = (lambda: [EvaluationSet("mine", evaluation())]) if tasks else None
    return prepare(data, tiny_tokenizer(), seed=0, curate=curator(data, cache_dir=cache_dir, evaluation=evaluate))


def against(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"against": [{"path": str(folder / "test.jsonl")}], **keys}


def records(prepared: Prepared) -> dict[int, str]:
    assert prepared.curated is not None
    return {record["line"]: record["verdict"] for record in prepared.curated.records}


FOUND = {2: "copy", 4: "copy", 6: "variant"}


def test_a_report_drops_nothing(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = run(section(files, decontaminate=against(files)))
    assert len(prepared.train) == 23
    assert {place: word if word == "variant" else "copy" for place, word in records(prepared).items()} == FOUND
    told = json.loads(json.dumps(prepared.manifest["curated"]["decontaminate"]))
    assert told["dropped"] == 0 and told["rows"] == told["of_rows"] == 23 and sum(told["found"].values()) == 3
    assert told["against"] == [{"name": str(files / "test.jsonl"), "rows": len(evaluation())}]
    assert prepared.losses == [], "what is only reported is not lost"
    assert "training rows give evaluation rows away" in capfd.readouterr().err


def test_drop_leaves_variants_unless_told(files: Path) -> None:
    prepared = run(section(files, decontaminate=against(files, action="drop")))
    assert [row.ref.line for row in prepared.train] == [1, 3, *range(5, 24)]
    assert prepared.manifest["dropped"] == {"contaminated": 2}
    assert sorted(records(prepared)) == [2, 4, 6]
    details = [item["detail"] for item in prepared.manifest["dropped_rows"]]
    assert all(text.startswith("contaminated: ") and "test.jsonl:" in text for text in details)
    assert [(one["reason"], one["stage"], one["line"]) for one in prepared.losses] == [
        ("contaminated", "decontaminate", 2), ("contaminated", "decontaminate", 4),
    ]  # fmt: skip
    every = run(section(files, decontaminate=against(files, action="drop", variants=True)))
    assert every.manifest["dropped"] == {"contaminated": 3}


def test_error_names_every_row(files: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(section(files, decontaminate=against(files, action="error")))
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("D260", 2), ("D260", 4)]


def test_tasks_are_looked_for_unasked_and_only_warned_of(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = run(section(files), tasks=True)
    said = capfd.readouterr().err
    assert len(prepared.train) == 23 and "data.decontaminate" in said and "2 training rows" in said.replace("\n", " ")
    assert prepared.manifest["curated"]["decontaminate"]["against"][0]["name"] == "mine"
    clean_rows = files / "train.jsonl"
    kept = [text for place, text in enumerate(clean_rows.read_text("utf-8").splitlines()) if place not in {1, 3, 5}]
    clean_rows.write_text("\n".join(kept), "utf-8")
    assert run(section(files), tasks=True).curated is not None
    assert "evaluation" not in capfd.readouterr().err


def test_off_and_nothing_to_look_for(files: Path) -> None:
    assert run(section(files, decontaminate={"action": "off"}), tasks=True).curated is None
    assert run(section(files)).curated is None


def test_the_validation_file_counts(files: Path) -> None:
    prepared = run(section(files, validation={"path": str(files / "test.jsonl")}, decontaminate={"action": "drop"}))
    assert prepared.manifest["dropped"] == {"contaminated": 2}


def test_rows_beyond_a_limit_are_said_not_to_be_looked_for(files: Path) -> None:
    data = section(files, decontaminate={})
    limited = curator(data, evaluation=lambda: [EvaluationSet("mine", evaluation()[:5], 5)])
    told = prepare(data, tiny_tokenizer(), seed=0, curate=limited).manifest["curated"]["decontaminate"]
    assert told["against"] == [{"name": "mine", "rows": 5, "limit": 5}]
    assert compared_with(told) == "5 evaluation rows, only the first of mine (limit: 5)"
    path = str(files / "test.jsonl")
    kept = run(section(files, validation={"path": path, "max_rows": 4}, decontaminate={}))
    assert kept.manifest["curated"]["decontaminate"]["against"] == [{"name": path, "rows": 4, "limit": 4}]
    whole = run(data, tasks=True).manifest["curated"]["decontaminate"]
    assert compared_with(whole) == f"{len(evaluation())} evaluation rows"


def test_the_quick_look_is_spread_over_the_rows(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_QUICK_ROWS", 12)
    told = run(section(files), tasks=True).manifest["curated"]["decontaminate"]
    assert (told["rows"], told["of_rows"]) == (12, 23)
    monkeypatch.setattr(step, "_QUICK_ROWS", 23)
    monkeypatch.setattr(step, "_QUICK_AGAINST", 10)
    prepared = run(section(files), tasks=True)
    told = prepared.manifest["curated"]["decontaminate"]
    every = -(-len(evaluation()) // 10)
    assert told["against_rows"] == len(evaluation()[::every])
    assert compared_with(told) == f"{told['against_rows']} of {len(evaluation())} evaluation rows"
    assert prepared.curated is not None
    lines = {str(row.ref) for row in evaluation()[::every]}
    assert all(record["evaluation_row"] in lines for record in prepared.curated.records)


def test_the_cache_is_used_for_the_same_rows_and_settings_only(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    search = step.decontaminate
    monkeypatch.setattr(step, "decontaminate", lambda *given, **keys: calls.append(1) or search(*given, **keys))
    first = run(section(files, decontaminate=against(files)), cache_dir=files / "cache")
    again = run(section(files, decontaminate=against(files, action="drop")), cache_dir=files / "cache")
    assert len(calls) == 1 and first.curated is not None and again.curated is not None
    seen, gone = ([*found.curated.records] for found in (first, again) if found.curated)
    assert {one["dropped"] for one in seen} == {False} and True in {one["dropped"] for one in gone}
    same = [sorted(str({**one, "dropped": None}) for one in records) for records in (seen, gone)]
    assert same[0] == same[1]
    run(section(files, decontaminate=against(files, ngram=0.4)), cache_dir=files / "cache")
    assert len(calls) == 2
    (files / "test.jsonl").write_text(json.dumps(line("Who is there tonight?", "nobody")), "utf-8")
    run(section(files, decontaminate=against(files)), cache_dir=files / "cache")
    assert len(calls) == 3


def test_tasks_that_cannot_be_read(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[EvaluationSet]:
        raise RecipeError(code="E510", message="task `x`: no rows")

    data = section(files)
    prepare(data, tiny_tokenizer(), seed=0, curate=curator(data, evaluation=broken))
    assert "not checked against the evaluation" in capfd.readouterr().err.replace("\n", " ")
    asked = section(files, decontaminate={})
    with pytest.raises(RecipeError):
        prepare(asked, tiny_tokenizer(), seed=0, curate=curator(asked, evaluation=broken))


def test_a_bad_file_is_told(files: Path) -> None:
    with pytest.raises(DataError):
        run(section(files, decontaminate={"against": [{"path": str(files / "none.jsonl")}]}))
