"""A mixture has its shares within half of a row of each source; rows are chosen by content, so few of them move.

Mutations tried by hand (each makes tests here fail): draws by place instead of content;
`first_exhausted` with the largest instead of the smallest source; the rest always rounded up.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.data.mixing import choose_rows, mix_report, passes
from luthier.data.prepare import prepare
from luthier.recipe.schema import DataSection, MixSection, Source
from luthier.runtime.errors import DataError
from tests.data.reading import read
from tests.data.test_prepare import run, write
from tests.support.often import often
from tests.support.tiny import conversations, tiny_tokenizer

SIZES = st.lists(st.lists(st.integers(1, 40), min_size=3, max_size=60), min_size=2, max_size=4)
STOPS = st.sampled_from(["first_exhausted", "all_exhausted", "largest_once"])


def even(parts):
    """Shares in proportion to some whole numbers; the last one takes the rounding."""
    shares = [part / sum(parts) for part in parts]
    return [*shares[:-1], 1.0 - sum(shares[:-1])]


def choose(rows, shares, *, seed=0, **mix):
    """Chosen (source, content) with their number, and the sum of sizes of each source; rows are (content, size)."""
    section = DataSection(
        train=[Source(path=f"{k}", share=share) for k, share in enumerate(shares)], mix=MixSection(**mix)
    )
    flat = [(k, *row) for k, own in enumerate(rows) for row in own]
    sizes = np.array([size for _, _, size in flat], np.int64)
    chosen = choose_rows(
        section, seed, sources=np.array([k for k, _, _ in flat], np.int64),
        sizes=lambda name: np.ones(len(flat), np.int64) if name == "rows" else sizes,
        hashes=lambda wanted: [flat[index][1] for index in wanted],
    )  # fmt: skip
    taken = Counter(flat[index][:2] for index in chosen.used)
    got = [sum(flat[index][2] for index in chosen.used if flat[index][0] == k) for k in range(len(rows))]
    assert sorted({*chosen.used.tolist(), *chosen.left_out.tolist()}) == list(range(len(flat)))
    assert not set(chosen.used.tolist()) & set(chosen.left_out.tolist())
    return taken, got


def named(sizes, source):
    return [(f"{source}-{place}", size) for place, size in enumerate(sizes)]


# --- shares -------------------------------------------------------------------------------------------------------


@settings(max_examples=often(150), deadline=None)
@given(sizes=SIZES, data=st.data(), stop=STOPS, seed=st.integers(0, 9))
def test_each_source_is_within_half_of_a_row_of_its_share(sizes, data, stop, seed):
    shares = even(data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))))
    rows = [named(own, k) for k, own in enumerate(sizes)]
    totals = [sum(own) for own in sizes]
    fits = [total / share for total, share in zip(totals, shares, strict=True)]
    whole = {"first_exhausted": min(fits), "all_exhausted": max(fits),
             "largest_once": fits[max(range(len(totals)), key=totals.__getitem__)]}[stop]  # fmt: skip
    assume(all(whole * share > max(own) for share, own in zip(shares, sizes, strict=True)))
    taken, got = choose(rows, shares, stop=stop, by="tokens", seed=seed)
    for k, own in enumerate(sizes):
        assert abs(got[k] - whole * shares[k]) <= max(own) / 2 + 1e-6
    if stop == "first_exhausted":
        assert max(taken.values()) == 1
    if stop == "all_exhausted":
        assert len(taken) == sum(map(len, sizes))
    counts = [[taken[(k, name)] for name, _ in own] for k, own in enumerate(rows)]
    assert all(max(own) - min(own) <= 1 for own in counts)  # no row is used twice more than another


@settings(max_examples=often(60), deadline=None)
@given(sizes=SIZES, size=st.integers(200, 5_000), by=st.sampled_from(["rows", "tokens", "trained_tokens"]))
def test_a_size_is_reached_by_repeating_what_is_scarce(sizes, size, by):
    shares = even([1] * len(sizes))
    taken, got = choose([named(own, k) for k, own in enumerate(sizes)], shares, size=size, by=by)
    if by == "rows":
        reached = [sum(count for (k, _), count in taken.items() if k == source) for source in range(len(sizes))]
        assert all(abs(rows - size / len(sizes)) <= 0.5 + 1e-6 for rows in reached)
    else:
        assert all(abs(sum_ - size / len(sizes)) <= max(own) / 2 + 1e-6 for sum_, own in zip(got, sizes, strict=True))


def test_the_passes_are_those_of_the_stated_formula():
    assert passes(MixSection(), [0.25, 0.75], [100, 100]) == pytest.approx([1 / 3, 1.0])
    assert passes(MixSection(stop="all_exhausted"), [0.25, 0.75], [100, 100]) == pytest.approx([1.0, 3.0])
    assert passes(MixSection(stop="largest_once"), [0.5, 0.5], [100, 400]) == pytest.approx([4.0, 1.0])
    assert passes(MixSection(size=200), [0.5, 0.5], [100, 400]) == pytest.approx([1.0, 0.25])


# --- stability ----------------------------------------------------------------------------------------------------


@settings(max_examples=often(80), deadline=None)
@given(sizes=SIZES, order=st.randoms(use_true_random=False), stop=STOPS)
def test_reordering_rows_moves_none(sizes, order, stop):
    shares = even([1] * len(sizes))
    rows = [[(f"{place % 7}", size) for place, size in enumerate(own)] for own in sizes]  # copies among them
    rows = [[(name, 5 + int(name)) for name, _ in own] for own in rows]
    mixed = [order.sample(own, len(own)) for own in rows]
    assert choose(rows, shares, stop=stop)[0] == choose(mixed, shares, stop=stop)[0]


@settings(max_examples=often(80), deadline=None)
@given(
    scarce=st.lists(st.integers(1, 40), min_size=3, max_size=20), more=st.lists(st.integers(1, 40), max_size=20),
    plenty=st.lists(st.integers(1, 40), min_size=80, max_size=120),
)  # fmt: skip
def test_of_appended_rows_some_come_in_and_as_much_leaves(scarce, more, plenty):
    assume(max([*plenty, *more]) < sum(scarce) < sum(plenty))
    before, was = choose([named(scarce, "a"), named(plenty, "b")], [0.5, 0.5], by="tokens")
    after, now = choose([named(scarce, "a"), named([*plenty, *more], "b")], [0.5, 0.5], by="tokens")
    appended = {(1, f"b-{place}") for place in range(len(plenty), len(plenty) + len(more))}
    came, left = set(after) - set(before), set(before) - set(after)
    assert {name for name in came if name not in appended} == set()  # no old row comes in: the others only leave
    sizes = dict(named([*plenty, *more], "b"))
    moved = sum(sizes[name] for _, name in came) - sum(sizes[name] for _, name in left)
    assert moved == now[1] - was[1] and abs(moved) <= max([*plenty, *more])
    assert {name for name in after if name[0] == 0} == {name for name in before if name[0] == 0}


@settings(max_examples=often(60), deadline=None)
@given(scarce=st.integers(3, 20), more=st.integers(1, 10), plenty=st.integers(60, 100))
def test_a_larger_mixture_holds_the_smaller_one(scarce, more, plenty):
    def mixture(count):
        return choose([named([4] * count, "a"), named([4] * plenty, "b")], [0.5, 0.5], by="tokens")[0]

    assert set(mixture(scarce)) <= set(mixture(scarce + more))


def test_the_seed_decides_and_copies_draw_for_themselves():
    rows = [[("same", 1)] * 100, named([1] * 40, "b")]
    taken, _ = choose(rows, [0.5, 0.5], by="rows")
    assert taken[(0, "same")] == 40
    assert (
        choose([named([1] * 99, "a"), rows[1]], [0.5, 0.5])[0]
        != choose([named([1] * 99, "a"), rows[1]], [0.5, 0.5], seed=1)[0]
    )


# --- in a recipe --------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    one = write(tmp_path / "math.jsonl", conversations(200, turns=2))
    two = write(tmp_path / "chat.jsonl", conversations(150, seed=1))
    return [{**one, "share": 0.4}, {**two, "share": 0.6}]


@pytest.mark.parametrize("by", ["rows", "tokens", "trained_tokens"])
def test_the_manifest_says_what_was_wanted_and_achieved(shared, by):
    prepared = run(shared, mix={"by": by})
    report = json.loads(json.dumps(prepared.manifest["mix"], allow_nan=False))
    one, two = report["sources"]
    assert (report["by"], report["stop"], report["size"]) == (by, "first_exhausted", None)
    assert one["achieved"][by] == pytest.approx(0.4, abs=0.005) and two["achieved"][by] == pytest.approx(0.6, abs=0.005)
    own = [[e for e in prepared.train if e.ref.source == k] for k in (0, 1)]
    assert [len(rows) for rows in own] == [one["rows"], two["rows"]]
    assert [sum(map(len, rows)) for rows in own] == [one["tokens"], two["tokens"]]
    assert [sum(e.trained_tokens for e in rows) for rows in own] == [one["trained_tokens"], two["trained_tokens"]]
    assert report["tokens"] == prepared.manifest["tokens"] and max(one["times"], two["times"]) == 1.0
    left_out = 200 + 150 - one["rows"] - two["rows"]
    assert prepared.manifest["dropped"] == {"sampled_out": left_out}
    assert prepared.manifest["dropped_rows"][0]["detail"].startswith("not among the rows that `share: 0.")


def test_held_out_rows_are_not_mixed_in(shared):
    prepared = run(shared, validation={"fraction": 0.2}, mix={"stop": "all_exhausted"})
    held_out = {str(e.ref) for e in prepared.validation}
    assert held_out and not held_out & {str(e.ref) for e in prepared.train}
    assert prepared.manifest["mix"]["sources"][0]["achieved"]["trained_tokens"] == pytest.approx(0.4, abs=0.01)


def test_preferences_are_mixed_too(tmp_path):
    def pairs(name, count):
        rows = [{"prompt": f"Q {n}", "chosen": f"yes {n} " * (1 + n % 4), "rejected": "no"} for n in range(count)]
        return write(tmp_path / name, rows)

    train = [{**pairs("a.jsonl", 60), "share": 0.5}, {**pairs("b.jsonl", 30), "share": 0.5}]
    section = DataSection(train=train, max_length=128, mix={"by": "tokens"})
    manifest = prepare(section, tiny_tokenizer(), seed=0, kind="pairs").manifest
    assert manifest["mix"]["sources"][0]["achieved"]["tokens"] == pytest.approx(0.5, abs=0.02)


def test_a_share_that_cannot_be_given_is_an_error(tmp_path, shared):
    tiny = write(tmp_path / "few.jsonl", conversations(3, seed=5))
    with pytest.raises(DataError, match=r"D247.*less than half of a row"):
        run([{**shared[0], "share": 0.999}, {**tiny, "share": 0.001}], mix={"by": "rows", "size": 100})
    long = write(tmp_path / "long.jsonl", [{"messages": [{"role": "user", "content": "w " * 500},
                                                         {"role": "assistant", "content": "a"}]}])  # fmt: skip
    with pytest.raises(DataError, match=r"D247.*no row left"):
        run([{**shared[0], "share": 0.5}, {**long, "share": 0.5}])


def test_what_a_reader_should_know_is_said(tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", conversations(3, seed=5))
    many = write(tmp_path / "many.jsonl", conversations(90, seed=6))
    run([{**few, "share": 0.3}, {**many, "share": 0.7}], mix={"stop": "all_exhausted"})
    assert "each row of" in capsys.readouterr().err
    run([{**few, "share": 0.13}, {**many, "share": 0.87}], mix={"by": "rows", "size": 12})
    assert "instead of 13.0%: few rows" in capsys.readouterr().err.replace("\n", " ")


def test_without_shares_the_report_says_what_weights_gave(tmp_path):
    one = write(tmp_path / "a.jsonl", conversations(10))
    report = run([{**one, "weight": 2.0}]).manifest["mix"]
    assert report["sources"][0]["rows"] == 20 and report["sources"][0]["times"] == 2.0 and "by" not in report
    assert report["sources"][0]["achieved"] == {"rows": 1.0, "tokens": 1.0, "trained_tokens": 1.0}


def test_the_report_counts_nothing_twice():
    section = DataSection(train=[Source(path="a"), Source(path="b")])
    sources, ones = np.array([0, 0, 1]), np.ones(3, np.int64)
    chosen = choose_rows(section, 0, sources=sources, sizes=lambda name: ones, hashes=lambda wanted: [])
    report = mix_report(section, sources=sources, tokens=ones * 4, trained=ones, chosen=chosen)
    assert [source["achieved"]["tokens"] for source in report["sources"]] == [2 / 3, 1 / 3]


# --- rows written again -------------------------------------------------------------------------------------------

WRITTEN = [
    [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5},
                   {"role": "user", "content": "c"},
                   {"role": "assistant", "content": "defg", "spans": [{"start": 0, "end": 2, "weight": 0}]}],
      "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}]}],
    [{"prompt": "a ", "completion": "b"}], [{"text": "ü"}],
    [{"segments": [{"text": "a", "label": False}, {"text": "b", "weight": 0.25}]}],
]  # fmt: skip


@pytest.mark.parametrize("rows", WRITTEN, ids=["chat", "prompt", "text", "segments"])
def test_rows_that_are_written_read_back_as_they_were(tmp_path, rows):
    from luthier.data.rows_out import rows_as_json

    write(tmp_path / "a.jsonl", rows)
    first = read(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", rows_as_json(first.conversations))
    assert read(tmp_path / "b.jsonl").hash == first.hash


def test_rows_of_several_formats_are_not_written_into_one_file(tmp_path):
    from luthier.data.rows_out import rows_as_json

    write(tmp_path / "a.jsonl", WRITTEN[0])
    write(tmp_path / "b.jsonl", WRITTEN[2])
    rows = [*read(tmp_path / "a.jsonl").conversations, *read(tmp_path / "b.jsonl").conversations]
    with pytest.raises(DataError, match="D249"):
        rows_as_json(rows)
