"""Contract: of several models every pair is tested, and the words hold together, not only each by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.evaluate.stats import holm
from luthier.evaluate.versus import Scored, compare_many
from luthier.runtime.errors import RunFailed
from tests.evaluate.test_compare import result


def test_holm_is_the_procedure_of_the_paper():
    # Worked by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.2, 0.9]) == pytest.approx([0.4, 0.9])
    assert holm([0.7, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_helps_and_never_exceeds_bonferroni(p_values):
    adjusted = holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p_values)) + 1e-12
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_holm_holds_the_family_wise_error():
    """Ten true null hypotheses: a false word in about 5% of all families, not in 40%."""
    draws = np.random.default_rng(0).random((2_000, 10))
    assert np.mean([min(holm(list(row))) < 0.05 for row in draws]) < 0.07
    assert np.mean(draws.min(axis=1) < 0.05) > 0.3


def test_every_pair_is_there_and_a_weak_difference_loses_its_word():
    low, other = result([0.0] * 20), result([1.0] * 6 + [0.0] * 14)
    two = compare_many([Scored(name="a", results=[low]), Scored(name="b", results=[other])])
    assert (two["tests"], two["pairs"][0]["verdict"]) == (1, "better")
    assert two["pairs"][0]["p_adjusted"] == two["pairs"][0]["p_value"] == pytest.approx(2 * 0.5**6)
    models = [Scored(name=name, results=[low]) for name in "abcd"] + [Scored(name="e", results=[other])]
    many = compare_many(models)
    assert many["tests"] == 10
    assert [(pair["first"], pair["second"]) for pair in many["pairs"]][:4] == [(*"ab",), (*"ac",), (*"ad",), (*"ae",)]
    last = many["pairs"][-1]
    assert last["p_value"] < 0.05 <= last["p_adjusted"] and last["verdict"] == "no evidence"


def test_models_on_other_tasks_are_refused():
    with pytest.raises(RunFailed, match="scored with the first model only"):
        compare_many([Scored(name="a", results=[result([0.0], name="x")]), Scored(name="b", results=[result([0.0])])])
