"""Contract: a row is sampled from the distribution its settings describe, whoever else is in the batch."""

from dataclasses import replace

import pytest
import torch

from luthier.serve.engine.request import Sampling
from luthier.serve.engine.sampling import NUCLEUS_TOKENS, Chooser, choose

VOCABULARY = 3_000


def logits_of(rows=1, *, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCABULARY, generator=generator) * scale


def draws(sampling, logits, n):
    """n tokens, each from a row with a seed of its own."""
    rows = [Chooser(replace(sampling, seed=(sampling.seed or 0) * 10_000 + row)) for row in range(n)]
    parts = [choose(logits.repeat(len(part), 1), part)[0] for part in (rows[k : k + 200] for k in range(0, n, 200))]
    return torch.tensor([token for part in parts for token in part])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.9)])
def test_frequencies_are_the_probabilities(temperature, top_p):
    logits = torch.full((1, VOCABULARY), -1e9)
    logits[0, :6] = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -2.0])
    probabilities = torch.softmax(logits[0, :6] / temperature, -1)
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    kept = probabilities.clone()
    kept[order[before >= top_p]] = 0
    kept /= kept.sum()
    found = draws(Sampling(temperature=temperature, top_p=top_p, seed=3), logits, 3_000)
    share = torch.bincount(found, minlength=6)[:6] / len(found)
    assert (share[kept == 0] == 0).all()
    torch.testing.assert_close(share, kept, atol=0.03, rtol=0)


def test_a_wide_nucleus_is_not_cut_at_the_tokens_looked_at_first():
    flat = torch.zeros(1, VOCABULARY)
    found = draws(Sampling(temperature=1.0, top_p=0.9, seed=1), flat, 300)
    assert len(found.unique()) > 200
    steep = logits_of(scale=0.1)
    assert (draws(Sampling(temperature=1.0, top_p=0.95, seed=2), steep, 300) >= 0).all()
    best = steep[0].topk(NUCLEUS_TOKENS).indices
    outside = ~torch.isin(draws(Sampling(temperature=1.0, top_p=0.95, seed=2), steep, 300), best)
    assert outside.float().mean() > 0.4


def test_rows_do_not_move_each_other():
    logits = logits_of(6)
    settings = [
        Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=0.7, top_p=0.5, seed=2),
        Sampling(temperature=1.0, logit_bias={5: 100.0}, seed=3), Sampling(presence_penalty=2.0),
        Sampling(temperature=1.3, top_p=0.99, seed=4, logprobs=2),
    ]  # fmt: skip
    together, infos = choose(logits.clone(), [Chooser(s) for s in settings])
    alone = [choose(logits[i : i + 1].clone(), [Chooser(s)])[0][0] for i, s in enumerate(settings)]
    assert together == alone
    assert together[0] == int(logits[0].argmax()) and together[3] == 5
    assert [info is not None for info in infos] == [False] * 5 + [True]


def test_penalties_count_what_was_said_and_log_probabilities_are_the_models_own():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 7], logits[0, 8] = 3.0, 2.5
    chooser = Chooser(Sampling(presence_penalty=0.2, frequency_penalty=0.2, logprobs=2))
    said = []
    for _ in range(4):
        (token,), (info,) = choose(logits.clone(), [chooser])
        assert info.logprob == pytest.approx(float(logits[0].log_softmax(-1)[token]), abs=1e-5)
        assert [token for token, _ in info.top] == [7, 8], "not moved by penalties"
        chooser.accept(token)
        said.append(token)
    # 7: 3.0, then 2.6, then (two said) 2.4 < 2.5.
    assert said == [7, 7, 8, 7]


@pytest.mark.parametrize("temperature", [1e-4, 1e-300])
def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(temperature):
    logits = logits_of(scale=300.0)
    assert draws(Sampling(temperature=temperature, seed=0), logits, 3).tolist() == [int(logits.argmax())] * 3


def test_rows_that_are_not_finite_are_told_and_others_are_sampled():
    logits = logits_of(3)
    logits[1, 5] = float("nan")
    chosen, _ = choose(logits, [Chooser(Sampling(temperature=1.0, seed=1)) for _ in range(3)])
    assert chosen[1] is None and chosen[0] is not None and chosen[2] is not None
