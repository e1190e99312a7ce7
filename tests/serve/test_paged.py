"""Contract: an engine over pages, which runs one step ahead, answers as one that waits for every token."""

import pytest
import torch

from luthier.serve.engine.request import Sampling
from tests.serve.asking import Running, ask
from tests.serve.test_engine import MODEL, prompts

ROWS = prompts(7, seed=21, low=1, high=140)


def both(samplings, *, new=30, stop=(), batch=4, rows=ROWS):
    found = []
    for paged in (False, True):
        with Running(MODEL, max_batch_size=batch, prefill_tokens=64, paged=paged) as engine:
            asked = [
                ask(row, new=new, stop_ids=(), sampling=sampling, stop=stop)
                for row, sampling in zip(rows, samplings, strict=True)
            ]
            engine.submit(*(one.request for one in asked))
            found.append([(one.wait().ids, one.text, one.finish, one.infos) for one in asked])
    return found


def test_seeded_sampling_and_biases_run_ahead_and_say_the_same():
    samplings = [Sampling(temperature=0.8 + index / 10, seed=index, top_p=1.0 - index / 20) for index in range(5)]
    samplings += [Sampling(logit_bias={7: 100.0}), Sampling()]
    plain, paged = both(samplings)
    assert paged == plain
    assert set(plain[5][0]) == {7} and len({ids for ids, *_ in plain}) == 7


def test_rows_that_need_the_host_between_steps_are_not_run_ahead():
    samplings = [Sampling(presence_penalty=1.5, frequency_penalty=0.5)] * 2 + [Sampling(logprobs=2)] * 2
    samplings += [Sampling(temperature=1.0, seed=4)] * 2 + [Sampling()]
    plain, paged = both(samplings)
    for (ids, text, finish, infos), (own, own_text, own_finish, own_infos) in zip(paged, plain, strict=True):
        assert (ids, text, finish) == (own, own_text, own_finish)
        assert [one.id for one in infos] == [one.id for one in own_infos]
        for one, other in zip(infos, own_infos, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert len(paged[2][3]) == 30


def test_a_stop_string_ends_a_row_that_was_run_ahead():
    (_, text, *_), *_ = both([Sampling()], rows=ROWS[:1])[0]
    cut = text[len(text) // 2 :][:3]
    plain, paged = both([Sampling()] * 7, stop=(cut,))
    assert paged == plain and paged[0][2] == "stop" and cut not in paged[0][1]


def test_the_host_waits_once_a_forward():
    with Running(MODEL, max_batch_size=8, prefill_tokens=4096, paged=True) as engine:
        asked = [ask(row, new=25, stop_ids=()) for row in ROWS]
        engine.submit(*(one.request for one in asked))
        for one in asked:
            one.wait()
        assert engine.counters.waits <= engine.counters.steps + len(ROWS)
        assert engine.counters.steps <= 24 * 3


def test_a_beginning_is_kept_as_pages_and_used_without_reading():
    first = ROWS[0] * 1 + list(range(3, 203))
    with Running(MODEL, max_batch_size=2, prefix_tokens=1000, paged=True) as engine:
        one = ask(first, new=4, stop_ids=())
        engine.submit(one.request)
        one.wait()
        two = ask([*first, 9, 8], new=4, stop_ids=())
        engine.submit(two.request)
        two.wait()
        assert two.request.reused == (len(first) // 64) * 64 > 0
        assert engine.slots.paged.pool.used == engine.prefixes.tokens // 64
    assert two.ids == both([Sampling()], rows=[[*first, 9, 8]], new=4)[0][0][0]


def test_a_row_whose_logits_are_not_finite_ends_alone():
    from tests.support.tiny import tiny_model

    model = tiny_model(seed=9)
    with torch.no_grad():
        model.model.embed_tokens.weight[5].fill_(float("nan"))
    with Running(model, max_batch_size=2, paged=True) as engine:
        bad, good = ask([4, 5, 6], new=5, stop_ids=()), ask([4, 9, 6], new=5, stop_ids=())
        engine.submit(bad.request, good.request)
        assert bad.wait().finish == "error" and "not finite" in bad.pieces[-1].problem
        assert good.wait().finish == "length" and len(good.ids) == 5
