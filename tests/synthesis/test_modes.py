"""Contract: each mode makes rows that training reads, says where each came from, and loses nothing without a word."""

import json

import pytest

from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, RecipeError
from tests.synthesis.support import DOCUMENT, SMALL, Server, draw, examples, mill, problems, rows_of, run, without_times


def test_documents_give_rows_whose_quotation_stands_in_the_source(tmp_path):
    with Server() as server:
        told, rows, rejected = run(
            tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL}, system="Be brief."
        )
    assert told["rows"] == len(rows) >= 4 and rejected == [] and told["outcomes"] == {"ok": len(rows)}
    for row in rows:
        told_of = row["provenance"]
        start, end = told_of["quote_span"]
        assert DOCUMENT[start:end] == row["messages"][-1]["content"]
        assert told_of["span"][0] <= start < end <= told_of["span"][1]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert (
            told_of["request_id"].startswith("req-")
            and told_of["model"] == "m"
            and told_of["time"]
            and told_of["template"]
        )
        assert told_of["parameters"]["temperature"] == 0.7 and "messages" not in told_of["parameters"]
    read = read_conversations(Source(path=str(tmp_path / "rows.jsonl")), 0)
    assert len(read.conversations) == len(rows) and "provenance" in read.verdict
    sent = server.seen[1]["body"]
    assert sent["response_format"]["json_schema"]["schema"]["required"] == ["pairs"]


def test_a_quotation_that_is_not_there_makes_no_row(tmp_path):
    pair = {"question": "When?", "answer": "In 1793.", "quote": "It was built in 1793 by Otto Brandt."}
    lie = json.dumps({"pairs": [pair]})
    with Server(lambda body, _: lie if '"pairs"' in str(body) and "Anker" in str(body) else None) as server:
        told, rows, rejected = run(tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL})
    assert told["outcomes"]["ungrounded"] == len(rejected) >= 1 and "1793" in rejected[0]["detail"]
    assert rejected[0]["row"]["messages"][-1]["content"] == "In 1793." and all("1793" not in str(row) for row in rows)


def test_seeds_give_new_prompts_and_answers_the_same_in_any_order(tmp_path):
    section = {
        "examples": examples(tmp_path),
        "rows": 12,
        "prompts": 3,
        "topics": ["mills", "rivers"],
        "round_requests": 2,
    }
    results = []
    for concurrency in (1, 8):
        with Server() as server:
            told, rows, rejected = run(tmp_path, server, "seeds", section, out=f"rows{concurrency}.jsonl",
                                       endpoint={"concurrency": concurrency})  # fmt: skip
        results.append(without_times([rows, rejected]))
        assert told["rows"] == 12 and all(len(row["messages"]) == 2 for row in rows)
        assert {row["provenance"]["topic"] for row in rows} == {"mills", "rivers"}
        assert any("prompt" in seed for row in rows for seed in row["provenance"]["seeds"]), (
            "made ones serve as examples"
        )
        prompts = [row["messages"][0]["content"] for row in rows]
        assert len(set(prompts)) == 12
    assert results[0] == results[1]


def test_a_prompt_like_an_example_is_a_duplicate(tmp_path):
    same = json.dumps({"prompts": ["why is the  sky blue?", "How do magnets work, and why?"]})
    with Server(lambda body, _: same if '{"prompts"' in str(body["messages"]) else None) as server:
        section = {"examples": examples(tmp_path), "rows": 4, "prompts": 2, "max_requests": 3, "answer": False}
        told, rows, rejected = run(tmp_path, server, "seeds", section)
    assert [row["messages"][-1]["content"] for row in rows] == ["How do magnets work, and why?"]
    assert told["outcomes"] == {"ok": 1, "duplicate": 5} and "sky blue" in rejected[0]["detail"]


def test_evolution_goes_through_its_rounds_and_drops_what_did_not_change(tmp_path):
    def stuck(body, _):
        return (
            json.dumps({"prompt": "plan a week of MEALS"})
            if "meals" in str(body) and '{"prompt"' in str(body)
            else None
        )

    with Server(stuck) as server:
        section = {"source": examples(tmp_path), "rounds": 2, "operators": ["deepen", "breadth"]}
        told, rows, rejected = run(tmp_path, server, "evolve", section)
    assert told["outcomes"] == {"ok": 6, "unchanged": 2} and len(rows) == 6
    second = next(row for row in rows if row["provenance"]["round"] == 2)
    assert len(second["provenance"]["operators"]) == 2 and second["messages"][-1]["role"] == "assistant"
    assert second["provenance"]["answer"]["request_id"] and second["messages"][0]["content"].count("reasons") == 2
    assert all("meals" in str(one["row"]).lower() for one in rejected)


def test_rounds_before_the_last_are_listed(tmp_path):
    with Server() as server:
        section = {"source": examples(tmp_path), "rounds": 2, "keep": "last"}
        told, rows, rejected = run(tmp_path, server, "evolve", section)
    assert told["outcomes"] == {"ok": 4, "not_kept": 4} and {row["provenance"]["round"] for row in rows} == {2}
    assert {one["provenance"]["round"] for one in rejected} == {1} and "later round" in rejected[0]["detail"]


@pytest.mark.parametrize("keep", ["first", "best", "all", "pairs"])
def test_rejection_sampling_keeps_right_answers_alone(tmp_path, keep):
    with Server() as server:
        section = {"source": problems(tmp_path), "n": 6, "scorer": {"name": "number"}, "keep": keep}
        told, rows, _rejected = run(tmp_path, server, "rejection", section)
    source, lines = told["source"], rows_of(tmp_path / "rows.prompts.jsonl")
    assert source["answers_scored"] == 24 == len(server.paid)
    right = {f"How many legs have {index} chairs?": f"The answer is {index % 3 + 2}." for index in range(4)}
    for row in rows:
        if keep == "pairs":
            question = row["prompt"][-1]["content"]
            assert row["chosen"][0]["content"] == right[question] != row["rejected"][0]["content"]
        else:
            assert row["messages"][-1]["content"] == right[row["messages"][0]["content"]]
    assert sum(line["accepted"] for line in lines) == source["accepted"] > 0
    for line in lines:
        low, high = line["rate_interval"]
        assert 0 <= low <= line["rate"] <= high <= 1 and line["answers"] == 6
    assert source["solved"] + len(source["unsolved"]) == 4
    assert len(rows) == (sum(line["rows"] for line in lines))
    if keep == "all":
        texts = [json.dumps(row["messages"]) for row in rows]
        assert len(set(texts)) == len(texts) and told["outcomes"]["duplicate"] > 0, "equal answers count once"
    counted = sum(told["outcomes"].values()) + (len(rows) if keep == "pairs" else 0)
    assert counted == 24, "every answer is accounted for"
    kind = "pairs" if keep == "pairs" else "tokens"
    assert len(read_conversations(Source(path=str(tmp_path / "rows.jsonl")), 0, kind=kind).conversations) == len(rows)


def test_a_function_of_the_user_scores_and_sees_the_columns(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def short(prompts, completions, reference, question, **columns):\n"
                    "    assert question[0] == prompts[0][-1]['content']\n"
                    "    return [0.5 if reference[0] in completions[0][0]['content'] else 0.1]\n")  # fmt: skip
    with Server() as server:
        section = {"source": problems(tmp_path), "n": 4, "scorer": {"python": f"{code}:short", "accept": 0.5}}
        source = {**problems(tmp_path)}
        section["source"] = source
        told, rows, _rejected = run(tmp_path, server, "rejection", section)
    assert told["outcomes"]["wrong"] > 0 and rows and all(row["provenance"]["score"] == 0.5 for row in rows)


def test_rows_of_one_line_have_no_columns_to_tell_apart(tmp_path):
    code, rows = tmp_path / "own.py", tmp_path / "rows.json"
    code.write_text("def one(prompts, completions, **columns):\n    return [1.0]\n")
    rows.write_text(
        json.dumps([{"question": "a?", "answer": "1", "key": 1}, {"question": "b?", "answer": "2", "key": 2}])
    )
    source = {**problems(tmp_path), "path": str(rows)}
    with Server() as server:
        with pytest.raises(DataError, match="several rows begin on this line"):
            run(tmp_path, server, "rejection", {"source": source, "n": 2, "scorer": {"python": f"{code}:one"}})
        assert server.seen == []


def test_an_accepted_answer_without_a_wrong_one_says_so(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def all_good(prompts, completions, **columns):\n"
                    "    return [float('3' not in said[0]['content']) for said in completions]\n")  # fmt: skip
    with Server(lambda body, _: f"{draw(body['seed']) % 9}") as server:
        section = {"source": problems(tmp_path, 1), "n": 16, "keep": "pairs", "max_per_prompt": 1,
                   "scorer": {"python": f"{code}:all_good"}}  # fmt: skip
        _, rows, rejected = run(tmp_path, server, "rejection", section)
    assert len(rows) == 1, "one wrong answer, `3`, however often it came"
    left = [one["detail"] for one in rejected if one["outcome"] == "not_kept"]
    assert left and set(left) == {"there is no wrong answer to pair it with"}


def test_a_judge_scores_rows_at_the_end_and_answers_of_rejection_sampling(tmp_path):
    with Server() as server:
        told, rows, rejected = run(tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL},
                                   judge={"rubric": "correct", "accept": 3.0})  # fmt: skip
        assert told["outcomes"]["judged_low"] == len(rejected) > 0
        assert all(row["provenance"]["judge_score"] >= 3 for row in rows)
        section = {"source": problems(tmp_path), "n": 3, "scorer": {"name": "judge"}, "keep": "all"}
        told, rows, rejected = run(
            tmp_path, server, "rejection", section, out="judged.jsonl", judge={"rubric": "correct"}
        )
    assert rows and all(row["provenance"]["score"] >= 4 for row in rows)
    asked = [one["body"] for one in server.seen if '"score"' in str(one["body"]["messages"])]
    assert all(body["temperature"] == 0 and "seed" not in body for body in asked)


def test_an_unusable_score_is_asked_for_again_and_then_counted(tmp_path):
    with Server(lambda body, _: "five!" if '"score"' in str(body["messages"]) else None) as server:
        told, rows, rejected = run(tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL},
                                   judge={"rubric": "correct"})  # fmt: skip
    assert rows == [] and set(told["outcomes"]) == {"unjudged"} and "not JSON" in rejected[0]["detail"]
    repairs = [one for one in server.seen if "That cannot be used" in str(one["body"]["messages"][-1])]
    assert len(repairs) == len(rejected)


def test_duplicates_are_dropped_as_in_a_recipe(tmp_path):
    paths = [mill(tmp_path), mill(tmp_path, "copy.md")]
    with Server() as server:
        told, rows, rejected = run(tmp_path, server, "documents", {"paths": paths, **SMALL}, dedup={"fuzzy": None})
    assert told["outcomes"]["duplicate"] == len(rejected) == len(rows)
    assert rejected[0]["detail"].startswith("exact: says the same as candidate ")
    assert all(row["provenance"]["document"].endswith("mill.md") for row in rows), "the first stays"
    assert all(one["provenance"]["document"].endswith("copy.md") for one in rejected)
    assert told["curated"]["dedup"]["dropped"] == {"exact": len(rejected)}


def test_filters_drop_and_redact_rows_as_in_a_recipe(tmp_path):
    bad = "They have four legs. As an AI language model, I have none."
    personal = "Four. Write to otto.brandt@muehle-anker.de for more."

    def plant(body, _):
        asked = str(body["messages"])
        return bad if "have 1 chairs" in asked else personal if "have 2 chairs" in asked else None

    code = tmp_path / "own.py"
    code.write_text("def all_good(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    section = {"source": problems(tmp_path), "n": 1, "scorer": {"python": f"{code}:all_good", "accept": 0.5}}
    with Server(plant) as server:
        told, rows, rejected = run(
            tmp_path, server, "rejection", section, filters={"pii": {"kinds": ["email"]}, "boilerplate": {}}
        )
    assert told["outcomes"] == {"ok": 3, "filtered": 1} and [one["outcome"] for one in rejected] == ["filtered"]
    assert rejected[0]["detail"].startswith("boilerplate: ") and rejected[0]["row"]["messages"][-1]["content"] == bad
    stages = told["curated"]["filters"]["stages"]
    assert stages["boilerplate"]["dropped"] == 1 and stages["pii"]["changed"] == 1
    said = [row["messages"][-1]["content"] for row in rows]
    assert personal.replace("otto.brandt@muehle-anker.de", "[EMAIL_1]") in said and bad not in said


def test_filters_redact_both_answers_of_a_pair(tmp_path):
    right, wrong = "2, says anna@muehle-anker.de", "none, says otto@muehle-anker.de"

    def plant(body, _):
        return right if draw(body["seed"]) % 2 else wrong

    code = tmp_path / "own.py"
    code.write_text("def two(prompts, completions, **columns):\n"
                    "    return [float(said[0]['content'].startswith('2')) for said in completions]\n")  # fmt: skip
    section = {"source": problems(tmp_path), "n": 6, "keep": "pairs",
               "scorer": {"python": f"{code}:two", "accept": 0.5}}  # fmt: skip
    with Server(plant) as server:
        told, rows, _ = run(tmp_path, server, "rejection", section, filters={"pii": {"kinds": ["email"]}})
    assert rows and told["curated"]["filters"]["stages"]["pii"]["changed"] == len(rows)
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert row["chosen"] == [{"role": "assistant", "content": row["chosen"][0]["content"]}]
        assert row["chosen"][0]["content"].startswith("2, says [EMAIL_")
        assert row["rejected"][0]["content"].startswith("none, says [EMAIL_")


def test_filters_that_cannot_run_are_refused_before_anything_is_asked(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def other(row):\n    return True\n")
    with Server() as server:
        with pytest.raises(RecipeError) as caught:
            run(tmp_path, server, "documents", {"paths": [mill(tmp_path)]}, filters={"python": [f"{code}:mine"]})
        assert caught.value.problems[0].code == "D254" and server.seen == []
