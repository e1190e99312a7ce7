"""Contract: each mode makes rows that training reads, says where each came from, and loses nothing without a word."""

import json

import pytest

from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import AccessError, RecipeError
from luthier.synthesis.load import load_spec
from luthier.synthesis.run import Files, plan, synthesize
from tests.endpoint.server import raw, status
from tests.synthesis.support import DOCUMENT, Server, draw, reply, rows_of, spec_text, unruly, without_times


def run(tmp_path, server, mode, section, *, out="rows.jsonl", **more):
    file = tmp_path / "spec.yaml"
    file.write_text(spec_text(server.url, mode, section, **more))
    spec = load_spec(file)
    files = Files.of(spec, tmp_path / out)
    told = synthesize(spec, files)
    return told, rows_of(files.rows), rows_of(files.beside("rejected.jsonl"))


def mill(tmp_path, name="mill.md"):
    (tmp_path / name).write_text(DOCUMENT)
    return str(tmp_path / name)


def examples(tmp_path):
    file = tmp_path / "seeds.jsonl"
    texts = ["Why is the sky blue?", "Write a haiku about rain.", "Plan a week of meals.", "What is a prime number?"]
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    return {"path": str(file)}


def problems(tmp_path, count=4):
    file = tmp_path / "problems.jsonl"
    rows = [{"question": f"How many legs have {index} chairs?", "answer": str(index % 3 + 2)} for index in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(file), "map": {"user": "question", "assistant": "answer"}}


SMALL = {"chunk_tokens": 50, "overlap_tokens": 8, "quote_words": 3}


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
    assert told["curated"]["dedup"]["dropped"] == {"exact": len(rejected)}


# -- a server that misbehaves


def test_what_a_server_does_wrong_is_mended_or_counted(tmp_path):
    section = {"source": problems(tmp_path, 30), "n": 4, "scorer": {"name": "number"}, "keep": "all"}
    with Server(unruly) as server:
        told, _rows, _rejected = run(tmp_path, server, "rejection", section)
    counts = told["outcomes"]
    assert sum(counts.values()) == 120 and counts["refusal"] >= 1 and counts["empty"] >= 1 and counts["wrong"] > 10
    session = next(iter(told["servers"].values()))["session"]
    assert session["requests"] == 120 and session["retries"] >= 20
    assert max(server.paid.values()) == 1


def test_json_is_repaired_once_with_the_fault_shown(tmp_path):
    with Server(lambda body, _: '{"pairs": [{"question": "q"}]}' if len(body["messages"]) == 2 else None) as server:
        _told, rows, rejected = run(
            tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL}, structured="none"
        )
    assert rows and not rejected and all(row["provenance"]["repairs"] == 1 for row in rows)
    shown = [one["body"]["messages"] for one in server.seen if len(one["body"]["messages"]) == 4]
    assert "pairs.0.answer: Field required" in shown[0][-1]["content"] and shown[0][2]["role"] == "assistant"
    assert all("response_format" not in one["body"] for one in server.seen)


@pytest.mark.parametrize(
    ("refused", "kept"), [({"json_schema"}, "json_object"), ({"json_schema", "json_object"}, None)]
)
def test_a_server_without_json_schema_is_found_out_and_said(tmp_path, refused, kept, capsys):
    def old(body, _):
        return (
            status(400, "response_format not supported")
            if body.get("response_format", {}).get("type") in refused
            else None
        )

    with Server(old) as server:
        _told, rows, _ = run(tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL})
    assert rows and "takes no response_format json_schema" in capsys.readouterr().err
    assert server.seen[-1]["body"].get("response_format", {}).get("type") == kept


def test_one_poisoned_request_costs_one_row(tmp_path):
    def poison(body, _):
        return status(400, "too long") if "How many legs have 1 " in str(body["messages"]) else None

    with Server(poison) as server:
        section = {"source": problems(tmp_path, 6), "n": 1, "scorer": {"name": "number"}}
        told, _, rejected = run(tmp_path, server, "rejection", section, endpoint={"concurrency": 1})
    assert told["outcomes"]["bad_request"] == 1 and "too long" in str(rejected)


@pytest.mark.parametrize("act", [status(404, "no such model"), raw(b"<html>"), status(500)])
def test_a_server_that_only_fails_ends_the_job_and_no_file_is_written(tmp_path, act):
    with Server(lambda *_: act) as server, pytest.raises((RecipeError, AccessError, Exception)) as caught:
        run(tmp_path, server, "rejection", {"source": problems(tmp_path), "n": 2, "scorer": {"name": "number"}},
            endpoint={"max_retries": 0})  # fmt: skip
    assert caught.value.problems[0].code in {"R760", "R762", "R763"}
    assert not list(tmp_path.glob("rows*")), "not even an empty journal"


def test_cut_answers_make_no_row(tmp_path):
    with Server(lambda body, _: reply(body, finish="length")) as server:
        section = {"source": problems(tmp_path), "n": 2, "scorer": {"name": "number"}}
        told, rows, _ = run(tmp_path, server, "rejection", section)
    assert rows == [] and told["outcomes"] == {"cut": 8}


def test_a_budget_ends_the_asking_and_what_there_is_is_written(tmp_path):
    section = {"source": problems(tmp_path, 20), "n": 2, "scorer": {"name": "number"}}
    limits = {"concurrency": 1, "budget_tokens": 700}
    with Server() as server:
        told, rows, _ = run(tmp_path, server, "rejection", section, endpoint=limits, sampling={"max_tokens": 50})
        asked = len(server.seen)
        assert 0 < told["outcomes"]["over_budget"] < 40 and asked == 40 - told["outcomes"]["over_budget"]
        _again, rows_again, _ = run(
            tmp_path, server, "rejection", section, endpoint=limits, sampling={"max_tokens": 50}
        )
        assert len(server.seen) == asked, "the budget counts what the first session used"
        assert rows_again == rows
        more = {**limits, "budget_tokens": 100_000}
        done, _, _ = run(tmp_path, server, "rejection", section, endpoint=more, sampling={"max_tokens": 50})
    assert "over_budget" not in done["outcomes"] and len(server.seen) == 40 and max(server.paid.values()) == 1


def test_money_is_the_sum_over_the_journal(tmp_path):
    with Server() as server:
        section = {"source": problems(tmp_path), "n": 2, "scorer": {"name": "number"}}
        prices = {"input_price": 2.0, "output_price": 8.0}
        told, _, _ = run(tmp_path, server, "rejection", section, endpoint=prices)
        again, _, _ = run(tmp_path, server, "rejection", section, endpoint=prices)
    server_told = next(iter(told["servers"].values()))
    assert server_told["cost_usd"] == pytest.approx(
        (server_told["prompt_tokens"] * 2 + server_told["completion_tokens"] * 8) / 1e6
    )
    assert again["answers_new"] == 0 and next(iter(again["servers"].values()))["cost_usd"] == server_told["cost_usd"]


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine\n")
    with Server() as server, pytest.raises(RecipeError, match="has no journal") as caught:
        run(tmp_path, server, "documents", {"paths": [mill(tmp_path)], **SMALL})
    assert caught.value.problems[0].code == "C165" and (tmp_path / "rows.jsonl").read_text() == "mine\n"
    assert server.seen == []


def test_the_plan_asks_nothing(tmp_path):
    file = tmp_path / "spec.yaml"
    with Server() as server:
        file.write_text(spec_text(server.url, "documents", {"paths": [mill(tmp_path)], **SMALL}))
        value = plan(load_spec(file))
    assert server.seen == [] and value["requests"][0] == value["source"]["passages"] >= 2
    assert "Anker" in value["first_request"][-1]["content"]
    assert draw(value["first_request"]) == draw(plan(load_spec(file))["first_request"])
