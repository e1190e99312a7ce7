"""Contract: graders validated and run as the official client asks; python ones only where they are allowed."""

import openai
import pytest

from luthier.jobs.store import Store
from tests.api.serving import api
from tests.support.tiny import save_tiny

EXACT = {"type": "string_check", "name": "exact", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
         "operation": "eq"}  # fmt: skip
FUZZY = {**EXACT, "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match"}
del FUZZY["operation"]
PYTHON = {
    "type": "python",
    "name": "half",
    "source": "def grade(sample, item):\n    return len(sample['output_text']) / 10\n",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("graders") / "tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("graders-api")
    store = Store.open(folder / "home")
    with api(folder / "home", store=store, models={"tiny": base}, python_graders=True, grader_seconds=2.0,
             max_new_tokens=16) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def graders(server):
    with server.client(_strict_response_validation=True) as client:
        yield client.fine_tuning.alpha.graders


def test_run_string_check_similarity_python_and_multi(graders):
    right = graders.run(grader=EXACT, model_sample="4", item={"answer": "4"})
    assert right.reward == 1.0 and right.metadata.type == "string_check" and right.metadata.name == "exact"
    assert graders.run(grader=EXACT, model_sample="5", item={"answer": "4"}).reward == 0.0
    assert 0 < graders.run(grader=FUZZY, model_sample="forty", item={"answer": "fourty"}).reward < 1
    assert graders.run(grader=PYTHON, model_sample="12345", item={}).reward == pytest.approx(0.5)
    both = {"type": "multi", "name": "both", "graders": {"a": EXACT, "b": PYTHON}, "calculate_output": "0.5 * a + b"}
    found = graders.run(grader=both, model_sample="12345", item={"answer": "12345"})
    assert found.reward == pytest.approx(1.0) and found.sub_rewards == {"a": 1.0, "b": 0.5}
    missing = graders.run(grader=EXACT, model_sample="4", item={})
    assert missing.reward == 0.0 and missing.metadata.errors.invalid_variable_error is True


def test_python_graders_that_misbehave_are_an_error_of_the_grade(graders):
    slow = {**PYTHON, "source": "def grade(sample, item):\n    while True: pass\n"}
    bad = {**PYTHON, "source": "def grade(sample, item):\n    raise ValueError('no')\n"}
    assert graders.run(grader=bad, model_sample="x", item={}).metadata.errors.python_grader_runtime_error is True
    assert graders.run(grader=slow, model_sample="x", item={}).metadata.errors.python_grader_runtime_error is True


def test_score_models_are_models_of_this_server(graders):
    found = graders.run(grader=SCORE, model_sample="x", item={})
    # A model of random weights gives no usable answer: an error of the grade, after two questions.
    assert found.reward == 0.0 and found.metadata.errors.api_model_grader_parse_error is True
    with pytest.raises(openai.NotFoundError):
        graders.run(grader={**SCORE, "model": "gpt-4o"}, model_sample="x", item={})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        graders.run(grader={**SCORE, "sampling_params": {"temperature": 3.0}}, model_sample="x", item={})


def test_validate_gives_the_grader_back(graders):
    for grader in (EXACT, FUZZY, PYTHON, SCORE):
        found = graders.validate(grader=grader).grader
        assert found is not None and found.to_dict(exclude_none=True) == grader


NO_GRADERS = [
    {}, {"type": "nonsense"}, {**EXACT, "operation": "is"}, {**EXACT, "extra": 1}, {**PYTHON, "source": "def f(: x"},
    7, None, "x",
]  # fmt: skip


@pytest.mark.parametrize("grader", NO_GRADERS)
def test_what_is_no_grader_is_refused_by_both_routes(server, grader):
    for route, more in (("validate", {}), ("run", {"model_sample": "x"})):
        status, told = server.ask(
            f"/v1/fine_tuning/alpha/graders/{route}", method="POST", body={"grader": grader, **more}
        )
        assert status == 400 and told["error"]["message"], told


def test_python_graders_are_off_unless_allowed(tmp_path):
    with api(tmp_path / "home") as server, server.client() as client:
        both = {"type": "multi", "name": "both", "graders": {"a": EXACT, "b": PYTHON}, "calculate_output": "a + b"}
        for grader in (PYTHON, both):
            with pytest.raises(openai.PermissionDeniedError) as refused:
                client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x", item={"answer": "x"})
            assert refused.value.code == "python_graders_off"
        assert client.fine_tuning.alpha.graders.validate(grader=PYTHON).grader is not None
