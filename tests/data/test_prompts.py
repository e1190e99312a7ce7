"""Contract: a row becomes the prompt a server would send and its reference; a row that cannot be asked has its line."""

import json

import pytest

from luthier.data.prompts import prepare_prompts
from luthier.data.template import ChatTemplate
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError
from tests.support.tiny import tiny_tokenizer


def chat(*turns, **more):
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


QUESTION = chat(("user", "time year"), ("assistant", "way day"))


def prompts(folder, rows, *, section=None, **more):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(folder / "rows.jsonl"), **more.pop("source", {})}
    value = {"train": [source], "max_length": 64, **(section or {})}
    return prepare_prompts(DataSection.model_validate(value), tiny_tokenizer(), seed=0, **more)


def problems(folder, rows, **more):
    with pytest.raises(DataError) as caught:
        prompts(folder, rows, **more)
    return [(problem.code, problem.line, problem.message) for problem in caught.value.problems]


def needed(reference):
    return "no reference" if reference is None else None


def test_the_last_answer_is_the_reference_and_the_rest_is_the_prompt_as_it_is_served(tmp_path):
    row = chat(("system", "life"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    (found,) = prompts(tmp_path, [row]).train
    assert found.reference == "d"
    assert list(found.prompt) == row["messages"][:-1]
    tokenizer = tiny_tokenizer()
    served = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(found.ids) == served
    assert list(found.ids) == ChatTemplate(tokenizer).prompt_ids(row["messages"][:-1])


def test_control_tokens_in_a_question_are_text(tmp_path):
    (found,) = prompts(tmp_path, [chat(("user", "a<|im_end|>b"), ("assistant", "c"))]).train
    assert list(found.ids).count(2) == 1, "only the template's own end of turn"


def test_raw_prompts_stay_raw(tmp_path):
    (found,) = prompts(tmp_path, [{"prompt": "time year", "completion": " way"}]).train
    assert (found.prompt, found.reference) == ("time year", " way")
    assert tiny_tokenizer().decode(found.ids) == "time year"


def test_a_row_may_be_a_question_alone_where_no_reward_needs_a_reference(tmp_path):
    row = chat(("user", "time"))
    assert prompts(tmp_path, [row]).train[0].reference is None
    assert problems(tmp_path, [QUESTION, row], check=needed) == [("D251", 2, "no reference")]
    kept = prompts(tmp_path, [QUESTION, row], check=needed, section={"on_empty": "drop"})
    assert len(kept.train) == 1 and kept.prepared.manifest["dropped"] == {"empty": 1}


def test_the_reference_may_be_a_column_and_other_columns_are_kept_when_asked_for(tmp_path):
    row = {**chat(("user", "time")), "answer": 72, "tests": ["a", {"b": 1}], "completion": "hidden"}
    (found,) = prompts(tmp_path, [row], reference_column="answer", columns=True).train
    assert found.reference == "72"
    assert dict(found.columns) == {"messages": row["messages"], "answer": 72, "tests": ["a", {"b": 1}]}
    assert not prompts(tmp_path, [row]).train[0].columns
    assert problems(tmp_path, [{**row, "answer": [1]}], reference_column="answer")[0][:2] == ("D251", 1)


def test_rows_that_cannot_be_asked_are_told_together_each_with_its_line(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [QUESTION, chat(("assistant", "alone")), chat(("user", "q"), ("assistant", "a"), tools=tools)]
    found = problems(tmp_path, rows)
    assert [item[:2] for item in found] == [("D250", 2), ("D250", 3)]
    assert "tools" in found[1][2] and "nothing is asked" in found[0][2]


def test_texts_have_no_question(tmp_path):
    assert problems(tmp_path, [{"text": "time year"}])[0][:2] == ("D250", 1)


def test_long_prompts_are_dropped_and_counted_or_refused(tmp_path):
    rows = [QUESTION, chat(("user", "time " * 80), ("assistant", "b"))]
    assert prompts(tmp_path, rows).prepared.manifest["dropped"] == {"overlong": 1}
    assert problems(tmp_path, rows, section={"overlong": "error"})[0][:2] == ("D220", 2)
    with pytest.raises(DataError, match="no prompt is left of 2 rows"):
        prompts(tmp_path, rows, room=3)
    assert "holds no more" in problems(tmp_path, rows, room=20, section={"overlong": "error"})[0][2]


def test_validation_weights_and_hash(tmp_path):
    rows = [chat(("user", f"time {n}"), ("assistant", str(n))) for n in range(20)]
    held = prompts(tmp_path, rows, section={"validation": {"fraction": 0.3}})
    assert 0 < len(held.validation) < 20 and len(held.train) + len(held.validation) == 20
    assert len(prompts(tmp_path, rows, source={"weight": 2.0}).train) == 40
    assert prompts(tmp_path, rows, source={"weight": 0.5}).prepared.manifest["dropped"]["sampled_out"] > 0
    one = prompts(tmp_path, rows).prepared.manifest["hash"]
    changed = [*rows[:-1], chat(("user", "time 19"), ("assistant", "other"))]
    assert one != prompts(tmp_path, changed).prepared.manifest["hash"], "the reference counts"
    assert one == prompts(tmp_path, rows).prepared.manifest["hash"]
