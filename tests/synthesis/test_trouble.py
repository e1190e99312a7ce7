"""Contract: what a server does wrong is mended, or costs one row, or ends the job; all of it is counted."""

import pytest

from luthier.runtime.errors import LuthierError, RecipeError
from luthier.synthesis.load import load_spec
from luthier.synthesis.run import plan
from tests.endpoint.server import raw, status
from tests.synthesis.support import SMALL, Server, draw, examples, mill, problems, reply, run, spec_text, unruly


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
    with Server(lambda *_: act) as server, pytest.raises(LuthierError) as caught:
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


def test_evolved_prompts_that_could_not_be_answered_are_listed_with_their_text(tmp_path):
    def down(body, _):
        return status(400, "no answers today") if "Do not answer it" not in str(body["messages"]) else None

    with Server(down) as server:
        section = {"source": examples(tmp_path), "rounds": 2}
        told, rows, rejected = run(tmp_path, server, "evolve", section, endpoint={"concurrency": 1}, structured="none")
    asked = [one["row"]["messages"][-1]["content"] for one in rejected if one["outcome"] == "bad_request"]
    assert rows == [] and len(asked) == told["outcomes"]["bad_request"] == 8
    assert all("reasons" in text for text in asked)


def test_a_server_that_goes_down_midway_ends_the_job_and_it_goes_on_when_it_is_back(tmp_path):
    section = {"source": problems(tmp_path, 20), "n": 2, "scorer": {"name": "number"}}
    up = {"left": 10}

    def fragile(body, _):
        up["left"] -= 1
        return status(503, "down") if up["left"] < 0 else None

    limits = {"max_retries": 0, "concurrency": 2}
    with Server(fragile) as server:
        with pytest.raises(LuthierError, match="down"):
            run(tmp_path, server, "rejection", section, endpoint=limits)
        assert 10 < len(server.seen) <= 20, "five failures in a row, and what was in flight"
        assert not (tmp_path / "rows.jsonl").exists()
        up["left"] = 10**6
        told, _, _ = run(tmp_path, server, "rejection", section, endpoint=limits)
    assert told["answers_new"] == 30 and "failed" not in told["outcomes"] and max(server.paid.values()) == 1


def test_a_function_that_fails_ends_the_job_with_its_line_and_what_was_paid_is_kept(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def score(completions, **columns):\n    return [1 / (len(completions) - 1)]\n")
    section = {"source": problems(tmp_path), "n": 2, "scorer": {"python": f"{code}:score"}}
    with Server() as server:
        with pytest.raises(LuthierError, match="ZeroDivisionError") as caught:
            run(tmp_path, server, "rejection", section)
        assert (caught.value.problems[0].code, caught.value.problems[0].line) == ("T491", 2)
        code.write_text("def score(completions, **columns):\n    return [1.0]\n")
        told, rows, _ = run(tmp_path, server, "rejection", section)
    assert len(rows) == 4 and max(server.paid.values()) == 1 and told["answers_in_journal"] == 8
