"""Contract: every whole line once, whatever is torn, rolled back or damaged; only measured numbers are told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.jobs.worker.follow import new_lines
from luthier.jobs.worker.progress import Place, Progress
from luthier.jobs.worker.result import result_csv
from luthier.jobs.worker.telling import of_event, of_metrics


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "x.jsonl"


@given(st.lists(st.integers(), max_size=20), st.lists(st.integers(1, 60), max_size=20))
def test_a_log_that_arrives_in_pieces_is_read_line_by_line(file, numbers, cuts):
    text = "".join(json.dumps({"n": number, "t": "é"}) + "\n" for number in numbers).encode()
    place, seen = Place(), []
    file.write_bytes(b"")
    for size in [*cuts, len(text)]:
        with file.open("ab") as stream:
            stream.write(text[:size])
        text = text[size:]
        lines, place = new_lines(file, place)
        seen += [line["n"] for line in lines]
    assert seen == numbers


def test_a_log_that_was_rolled_back_is_read_anew(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    lines, place = new_lines(file, Place())
    assert [line["n"] for line in lines] == [1, 2, 3]
    (tmp_path / "new").write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n{"n": 4}\n')
    (tmp_path / "new").replace(file)
    lines, place = new_lines(file, place)
    assert [line["n"] for line in lines] == [1, 2, 3, 4], "another file, though longer"
    file.write_text('{"n": 9}\n')
    assert [line["n"] for line in new_lines(file, place)[0]] == [9], "a shorter one"


def test_damaged_lines_are_passed_over_and_a_missing_log_is_empty(tmp_path):
    file = tmp_path / "x.jsonl"
    assert new_lines(file, Place(offset=5, inode=1)) == ([], Place(offset=5, inode=1))
    file.write_bytes(b'\xff\xfe\n[1]\n{"n": 1}\n{"n": ')
    lines, place = new_lines(file, Place())
    assert lines == [{"n": 1}] and place.offset == 16


def test_numbers_that_were_not_measured_are_left_out():
    told = of_metrics({"step": 3, "loss": 0.5}, total_steps=None)
    assert told.data == {"step": 3, "train_loss": 0.5} and told.message == "Step 3: training loss=0.5000"
    told = of_metrics({"step": 3, "eval_loss": 0.7, "eval_rewards/margins": 1.0}, total_steps=9)
    assert told.data == {
        "step": 3, "total_steps": 9, "valid_loss": 0.7, "full_valid_loss": 0.7, "eval_rewards/margins": 1.0
    }  # fmt: skip
    assert told.numbers == {"valid_loss": 0.7, "full_valid_loss": 0.7}
    assert of_metrics({"loss": 1.0}, total_steps=1) is None and of_metrics({"step": 1}, total_steps=1) is None


def test_lines_of_a_run_that_are_no_news():
    assert of_event({"event": "calibrated", "step": 0}) is None
    assert of_event({"event": "checkpoint_saved", "step": 2}) is None, "not before a server can load it"
    assert of_event({"event": "stage_started", "stage": "merge"}).message == "Merging the adapter"
    assert of_event({"event": "training_started", "step": 4, "total_steps": 9}).message == (
        "Training goes on after step 4 of 9"
    )


def test_what_is_remembered_survives():
    progress = Progress(events=Place(offset=7, inode=3), step=4, total_steps=9, crashes=1)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_the_result_file_has_blanks_where_nothing_was_measured():
    lines = [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "eval_loss": 1.5},
        {"step": 2, "loss": 0.5, "rewards/accuracies": 1.0},
    ]
    assert result_csv(lines).decode() == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.30000000000000004,,,\n2,0.5,,1.5,\n"
    )
